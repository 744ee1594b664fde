"""Statistics of a grid against scipy and pandas, and the printed tables against themselves."""

import itertools
import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from simulation.grid_report.published_results import PUBLISHED
from simulation.grid_report.statistics import Verdict, impossible, paired, ranks

NUMBERS = st.floats(0, 1).map(lambda value: round(value, 6))


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=20))
def test_intervals_are_those_of_a_paired_t_test(pairs):
    first, second = map(pd.Series, zip(*pairs, strict=True))
    found = paired(first, second)
    assert found.pairs == len(pairs)
    differences = first - second
    assert found.mean == pytest.approx(differences.mean(), abs=1e-9)
    low, high = stats.t.interval(0.95, len(pairs) - 1, differences.mean(), max(differences.sem(), 1e-300))
    assert found.low == pytest.approx(low, abs=1e-9)
    assert found.high == pytest.approx(high, abs=1e-9)
    swapped = paired(second, first)
    assert swapped.low == pytest.approx(-found.high, abs=1e-12)


def test_only_seeds_with_both_values_are_compared():
    nan = math.nan
    found = paired(
        pd.Series({0: 0.9, 1: nan, 2: 0.7, 4: 0.8}), pd.Series({0: 0.5, 1: 0.5, 2: 0.4, 3: 0.1, 4: nan})
    )
    assert found.pairs == 2
    assert found.mean == pytest.approx(0.35)
    apart = paired(pd.Series({0: 0.5}), pd.Series({1: 0.5}))
    assert apart.verdict is Verdict.UNKNOWN
    assert apart.mean is None
    assert paired(pd.Series({0: 0.6}), pd.Series({0: 0.5})).low is None


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.10, 0.11, 0.12], Verdict.HIGHER),
        ([-0.10, -0.11, -0.12], Verdict.LOWER),
        ([0.10, -0.11, 0.12], Verdict.OPEN),
        ([0.0, 0.0], Verdict.OPEN),
    ],
)
def test_a_verdict_needs_an_interval_without_zero(values, verdict):
    assert paired(pd.Series(values), pd.Series(0.0, range(len(values)))).verdict is verdict


@given(st.lists(st.none() | st.integers(0, 30).map(lambda n: n / 1000), max_size=8), st.booleans())
def test_places_are_those_of_pandas(values, most):
    found = ranks(values, decimals=2, most=most)
    shown = pd.Series([None if value is None else f"{value:.2f}" for value in values]).astype(float)
    if shown.count() < 2:
        assert found == [None] * len(values)
        return
    places = shown.rank(method="min", ascending=not most)
    assert found == [int(place) if place in {1, 2} else None for place in places]


def test_printed_rows_that_cannot_be_are_exactly_those_with_that_footnote():
    broken = []
    for table in PUBLISHED.values():
        for row in table.rows:
            assert len(row.values) == len(table.columns)
            metrics = dict(zip(table.columns, row.values, strict=True))
            # Balanced accuracy and macro recall stand in no table together.
            if impossible(metrics):
                broken.append((table.number, row.rate, row.name))
            assert impossible(metrics) == row.doubt.startswith("Impossible"), row
    assert broken == [
        ("5.4", 0.2, "HyperMM"),
        ("5.4", 0.4, "HyperMM"),
        ("5.4", 0.6, "HyperMM"),
        ("5.5", 0.2, "MMARE w/o Clinical"),
    ]


def test_printed_tables_agree_where_they_tell_the_same_model():
    """The thesis tells MMARE twice: among the methods and in its ablation."""

    def values(number, **wanted):
        table = PUBLISHED[number]
        (row,) = [r for r in table.rows if all(getattr(r, key) == value for key, value in wanted.items())]
        return dict(zip(table.columns, row.values, strict=True))

    ours = {"model": "mmare", "conditioning": True, "fusion": "pairwise"}
    for number, rate in (("5.7", 0.2), ("5.8", 0.6)):
        assert values(number, **ours) == values("5.4", rate=rate, clinical=True, **ours)
    whole, variant = values("5.6", clinical=True, **ours), values("5.9", **ours)
    assert (variant["macro_recall"], variant["auc"]) == (whole["balanced_accuracy"], whole["auc"])
    whole, variant = values("5.6", clinical=False, **ours), values("5.10", **ours)
    assert (variant["macro_recall"], variant["macro_f1"]) == (whole["balanced_accuracy"], whole["macro_f1"])
    assert (whole["auc"], variant["auc"]) == (0.6636, 0.6639)  # as the footnote says


def test_printed_tables_have_every_row():
    counts = {number: len(table.rows) for number, table in PUBLISHED.items()}
    assert counts == {"5.4": 18, "5.5": 18, "5.6": 6, "5.7": 4, "5.8": 4, "5.9": 4, "5.10": 4}
    for table in PUBLISHED.values():
        names = [(row.rate, row.name) for row in table.rows]
        assert len(set(names)) == len(names)
        values = itertools.chain.from_iterable(row.values for row in table.rows)
        assert all(0 < value < 1 or 1.4 <= value <= 21.0 for value in values)
