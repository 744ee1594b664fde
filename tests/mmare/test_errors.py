import copy
import pickle

import pytest

from mmare.errors import DataError, InputError, MmareError, RunError, SiteCode, SiteError, StudyError


@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [(InputError, 2), (StudyError, 2), (DataError, 2), (RunError, 1), (MmareError, 1)],
)
def test_exit_code_by_kind(kind, exit_code):
    error = kind("a sentence")
    assert isinstance(error, MmareError)
    assert (error.exit_code, str(error)) == (exit_code, "a sentence")


@pytest.mark.parametrize("code", SiteCode)
def test_a_site_error_carries_its_code_and_nothing_else(code):
    error = SiteError(code)
    assert str(error) == code.value
    assert error.args == (code,)
    assert vars(error) == {"code": code}
    assert error.exit_code == 1


def test_a_site_error_takes_no_further_words():
    with pytest.raises(TypeError):
        SiteError(SiteCode.DATA, "/home/patient-17")


@pytest.mark.parametrize("travel", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])  # noqa: S301 - our own
def test_a_site_error_survives_the_way_between_processes(travel):
    again = travel(SiteError(SiteCode.NON_FINITE))
    assert isinstance(again, SiteError)
    assert again.code is SiteCode.NON_FINITE


def test_codes_are_short_words_without_room_for_data():
    assert len({code.value for code in SiteCode}) == len(SiteCode)
    assert all(code.value[0] == "S" and code.value[1:].isdigit() for code in SiteCode)
    assert len({code.meaning for code in SiteCode}) == len(SiteCode)
