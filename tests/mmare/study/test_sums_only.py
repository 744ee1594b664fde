"""What a study of FedSGD cannot have, each named."""

import pytest

from mmare.errors import StudyError
from mmare.wire.sharing import keeps_state, steps_at_coordinator
from tests.federations import tiny_study


@pytest.mark.parametrize(
    ("section", "key", "value", "sentence"),
    [
        ("training", "local_epochs", 2, "local_epochs 2 are steps of a site; expected 1"),
        ("training", "clip_norm", 0.5, "clip_norm 0.5 limits steps of a site"),
        ("federation", "gap_step", 0.2, "options gap_step needs models that sites trained"),
        ("federation", "local", ["head", "norms"], "local head, norms would never be trained"),
        ("federation", "wire", "float16", "wire float16 is too coarse for gradients"),
    ],
)
def test_what_makes_no_sense_without_steps_of_a_site_is_refused_by_name(section, key, value, sentence):
    told = {"options": {key: value}} if key == "gap_step" else {key: value}
    tables = {"federation": {"strategy": "fedsgd"}, "training": {}}
    tables[section] |= told
    with pytest.raises(
        StudyError, match=f"strategy fedsgd makes its steps at the coordinator, but {sentence}"
    ):
        tiny_study(**tables)


def test_sites_keep_no_moments_where_the_coordinator_steps():
    assert not keeps_state(tiny_study(federation={"strategy": "fedsgd"}))
    assert steps_at_coordinator(tiny_study(training={"recipe": "table"}))
    assert keeps_state(tiny_study())
    assert not steps_at_coordinator(tiny_study())


def test_another_recipe_brings_its_own_strategy():
    study = tiny_study(training={"recipe": "table"})
    assert study.federation.strategy == "fedsgd"
    assert study.federation.options == {"damping": 4000.0}
    assert study.override(["training.recipe=thesis"]).federation.strategy == "fedavg"
    for settings in (
        ["federation.strategy=fedavg"],
        ["training.recipe=thesis", "federation.strategy=fedavg"],
    ):
        assert study.override(settings).federation.options == {}
    own = study.override(["federation.options.damping=7.0"])
    assert own.federation.options == {"damping": 7.0}
    kept = study.override(["training.recipe=thesis", "federation.strategy=fedyogi"])
    assert kept.federation.strategy == "fedyogi"
