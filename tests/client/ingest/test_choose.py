"""The site's rule picks one series of several."""

import pytest

from client.ingest.choose import Prefer, SeriesRule, choose_each, choose_series
from client.ingest.report import Outcome, SeriesEntry
from client.ingest.volume import Plane
from mmare.errors import InputError


def _entry(number, description, n_slices, gap_mm, plane=Plane.AXIAL, **more: object):
    fields = {
        "patient": 1,
        "study_uid": "1.2",
        "series_uid": f"1.2.{number}",
        "part": 1,
        "series_number": number,
        "description": description,
        "modality": "MR",
        "n_files": n_slices,
        "n_frames": n_slices,
        "outcome": Outcome.CONVERTED,
        "output": f"{number}.nii.gz",
        "size": (8, 8, n_slices),
        "spacing_mm": (1.0, 1.0, gap_mm),
        "plane": plane,
    }
    return SeriesEntry(**{**fields, **more})


ENTRIES = [
    _entry(2, "T1 MPRAGE", 176, 1.0, Plane.SAGITTAL),
    _entry(3, "T2 TSE ax", 28, 5.0),
    _entry(4, "T2 TSE ax thin", 20, 2.0),
    _entry(5, "T2 TSE cor", 40, 3.0, Plane.CORONAL),
    _entry(6, "T2 refused", 500, 0.5, outcome=Outcome.REFUSED, output=None),
    _entry(7, "CT", 300, 1.0, modality="CT"),
]


@pytest.mark.parametrize(
    ("rule", "number"),
    [
        (SeriesRule(), 7),
        (SeriesRule(modality="MR"), 2),
        (SeriesRule(plane=Plane.AXIAL, modality="MR"), 3),
        (SeriesRule(plane=Plane.AXIAL, modality="MR", prefer=Prefer.THINNEST), 4),
        (SeriesRule(description=r"^t2\b"), 5),
        (SeriesRule(description=r"^t2\b", prefer=Prefer.THINNEST), 4),
    ],
)
def test_rule_picks(rule, number):
    choice = choose_series(ENTRIES, rule)
    assert choice.entry.series_number == number
    assert choice.why
    assert {output for output, _ in choice.passed_over} == {
        f"{n}.nii.gz" for n in (2, 3, 4, 5, 7) if n != number
    }
    assert all(why for _, why in choice.passed_over)


def test_why_says_what_decided():
    choice = choose_series(ENTRIES, SeriesRule(description="T2"))
    assert choice.why == "40 slices of 3 mm: the most slices of 3 that fit."
    assert ("3.nii.gz", "28 slices of 5 mm against 40 slices of 3 mm") in choice.passed_over
    assert ("2.nii.gz", "description does not match 'T2'") in choice.passed_over


def test_equals_are_decided_by_number_whatever_their_order():
    twins = [_entry(9, "a", 20, 2.0), _entry(8, "a", 20, 2.0)]
    for entries in (twins, twins[::-1]):
        assert choose_series(entries, SeriesRule()).entry.series_number == 8


def test_nothing_fits():
    assert (
        choose_series(ENTRIES, SeriesRule(description="FLAIR")).why
        == "None of 5 usable series fits the rule."
    )
    assert choose_series(ENTRIES[4:5], SeriesRule()).why == "No usable series."
    assert choose_series(ENTRIES[:1], SeriesRule()).why == "The only usable series."


def test_no_series_counts_twice():
    rules = {
        "t2": SeriesRule(description="t2"),
        "any": SeriesRule(description="t2"),
        "third": SeriesRule(description="cor"),
    }
    choices = choose_each(ENTRIES, rules)
    assert [choice.entry.series_number if choice.entry else None for choice in choices.values()] == [
        5,
        3,
        None,
    ]


def test_several_patients_are_not_mixed():
    with pytest.raises(InputError, match="several patients"):
        choose_series([*ENTRIES, _entry(20, "x", 5, 1.0, patient=2)], SeriesRule())


def test_a_rule_that_is_no_expression():
    with pytest.raises(InputError, match="regular expression"):
        SeriesRule(description="T2(")
