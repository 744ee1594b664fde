"""Names and options of strategies: what a study may say of them, and the sentences that refuse the rest."""

from dataclasses import fields

import pytest

from mmare.errors import StudyError
from mmare.study.strategy_options import STRATEGY_OPTIONS, FedAvgOptions, Weighting, strategy_options

EVERY = pytest.mark.parametrize("name", sorted(STRATEGY_OPTIONS))
STEPPING = ("fedadam", "fedavgm", "fedyogi")


@EVERY
def test_defaults_are_filled_in_and_within_their_own_bounds(name):
    found = strategy_options(name, {})
    assert found == STRATEGY_OPTIONS[name]()
    options = {part.name: getattr(found, part.name) for part in fields(found)}
    assert strategy_options(name, options) == found


def test_an_unknown_strategy_is_named_with_the_known_ones():
    with pytest.raises(StudyError, match=r"strategy must be one of .*fedavg.*, found 'fedsum'") as caught:
        strategy_options("fedsum", {})
    assert all(name in str(caught.value) for name in STRATEGY_OPTIONS)


@EVERY
def test_an_unknown_option_is_named(name):
    with pytest.raises(StudyError, match=rf"\[federation\] .*{name} .*'speed'"):
        strategy_options(name, {"speed": 1.0})


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("fedprox", {"mu": -1.0}, "options mu must be between 0 and 1e+06, found -1.0"),
        ("fedprox", {"mu": "much"}, "options of fedprox mu must be a number, found 'much'"),
        ("fedprox", {"mu": True}, "options of fedprox mu must be a number, found True"),
        ("fedprox", {"mu": float("nan")}, "options of fedprox mu must be a number, found nan"),
        ("fedavg", {"gap_step": 1.5}, "options gap_step must be between 0 and 1, found 1.5"),
        ("exposure", {"exponent": -0.5}, "options exponent must be between 0 and 10, found -0.5"),
        ("exposure", {"damping": -1}, "options damping must be between 0 and 1e+12, found -1.0"),
        ("fedavgm", {"momentum": 1.0}, "options momentum must be between 0 and 0.999, found 1.0"),
        ("fedadam", {"tau": 0.0}, "options tau must be between 1e-12 and 1e+06, found 0.0"),
        ("fedyogi", {"beta2": 1.0}, "options beta2 must be between 0 and 0.99999, found 1.0"),
        ("trimmed-mean", {"share": 0.5}, "options share must be between 0 and 0.49, found 0.5"),
        ("krum", {"malicious": 1.5}, "options of krum malicious must be a whole number, found 1.5"),
        ("krum", {"malicious": -1}, "options malicious must be between 0 and 10000, found -1"),
        ("fedmedian", {"share": 0.1}, "strategy fedmedian has no options, found 'share'"),
        ("fedavg", {"weighting": "size"}, "weighting must be one of samples, exposure, found 'size'"),
    ],
)
def test_an_invalid_value_is_refused_with_one_sentence(name, options, sentence):
    with pytest.raises(StudyError) as caught:
        strategy_options(name, options)
    assert str(caught.value).startswith("[federation] ")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["fedavg", "fedprox", *STEPPING])
@pytest.mark.parametrize("option", [{"exponent": 0.5}, {"damping": 10.0}])
def test_options_of_exposure_without_effect_are_refused(name, option):
    with pytest.raises(StudyError, match=rf"options {next(iter(option))} of {name} needs weighting"):
        strategy_options(name, option)
    found = strategy_options(name, {"weighting": "exposure", **option})
    assert found.weighting is Weighting.EXPOSURE


def test_exposure_weighs_by_exposure_only():
    assert strategy_options("exposure", {}).weighting is Weighting.EXPOSURE
    with pytest.raises(StudyError, match="fedavg weighs by samples"):
        strategy_options("exposure", {"weighting": "samples"})


@pytest.mark.parametrize("name", ["exposure", "fedavg", "fedprox", *STEPPING])
def test_every_mean_can_be_weighted_by_exposure_and_moved_by_the_gap(name):
    found = strategy_options(name, {"weighting": "exposure", "gap_step": 0.2})
    assert isinstance(found, FedAvgOptions)
    assert (found.weighting, found.gap_step) == (Weighting.EXPOSURE, 0.2)
