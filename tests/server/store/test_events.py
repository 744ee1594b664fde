import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmare.errors import Ending, Reason, SiteCode
from mmare.study.tables import TableError
from server.store.events import KINDS, Event, RollCall, SiteLeftOut, parse_event, to_entry

TEXT, WHOLE = st.text(min_size=1, max_size=8), st.integers(0, 10**9)
NUMBER = st.none() | st.floats(allow_nan=False, allow_infinity=False)
TABLE = st.dictionaries(TEXT, WHOLE | TEXT, min_size=1, max_size=3)
VALUES = {
    "str": TEXT,
    "int": WHOLE,
    "bool": st.booleans(),
    "int | None": st.none() | WHOLE,
    "str | None": st.none() | TEXT,
    "float | None": NUMBER,
    "Table": TABLE,
    "tuple[str, ...]": st.lists(TEXT, min_size=1, max_size=3).map(tuple),
    "Ending": st.sampled_from(Ending),
    "Reason | SiteCode": st.sampled_from([*Reason, *SiteCode]),
    "Reason | SiteCode | None": st.sampled_from([None, *Reason, *SiteCode]),
}


@st.composite
def any_event(draw):
    kind = draw(st.sampled_from(sorted(KINDS.values(), key=lambda kind: kind.__name__)))
    fields = {name: part.type for name, part in kind.__dataclass_fields__.items()}
    return kind(**{name: draw(VALUES[annotation]) for name, annotation in fields.items()})


@given(any_event())
def test_what_is_written_is_read_again(event):
    assert parse_event(json.loads(json.dumps(to_entry(event)))) == event


@given(any_event(), st.dictionaries(TEXT, WHOLE))
def test_what_a_later_version_adds_is_passed_over(event, more):
    entry = to_entry(event)
    assert parse_event({**{f"new {key}": value for key, value in more.items()}, **entry}) == event


def test_a_kind_that_is_not_known_is_a_plain_event():
    assert parse_event({"event": "moon_landed", "run": "r", "height": 3}) == Event(run="r")


@pytest.mark.parametrize("site", [{}, {"site": 5}, {"site": None}])
def test_an_event_that_means_nothing_is_refused(site):
    with pytest.raises(TableError, match="site_left_out without a usable 'site'"):
        parse_event({"event": "site_left_out", "reason": "late", **site})


def test_a_code_stands_beside_its_sentence():
    event = SiteLeftOut(round=3, site="ash", reason="values that are not finite", code=Reason.NON_FINITE)
    entry = to_entry(event)
    assert (entry["reason"], entry["code"]) == ("values that are not finite", "non_finite")
    assert parse_event({**entry, "reason": "in other words"}).code is Reason.NON_FINITE


def test_who_takes_part_has_neither_reason_nor_code():
    entry = to_entry(RollCall(site="ash"))
    assert (entry["accepted"], entry["reason"], entry["code"]) == (True, None, None)
