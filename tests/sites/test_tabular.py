"""Tables read as text, whatever their format."""

import pandas as pd
import pytest

from mmare.errors import DataError
from sites.tabular import cell_text, read_table


def write(tmp_path, text, name="t.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


def test_cells_stay_as_they_were_written(tmp_path):
    table = read_table(write(tmp_path, '\ufeffid, x ,note\r\n007, 1.50,"a, b"\r\n08,NA,\r\n'))
    assert list(table.frame.columns) == ["id", "x", "note"]
    assert table.column("id") == ["007", "08"]
    assert table.column("x") == ["1.50", "NA"]
    assert table.column("note") == ["a, b", None]
    assert table.frame["note"].isna().tolist() == [False, True]


def test_rows_are_named_as_an_editor_shows_them(tmp_path):
    path = write(tmp_path, 'a,b\n1,2\n\n3,"two\nlines"\n5,6\n\n')
    table = read_table(path)
    assert [table.where(row) for row in range(3)] == [
        f"{path}, row 1 (line 2)",
        f"{path}, row 2 (line 4)",
        f"{path}, row 3 (line 6)",
    ]


def test_formats_agree(tmp_path):
    frame = pd.DataFrame({"id": ["p1", "p2"], "n": [3, None], "x": [0.25, 2.5], "ok": [True, False]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "t.parquet")
    tables = {ending: read_table(tmp_path / f"t.{ending}") for ending in ("csv", "tsv", "parquet")}
    for table in tables.values():
        assert table.column("id") == ["p1", "p2"]
        assert [None if cell is None else float(cell) for cell in table.column("n")] == [3, None]
        assert table.column("x") == ["0.25", "2.5"]
        assert table.column("ok") == ["True", "False"]
    assert tables["parquet"].column("n") == ["3", None]
    assert tables["parquet"].where(0).endswith("t.parquet, row 1")


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
        "2020-01-02T00:00:00",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("", "the file is empty, expected a header row", id="empty"),
        pytest.param("a,b\n1\n", r"row 1 \(line 2\): found 1 cells, expected 2", id="short-row"),
        pytest.param("a,b\n1,2\n1,2,3\n", r"row 2 \(line 3\): found 3 cells, expected 2", id="long-row"),
        pytest.param("a,a\n1,2\n", "two columns are called 'a'", id="column-twice"),
        pytest.param("a,\n1,2\n", "column 2 has no name", id="column-without-name"),
        pytest.param('a,b\n1,"2"x\n', "line 2: not valid CSV", id="quotes"),
    ],
)
def test_malformed_tables_are_refused(tmp_path, text, sentence):
    with pytest.raises(DataError, match=sentence):
        read_table(write(tmp_path, text))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"ending '\.txt', expected one of \.csv"):
        read_table(write(tmp_path, "a\n1\n", "t.txt"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_table(write(tmp_path, "ä\n1\n", encoding="latin-1"))
    for ending in ("parquet", "xlsx"):
        with pytest.raises(DataError, match=rf"t\.{ending}: (cannot be read as|reading \.{ending} needs)"):
            read_table(write(tmp_path, "nonsense", f"t.{ending}"))


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
