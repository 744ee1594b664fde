"""Missingness plans: the meaning of the flags, and contradictions."""

import math

import pytest

from mmare.errors import StudyError
from sites.missing.plan import Missingness, SiteLoss
from sites.options import Mechanism


def test_nothing_is_removed_by_default():
    assert not Missingness().active
    assert Missingness(pattern="exclusive").active
    assert Missingness("mcar", 0.0).active


def test_sites_have_their_own_mechanism_and_rate():
    plan = Missingness("mar", 0.4, ("age",), 3.0, ("guys=0.1", " hh = mnar:0.6"))
    assert plan.default == SiteLoss(Mechanism.MAR, 0.4)
    assert plan.named == {"guys": SiteLoss(Mechanism.MAR, 0.1), "hh": SiteLoss(Mechanism.MNAR, 0.6)}
    assert plan.used == {Mechanism.MAR, Mechanism.MNAR}
    assert (plan.driver_of(Mechanism.MAR), plan.driver_of(Mechanism.MNAR)) == ("age", None)
    alone = Missingness(sites=("guys=mcar:0.2",))
    assert alone.active
    assert alone.default is None


def test_each_driver_goes_to_its_mechanism():
    plan = Missingness("mar", 0.4, ("label", "age"), sites=("hh=mnar:0.6",))
    assert (plan.driver_of(Mechanism.MAR), plan.driver_of(Mechanism.MNAR)) == ("age", "label")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        pytest.param({"mechanism": "mnas", "rate": 0.1}, "--mechanism is 'mnas', expected one of", id="word"),
        pytest.param({"mechanism": "mar"}, "--mechanism is mar, expected --missing-rate", id="no-rate"),
        pytest.param({"rate": 0.2}, "is 0.2, expected --mechanism such as mcar", id="rate-alone"),
        pytest.param({"mechanism": "mcar", "rate": 1.0}, "is 1.0, expected .* from 0 to below 1", id="one"),
        pytest.param({"mechanism": "mcar", "rate": -0.1}, "is -0.1, expected a number", id="negative"),
        pytest.param({"mechanism": "mcar", "rate": math.nan}, "is nan, expected a number", id="nan"),
        pytest.param(
            {"mechanism": "mcar", "rate": 0.2, "drivers": ("age",)},
            "--driver is age, but only the mechanisms mar and mnar use it",
            id="driver-of-mcar",
        ),
        pytest.param(
            {"mechanism": "mcar", "rate": 0.2, "slope": 1.0}, "--slope is 1.0, but only", id="slope-of-mcar"
        ),
        pytest.param({"drivers": ("age",)}, "--driver is age, but only", id="driver-alone"),
        pytest.param(
            {"mechanism": "mar", "rate": 0.2, "drivers": ("label",)},
            "--driver is 'label', but mar is driven by a column of the table",
            id="label-of-mar",
        ),
        pytest.param(
            {"mechanism": "mnar", "rate": 0.2, "drivers": ("age",)},
            "--driver is 'age', but mnar is driven by label or pc1",
            id="column-of-mnar",
        ),
        pytest.param(
            {"mechanism": "mar", "rate": 0.2, "drivers": ("age", "sex")},
            "--driver is 'age' and 'sex', expected one for mar",
            id="two-drivers",
        ),
        pytest.param(
            {"mechanism": "mar", "rate": 0.2, "slope": 101.0},
            "--slope is 101.0, expected .* to 100",
            id="steep",
        ),
        pytest.param(
            {"mechanism": "mar", "rate": 0.2, "slope": math.nan}, "--slope is nan, expected", id="slope-nan"
        ),
        pytest.param({"pattern": "rare"}, "--pattern is 'rare', expected one of natural", id="pattern"),
        pytest.param(
            {"sites": ("hh=0.2",)},
            "is 'hh=0.2', expected SITE=MECHANISM:RATE or a --mechanism",
            id="site-alone",
        ),
        pytest.param({"sites": ("hh",)}, "is 'hh', expected SITE=MECHANISM:RATE", id="site-no-rate"),
        pytest.param({"sites": ("=mar:0.2",)}, "is '=mar:0.2', expected SITE=", id="site-no-name"),
        pytest.param({"sites": ("hh=mar:x",)}, "is 'hh=mar:x', expected SITE=", id="site-word"),
        pytest.param(
            {"sites": ("hh=mat:0.2",)}, "--site-missing of hh is 'mat', expected one of", id="site-mat"
        ),
        pytest.param({"sites": ("hh=mar:1.2",)}, "--site-missing of hh is 1.2, expected", id="site-rate"),
        pytest.param({"sites": ("hh=mar:0.2", "hh=mcar:0")}, "names 'hh' twice, expected", id="site-twice"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(options, sentence):
    with pytest.raises(StudyError, match=sentence):
        Missingness(**options)
