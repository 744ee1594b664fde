"""Sentences about what train rows cannot teach."""

import numpy as np
import pytest

from mmare.study.encoding import Column, Encoding
from sites.datasets.table_lessons import train_notes

ENCODING = Encoding(
    {
        "exam": (Column("age"), Column("sex", levels=("f", "m"))),
        "labs": (Column("crp", blanks=True), Column("ldl"), Column("hdl"), Column("trig"), Column("lp")),
    }
)
SPLITS = {"p1": "train", "p2": "train", "p3": "test", "p4": "val"}
NAN = np.nan


def vectors(exam, labs):
    """Of p1 to p4; an absent vector is None."""
    rows = {"exam": exam, "labs": labs}
    return {
        name: {f"p{i}": np.array(row, np.float32) for i, row in enumerate(held, 1) if row is not None}
        for name, held in rows.items()
    }


EXAM = [[30, 1, 0], [40, 0, 1], [50, 1, 0], [60, 0, 1]]
LABS = [[1, 0, 1, 1, 1, 1], [NAN, 1, 2, 2, 2, 2], [3, 0, 3, 3, 3, 3], None]


@pytest.mark.parametrize(
    ("exam", "labs", "notes"),
    [
        pytest.param(EXAM, LABS, [], id="nothing to say"),
        pytest.param(
            EXAM,
            [None, None, *LABS[2:]],
            [
                "labs: no train row has it, so nothing is learned of it and no prediction looks at it; "
                "leave it out, or split otherwise"
            ],
            id="group that no train row has",
        ),
        pytest.param(
            [[30, 1, 0], [30, 1, 0], *EXAM[2:]],
            LABS,
            ["exam: age, sex are the same in every train row, so nothing is learned of them"],
            id="constant in training",
        ),
        pytest.param(
            [[NAN, 1, 0], [NAN, 0, 1], *EXAM[2:]],
            LABS,
            ["exam: age is blank in every train row, so nothing is learned of it"],
            id="blank in training",
        ),
        pytest.param(
            EXAM,
            [[1, 0, 7, 7, 7, 7], [NAN, 1, 7, 7, 7, 7], *LABS[2:]],
            [
                "labs: ldl, hdl, trig and 1 more columns are the same in every train row, so nothing is "
                "learned of them"
            ],
            id="many",
        ),
    ],
)
def test_what_train_rows_cannot_teach_is_told(exam, labs, notes):
    assert train_notes(ENCODING, vectors(exam, labs), SPLITS) == notes
