"""Columns become the same vectors in every table, by a file."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmare.errors import DataError
from mmare.study.encoding import Column, Encoding, load_encoding
from sites.encoding import encode
from sites.tabular import TextTable

EXAM = (
    Column("age", blanks=True, missing=("-9",), lowest=0, highest=100),
    Column("sex", ("m", "f")),
    Column("gene", log=True),
)
ENCODING = Encoding({"exam": EXAM})


def table(source="t.csv", **columns: list[str | None]):
    n_rows = len(next(iter(columns.values())))
    return TextTable(Path(source), pd.DataFrame(columns, dtype="str"), tuple(range(2, n_rows + 2)))


def exam(**changes: list[str | None]):
    return table(**({"age": ["50"], "sex": ["f"], "gene": ["0"]} | changes))


def test_a_new_row_is_encoded_as_the_file_says(tmp_path):
    path = tmp_path / "encoding.json"
    path.write_text(ENCODING.text(), encoding="utf-8")
    encoding = load_encoding(path)
    assert encoding == ENCODING
    assert encoding.width("exam") == 5
    new = table(sex=["m", "f"], more=["x", "y"], gene=["0", "1e3"], age=["140", "-9.0"])
    encoded = encode(encoding, new)["exam"]
    assert encoded.present.tolist() == [True, True]
    expected = [[100, 0, 1, 0, 0], [np.nan, 1, 0, 1, np.log1p(1000)]]
    np.testing.assert_allclose(encoded.matrix, expected, rtol=1e-6)


def test_a_fingerprint_covers_all_that_makes_a_vector():
    changed = [
        EXAM[::-1],
        (*EXAM[:2], Column("gene")),
        (EXAM[0], Column("sex", ("f", "m")), EXAM[2]),
        (Column("age", missing=("-9",), lowest=0, highest=100), *EXAM[1:]),
    ]
    prints = {Encoding({"exam": columns}).fingerprint("exam") for columns in changed}
    assert len(prints | {ENCODING.fingerprint("exam")}) == 5
    assert Encoding({"other": (), "exam": EXAM}).fingerprint("exam") == ENCODING.fingerprint("exam")


def test_a_modality_without_any_column_is_absent():
    both = Encoding({"exam": EXAM, "lab": (Column("crp"),)})
    encoded = encode(both, exam())
    assert encoded["lab"].present.tolist() == [False]
    assert encoded["lab"].matrix.shape == (1, 1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param(
            {"sex": ["x"]}, "sex is 'x', expected a level that the encoding knows: m, f", id="level"
        ),
        pytest.param({"sex": [None]}, "sex is blank, expected a value, because the encoding", id="blank"),
        pytest.param({"gene": ["-1"]}, "gene is '-1', expected a number above -1", id="log"),
        pytest.param(
            {"gene": ["1e30"]}, r"row 1 \(line 2\): gene is '1e30', expected .* at most", id="absurd"
        ),
        pytest.param({"gene": ["1_5"]}, "gene is '1_5', expected a finite number", id="underscore"),
        pytest.param({"gene": ["１５"]}, "gene is '１５', expected a finite number", id="full-width"),  # noqa: RUF001 - the case
        pytest.param({"gene": ["2020-01-02"]}, "instead of a date, such as an age", id="iso-date"),
        pytest.param({"gene": ["2.1.2020"]}, "instead of a date, such as an age", id="date"),
        pytest.param({"gene": ["3,5"]}, "gene is '3,5', expected .* add --decimal ,", id="decimal-comma"),
        pytest.param({"gene": ["1,234.5"]}, "without separators of thousands", id="thousands"),
    ],
)
def test_what_does_not_fit_is_named(changes, sentence):
    with pytest.raises(DataError, match=sentence):
        encode(ENCODING, exam(**changes))


def test_a_decimal_comma_is_never_called_a_word():
    with pytest.raises(DataError) as caught:
        encode(ENCODING, exam(gene=["3,5"]))
    assert "--categorical" not in str(caught.value)


def test_a_table_that_lacks_columns_is_refused():
    with pytest.raises(DataError, match=r"the encoding needs 'sex', 'gene' .*; the table has 'age', 'sexx'"):
        encode(ENCODING, table(age=["1"], sexx=["f"]))
    with pytest.raises(DataError, match="the encoding needs 'age', 'sex', 'gene'"):
        encode(ENCODING, table(other=["1"]))


def test_everything_wrong_is_said_at_once():
    columns = ("age", "born", "crp", "ldl", "sex", "smoker")
    wrong = table(
        age=["50", "old", "60"],
        born=["1970-01-01", "1.2.1970", None],
        crp=["3,5", "1,0", "2"],
        ldl=["0,5", "1", "1"],
        sex=["m", "f", "m"],
        smoker=["yes", "no", "no"],
    )
    with pytest.raises(DataError) as caught:
        encode(Encoding({"all": tuple(map(Column, columns))}), wrong)
    text = str(caught.value)
    for part in (
        "row 2 (line 3): age is 'old', expected a finite number; name the cell in --missing-values",
        "born is '1970-01-01' (in 2 rows), expected a finite number; give",
        "crp is '3,5' (in 2 rows); row 1 (line 2): ldl is '0,5', expected a finite number; add --decimal",
        "sex is 'm' (in 3 rows)",
        "(--categorical sex,smoker)",
    ):
        assert part in text
    assert "\n" not in text


def test_decimals_with_a_comma():
    numbers = Encoding({"lab": (Column("crp"),)})
    encoded = encode(numbers, table(crp=["3,5", "-1", ",25"]), ",")["lab"]
    assert encoded.matrix[:, 0].tolist() == [3.5, -1, 0.25]
    with pytest.raises(DataError, match=r"crp is '1.5', expected .* leave out --decimal ,"):
        encode(numbers, table(crp=["1.5", "2,5"]), ",")
    assert encode(numbers, table("t.xlsx", crp=["1.5", "2,5"]), ",")["lab"].matrix[0, 0] == 1.5


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param("{", "cannot be read as an encoding", id="json"),
        pytest.param("[]", "version is None, expected 2", id="no-version"),
        pytest.param('{"version": 3, "modalities": {}}', "version is 3, expected 2", id="later"),
        pytest.param('{"version": 2, "modalities": {"a": [{"nam": "x"}]}}', "unknown key 'nam'", id="key"),
        pytest.param('{"version": 2, "modalities": {"a": []}}', "'a' has no column", id="empty"),
        pytest.param(
            '{"version": 2, "modalities": {"a": [{"name": "x", "levels": ["f", "f"]}]}}',
            "'x' has a level twice",
            id="level-twice",
        ),
    ],
)
def test_unusable_files_are_refused(tmp_path, content, sentence):
    path = tmp_path / "encoding.json"
    with pytest.raises(DataError, match="no such encoding file"):
        load_encoding(path)
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=sentence):
        load_encoding(path)
