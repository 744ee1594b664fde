import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmare.errors import SiteCode
from mmare.wire.limits import MOST_NAME, RUN_NAME, run_name
from mmare.wire.messages import Refusal, WireError, decode, encode

PARTS = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,90}", fullmatch=True)


@given(PARTS, PARTS)
def test_every_run_has_a_name_that_a_site_accepts(first, second):
    name = run_name(first, second)
    assert RUN_NAME.fullmatch(name)
    assert len(name) <= MOST_NAME
    assert name == run_name(first, second)


@given(st.text(min_size=1, max_size=80))
def test_other_names_are_not_accepted(name):
    fine = name.isascii() and len(name) <= MOST_NAME and name[0].isalnum()
    fine = fine and all(each.isalnum() or each in "._+-" for each in name)
    assert bool(RUN_NAME.fullmatch(name)) is fine


def test_runs_of_several_sites_have_different_names():
    assert len({run_name("r" * 60, site) for site in ("ash-1", "ash-2", "birch")}) == 3


def test_a_header_that_is_too_long_is_not_parsed():
    text = encode(Refusal(SiteCode.DATA))
    assert decode(Refusal, text, len(text)).code is SiteCode.DATA
    with pytest.raises(WireError, match=f"a header of {len(text)} characters, expected at most 9"):
        decode(Refusal, text, 9)
