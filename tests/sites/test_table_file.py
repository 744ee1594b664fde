"""Table files read as text: CSV, TSV, Parquet and Excel give the same cells."""

import csv
from pathlib import Path
from tempfile import TemporaryDirectory

import openpyxl
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmare.errors import DataError
from sites.table_file import read_table
from tests.data_folder import data_folder


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


@pytest.mark.parametrize("ending", ["parquet", "xlsx"])
def test_typed_formats_give_what_csv_gives(tmp_path, ending):
    days = pd.to_datetime(["2020-01-02", None, "1931-12-31"])
    frame = pd.DataFrame(
        {
            "id": ["007", "nan", "x"],
            "word": ["None", "NA", None],
            "count": pd.array([3, None, 999_999_999_999_999], dtype="Int64"),
            "x": [0.1, 2.5, None],
            "day": days,
            "ok": [True, False, True],
        }
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    getattr(frame, {"xlsx": "to_excel"}.get(ending, f"to_{ending}"))(tmp_path / f"t.{ending}", index=False)
    typed, text = read_table(tmp_path / f"t.{ending}"), read_table(tmp_path / "t.csv")
    pd.testing.assert_frame_equal(typed.frame, text.frame)
    assert typed.column("word") == ["None", "NA", None]


def test_long_whole_numbers_of_parquet_keep_their_digits(tmp_path):
    ids = [2**53, 2**53 + 1, None]
    pd.DataFrame({"id": pd.array(ids, dtype="Int64")}).to_parquet(tmp_path / "t.parquet")
    pd.DataFrame({"x": ["a", "b", "c"]}, index=pd.Index(["7", "8", "9"], name="id")).to_parquet(
        tmp_path / "index.parquet"
    )
    pd.DataFrame({"x": [1, 2, 3]})[lambda f: f.x > 1].to_parquet(tmp_path / "filtered.parquet")
    assert read_table(tmp_path / "t.parquet").column("id") == ["9007199254740992", "9007199254740993"]
    assert read_table(tmp_path / "index.parquet").column("id") == ["7", "8", "9"]
    assert list(read_table(tmp_path / "filtered.parquet").frame.columns) == ["x"]


@pytest.mark.data
def test_an_old_excel_file_is_read():
    folder = data_folder("ixi")
    table = read_table(folder / "IXI.xls")
    assert table.column("IXI_ID")[:3] == ["1", "2", "12"]
    assert table.column("STUDY_DATE")[2] == "2005-06-01"


def test_excel_sheets_may_hold_blank_rows_and_times(tmp_path):
    book = openpyxl.Workbook()
    rows = [
        ["id", "t", None],
        [],
        [1, pd.Timestamp(2020, 1, 2, 3, 4)],
        [2.5, "#N/A", " "],
        [None, "", " "],
    ]
    for row in rows:
        book.active.append(row)
    book.save(tmp_path / "t.xlsx")
    table = read_table(tmp_path / "t.xlsx")
    assert table.frame.columns.tolist() == ["id", "t"]
    assert table.column("id") == ["1", "2.5"]
    assert table.column("t") == ["2020-01-02 03:04:00", "#N/A"]
    assert table.where(0).endswith("row 1 (line 3)")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("id;x;y\n1;2,5;a\n2;3,5;b\n", ["2,5", "3,5"], id="semicolon"),
        pytest.param("id;x\n1;2,5\n", ["2,5"], id="decimal-commas-in-all-rows"),
        pytest.param('"id;a, b";x;y\n1;"2;5";"a\n,,"\n', ["2;5"], id="quoted"),
        pytest.param("id\tx\n1\ta,b\n", ["a,b"], id="tab"),
        pytest.param("id|x\n1|a\n", ["a"], id="bar"),
        pytest.param("sep=;\nid;x\n1;a,b\n", ["a,b"], id="said-by-excel"),
        pytest.param("id,x\n1,a;b;c\n", ["a;b;c"], id="comma"),
    ],
)
def test_the_delimiter_is_found(tmp_path, text, expected):
    for name in ("t.csv", "t.tsv"):
        assert read_table(write(tmp_path, text, name)).column("x") == expected


def test_the_delimiter_and_the_encoding_can_be_said(tmp_path):
    path = write(tmp_path, "id;n,x\n1;2,Größe\n", encoding="cp1252")
    assert read_table(path, ",", "cp1252").column("x") == ["Größe"]
    assert list(read_table(path, ";", "cp1252").frame.columns) == ["id", "n,x"]
    with pytest.raises(DataError, match="--delimiter is ';;', expected one character or tab"):
        read_table(path, ";;", "cp1252")
    with pytest.raises(DataError, match="not utf-99 text"):
        read_table(path, None, "utf-99")
    assert read_table(write(tmp_path, "id\tx\n1\tß\n", encoding="utf-16")).column("x") == ["ß"]


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=4), min_size=1, max_size=6))
def test_every_cell_is_stripped_as_python_does(cells):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        with path.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, quoting=csv.QUOTE_ALL).writerows(
                [["id", "x"], *(["1", cell] for cell in cells)]
            )
        found = read_table(path, ",").column("x")
    assert found == [cell.strip() or None for cell in cells]


def test_a_header_of_any_length(tmp_path):
    names = [f"ENSG{number:011}" for number in range(2_000)]
    path = write(tmp_path, ",".join(["id", *names]) + "\n" + ",".join(["p1", *["1"] * 2_000]) + "\n")
    assert list(read_table(path).frame.columns) == ["id", *names]
    with pytest.raises(
        DataError, match=r"no column 'ENSG'; the table has id, (ENSG\d+, ){18}ENSG\d+ and 1981 more$"
    ):
        read_table(path).column("ENSG")
