"""Validation of study files, site configurations and messages."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmare.study.tables import TableError, check_keys, convert, from_table


class Side(StrEnum):
    LEFT = "left"
    RIGHT = "right"


@dataclass(frozen=True)
class Point:
    x: float
    y: float = 0.0


@dataclass(frozen=True)
class Everything:
    text: str
    whole: int
    number: float
    switch: bool
    side: Side
    point: Point
    points: tuple[Point, ...] = ()
    counts: Mapping[str, int | None] = field(default_factory=dict)
    free: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, float] | str | None = None


FULL: dict[str, Any] = {
    "text": "a",
    "whole": 3,
    "number": 0.5,
    "switch": True,
    "side": "left",
    "point": {"x": 1.0, "y": 2.0},
    "points": [{"x": 1.0, "y": 0.0}, {"x": 2.0, "y": 0.0}],
    "counts": {"train": 5, "val": None},
    "free": {"anything": [1, "b", None]},
    "weights": {"dead": 6.0},
}


def test_every_kind_is_read():
    made = from_table(Everything, FULL, "[all]")
    assert made == Everything(
        "a",
        3,
        0.5,
        True,
        Side.LEFT,
        Point(1.0, 2.0),
        (Point(1.0), Point(2.0)),
        {"train": 5, "val": None},
        {"anything": [1, "b", None]},
        {"dead": 6.0},
    )
    assert isinstance(made.side, Side)
    assert isinstance(made.points, tuple)


def test_defaults_stand_for_absent_keys():
    needed = {key: FULL[key] for key in ("text", "whole", "number", "switch", "side", "point")}
    made = from_table(Everything, needed, "[all]")
    assert (made.points, made.counts, made.weights) == ((), {}, None)


FINITE = st.floats(allow_nan=False, allow_infinity=False)
POINTS = st.builds(Point, FINITE, FINITE)
EVERYTHING = st.builds(
    Everything,
    text=st.text(),
    whole=st.integers(),
    number=FINITE,
    switch=st.booleans(),
    side=st.sampled_from(Side),
    point=POINTS,
    points=st.lists(POINTS, max_size=3).map(tuple),
    counts=st.dictionaries(st.text(), st.none() | st.integers(), max_size=3),
    free=st.dictionaries(st.text(), st.none() | st.booleans() | st.text(), max_size=3),
    weights=st.none() | st.text() | st.dictionaries(st.text(), FINITE, max_size=3),
)


@given(EVERYTHING)
def test_a_dataclass_survives_a_dict_round_trip(made):
    assert from_table(Everything, asdict(made), "[all]") == made


@pytest.mark.parametrize(("value", "kind"), [(2, float), (-(2**53), float), (0, float | None)])
def test_whole_numbers_pass_as_numbers(value, kind):
    found = convert(value, kind, "x")
    assert found == value
    assert type(found) is float


HUGE = 10**400  # JSON and TOML may hold it; no float can

REFUSED = [
    pytest.param("text", 1, "[all] text must be text, found 1", id="number for text"),
    pytest.param("text", None, "[all] text must be text, found None", id="nothing for text"),
    pytest.param("whole", 1.0, "[all] whole must be a whole number, found 1.0", id="float for whole"),
    pytest.param("whole", True, "[all] whole must be a whole number, found True", id="bool for whole"),
    pytest.param("whole", "1", "[all] whole must be a whole number, found '1'", id="text for whole"),
    pytest.param("number", True, "[all] number must be a number, found True", id="bool for number"),
    pytest.param("number", "0.5", "[all] number must be a number, found '0.5'", id="text for number"),
    pytest.param("number", math.nan, "[all] number must be a number, found nan", id="nan"),
    pytest.param("number", math.inf, "[all] number must be a number, found inf", id="inf"),
    pytest.param("number", -math.inf, "[all] number must be a number, found -inf", id="-inf"),
    pytest.param("number", HUGE, "[all] number must be a number, found 1000", id="beyond floats"),
    pytest.param("switch", 1, "[all] switch must be true or false, found 1", id="number for switch"),
    pytest.param("side", "up", "[all] side must be one of left, right, found 'up'", id="unknown word"),
    pytest.param("side", 1, "[all] side must be one of left, right, found 1", id="number for word"),
    pytest.param("point", 1, "[all] point must be a table, found 1", id="number for table"),
    pytest.param("point", {}, "[all] point lacks the key 'x'", id="key missing inside"),
    pytest.param(
        "point",
        {"x": 1, "z": 2},
        "[all] point has an unknown key 'z'; expected one of x, y",
        id="unknown key inside",
    ),
    pytest.param("point", {"x": "1"}, "[all] point x must be a number, found '1'", id="wrong kind inside"),
    pytest.param("points", {"x": 1}, "[all] points must be a list, found {'x': 1}", id="table for list"),
    pytest.param("points", {}, "[all] points must be a list, found {}", id="empty table for list"),
    pytest.param("points", "ab", "[all] points must be a list, found 'ab'", id="text for list"),
    pytest.param("points", [1], "[all] points must be a table, found 1", id="wrong kind in list"),
    pytest.param("counts", [1], "[all] counts must be a table, found [1]", id="list for table"),
    pytest.param(
        "counts",
        {"val": 1.5},
        "[all] counts.val must be a whole number or absent, found 1.5",
        id="wrong kind in table",
    ),
    pytest.param("weights", [1], "[all] weights must be a table or text or absent, found [1]", id="union"),
    pytest.param("weights", {"a": math.nan}, "[all] weights must be", id="nan in union"),
    pytest.param(
        "whole", datetime.date(2024, 1, 1), "[all] whole must be a whole number, found datetime", id="date"
    ),
]


@pytest.mark.parametrize(("key", "value", "sentence"), REFUSED)
def test_a_wrong_kind_is_refused_by_name(key, value, sentence):
    with pytest.raises(TableError) as caught:
        from_table(Everything, FULL | {key: value}, "[all]")
    assert str(caught.value).startswith(sentence)


def test_unknown_and_missing_keys_are_refused():
    with pytest.raises(TableError, match=r"^\[point\] has an unknown key 'z'; expected one of x, y$"):
        from_table(Point, {"x": 1, "z": 1}, "[point]")
    with pytest.raises(TableError, match=r"^\[point\] lacks the key 'x'$"):
        from_table(Point, {"y": 1}, "[point]")


def test_check_keys_names_the_known_in_order():
    check_keys({"a": 1}, {"b", "a"}, "here")
    with pytest.raises(TableError, match=r"^here has an unknown key 'c'; expected one of a, b$"):
        check_keys({"a": 1, "c": 2}, {"b", "a"}, "here")
