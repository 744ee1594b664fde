"""What a study with differential privacy refuses, when it is made."""

import pytest

from mmare.errors import StudyError
from tests.federations import tiny_study
from tests.privacy.private import private_study

ZSCORED = [{"name": "ct", "kind": "features", "width": 8, "scaling": "zscore"}]


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"modality": ZSCORED}, "scaling zscore of ct needs moments of patients; expected l2 or none"),
        (
            {
                "modality": [
                    {**ZSCORED[0], "scaling": "site"},
                    {**ZSCORED[0], "name": "m", "scaling": "combat"},
                ]
            },
            "scaling site of ct, combat of m needs moments of patients; expected l2 or none",
        ),
        ({"training": {"noise_probability": 0.3}}, "noise_probability scales its noise by such moments"),
        ({"training": {"oversample": "balanced"}}, "oversample balanced weighs by a site's class counts"),
        (
            {"training": {"schedule": "plateau"}},
            "schedule plateau follows the validation loss of every round",
        ),
        (
            {"training": {"modality_dropout": 0.2, "distillation": 1.0}},
            "distillation compares two predictions of a patient",
        ),
        ({"federation": {"strategy": "exposure"}}, "strategy exposure weighs by exposures"),
        (
            {"federation": {"strategy": "fedadam", "options": {"weighting": "exposure"}}},
            "strategy fedadam weighs by exposures",
        ),
        (
            {"federation": {"options": {"gap_step": 0.1}}},
            "options gap_step needs each site's validation loss",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_setting_that_needs_numbers_without_noise_is_refused_with_the_reason(sections, sentence):
    with pytest.raises(StudyError, match=r"\[privacy\] dp releases nothing without noise, but " + sentence):
        private_study(**sections)


@pytest.mark.parametrize(
    ("dp", "sentence"),
    [
        ({"epsilon": 0.0}, "epsilon must be above 0 and at most 100, found 0"),
        ({"epsilon": 1000}, "epsilon must be above 0 and at most 100, found 1000"),
        ({"epsilon": 1.0, "delta": 1.0}, "delta must be above 0 and below 1, found 1"),
        ({"epsilon": 1.0, "clip": 0.0}, "clip must be positive, found 0"),
        ({}, "lacks the key 'epsilon'"),
        ({"epsilon": "8"}, "epsilon must be a number, found '8'"),
        ({"epsilon": 8.0, "sigma": 1.0}, "unknown key 'sigma'; expected one of clip, delta, epsilon"),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named(dp, sentence):
    with pytest.raises(StudyError, match=rf"\[privacy\] dp.*{sentence}"):
        private_study(privacy={"dp": dp})


def test_answers_beside_those_of_every_run_are_refused():
    dp = {"epsilon": 8.0}
    with pytest.raises(StudyError, match=r"but extra subsets tells more of them"):
        private_study(privacy={"dp": dp, "extra": ["subsets"]})


def test_one_setting_makes_a_study_private():
    study = private_study(privacy={"dp": {"epsilon": 8.0}})
    again = study.override(["privacy.dp.epsilon=3", "privacy.dp.clip=0.5"])
    assert (again.privacy.dp.epsilon, again.privacy.dp.delta, again.privacy.dp.clip) == (3.0, 1e-5, 0.5)
    assert again.hash != study.hash
    assert study.override(["privacy.dp={epsilon=8.0}"]).hash == study.hash


def test_the_hash_of_a_study_without_it_is_as_before():
    assert "dp" not in tiny_study().to_dict()["privacy"]
