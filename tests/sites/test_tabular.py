"""Columns of a table: looked up, required, unique; typed cells as text."""

import pandas as pd
import pytest

from mmare.errors import DataError
from sites.table_file import read_table
from sites.tabular import cell_text


def write(tmp_path, text, name="t.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


def test_typed_cells_become_plain_text():
    cells = [None, pd.NA, pd.NaT, float("nan"), 3.0, 2.5, 7, " x ", "", pd.Timestamp(2020, 1, 2)]
    assert [cell_text(cell) for cell in cells] == [
        None,
        None,
        None,
        None,
        "3",
        "2.5",
        "7",
        "x",
        None,
        "2020-01-02",
    ]


def test_a_missing_column_gets_a_suggestion(tmp_path):
    table = read_table(write(tmp_path, "patient,label\n1,a\n"))
    with pytest.raises(
        DataError, match=r"no column 'patent' \(did you mean 'patient'\?\); the table has patient, label"
    ):
        table.column("patent")


def test_required_columns_refuse_blanks_and_repeats(tmp_path):
    table = read_table(write(tmp_path, "a,b\nx,1\ny,\nx,2\n"))
    assert table.require("a") == ["x", "y", "x"]
    with pytest.raises(DataError, match=r"row 2 \(line 3\): b is blank, expected a value"):
        table.require("b")
    with pytest.raises(DataError, match=r"row 3 \(line 4\): a 'x' occurs twice, first in row 1"):
        table.require_unique("a")


@pytest.mark.parametrize(
    ("name", "ids", "sentence"),
    [
        pytest.param("t.csv", ["1.23457E+11", "2"], "a number that a spreadsheet cut short", id="csv"),
        pytest.param("t.xlsx", [12345678901234567, 2], "a number that a spreadsheet cut short", id="excel"),
        pytest.param(
            "t.xlsx", [2**53 + 1, 2**53], "Excel rounds numbers of more than 15 digits", id="rounded"
        ),
    ],
)
def test_ids_that_a_spreadsheet_cut_short_are_refused(tmp_path, name, ids, sentence):
    frame = pd.DataFrame({"id": ids})
    writer = frame.to_csv if name.endswith("csv") else frame.to_excel
    writer(tmp_path / name, index=False)
    with pytest.raises(DataError, match=sentence):
        read_table(tmp_path / name).require_unique("id")
