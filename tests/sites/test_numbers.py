"""The cells of a column, against a slow loop over them."""

from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from sites.numbers import cells_of, parse
from sites.tabular import TextTable, finite_number

WORDS = ("1.5", "-9", "-9.0", " -9", "-9e0", "+9", "?", "x", "NA", "nan", "<na>", "inf", "1_5", "１", "3,5")  # noqa: RUF001 - the case


def table(cells):
    return TextTable(Path("t.csv"), pd.DataFrame({"x": cells}, dtype="str"))


def is_blank(cell, missing, keep):
    if cell is None or cell in missing:
        return True
    number = finite_number(cell)
    if number is not None and number in map(finite_number, missing):
        return True
    return cell.lower() in {"na", "nan", "<na>"} and keep is not None and cell not in keep


@given(
    st.lists(st.sampled_from(WORDS) | st.none()),
    st.lists(st.sampled_from(WORDS)),
    st.lists(st.sampled_from(WORDS)) | st.none(),
)
def test_what_is_blank(cells, missing, keep):
    found = cells_of(table(cells), "x", missing, keep)
    assert found.present.tolist() == [not is_blank(cell, missing, keep) for cell in cells]
    assert [found.words[code] if code >= 0 else None for code in found.codes] == [
        cell if has else None for cell, has in zip(cells, found.present, strict=True)
    ]


@given(
    st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.text("0123456789+-.eE_ ,xnifa１", min_size=1)  # noqa: RUF001 - a digit of another script
)
def test_a_cell_is_a_number_as_the_reference_says(cell):
    column = table([cell, "1"])
    numbers, problems = parse(column, "x", cells_of(column, "x", keep=None))
    expected = finite_number(cell)
    assert bool(problems) == (expected is None)
    if expected is not None:
        assert numbers.tolist() == [expected, 1.0]
        assert np.signbit(numbers[0]) == np.signbit(expected)
