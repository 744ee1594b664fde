"""Columns of a table chosen, treated and encoded by options and files."""

import numpy as np
import pytest

from client.data.dataset import modality_fingerprint
from mmare.errors import DataError, StudyError
from mmare.study.encoding import load_encoding
from sites.datasets.table import TableColumns, prepare_table
from sites.datasets.table_columns import load_columns
from sites.features import load_features
from sites.federation import site_folders
from sites.missing.plan import Missingness

ROWS = """id,site,y,age,sex,smoke,ENSG1,ENSG2
0,a,n,50,f,NA,0,0.5
1,a,y,0,m,nan,1,0.5
2,b,n,60,F,yes,-9,2
3,b,y,70,m,no,3,4
"""


def prepare(tmp_path, modalities=None, rows=ROWS, out="fed", name="t.csv", **options: object):
    (tmp_path / name).write_text(rows, encoding="utf-8")
    columns = TableColumns("id", "site", "y", modalities or {}, options.pop("categorical", ()))
    if isinstance(toml := options.get("spec"), str):
        (tmp_path / "columns.toml").write_text(toml, encoding="utf-8")
        options["spec"] = load_columns(tmp_path / "columns.toml")
    return prepare_table(tmp_path / name, tmp_path / out, columns, ("n", "y"), **options)


def vectors(tmp_path, modality, out="fed"):
    files = [tmp_path / out / site / f"{modality}.csv" for site in "ab"]
    return {
        key: [None if np.isnan(cell) else cell for cell in vector.tolist()]
        for file in files
        for key, vector in load_features(file).items()
    }


def test_the_encoding_encodes_a_second_table_alike(tmp_path):
    first = prepare(tmp_path, {"exam": ("age", "sex")}, categorical=("sex",))
    kept = tmp_path / "fed" / "encoding.json"
    assert kept.read_bytes() == (tmp_path / "fed" / "a" / "encoding.json").read_bytes()
    # The second hospital has other levels in another order, and more columns.
    rows = "sex,id,site,y,other,age\nm,7,a,n,1,30\nm,8,b,y,1,40\n"
    second = prepare(tmp_path, rows=rows, out="two", name="two.csv", encoding=load_encoding(kept))
    assert vectors(tmp_path, "exam", "two") == {"7": [30, 0, 0, 1], "8": [40, 0, 0, 1]}
    prints = {
        modality_fingerprint(prepared.study.modalities[0], site)
        for prepared in (first, second)
        for site in site_folders(prepared.folder)
    }
    assert len(prints) == 1
    assert prints.pop().startswith("given:")
    with pytest.raises(DataError, match=r"row 1 \(line 2\): sex is 'x', expected a level that the encoding"):
        prepare(tmp_path, rows=rows.replace("\nm,7", "\nx,7"), out="no", encoding=load_encoding(kept))
    with pytest.raises(StudyError, match="--encoding names the columns, expected no --modality"):
        prepare(tmp_path, {"exam": ("age",)}, out="no", encoding=load_encoding(kept))
    assert not (tmp_path / "no").exists()


def test_words_for_no_value_are_blanks_unless_named_as_levels(tmp_path):
    prepared = prepare(tmp_path, {"exam": ("age", "smoke")}, categorical=("smoke",))
    assert vectors(tmp_path, "exam")["0"] == [50, 0, 0, 1]
    assert "smoke: 'NA' in 1, 'nan' in 1 rows taken as blank" in prepared.notes[0]
    toml = '[modality.exam]\ncolumns = ["age", "smoke"]\n[column.smoke]\nlevels = ["yes", "NA", "no"]\n'
    prepare(tmp_path, spec=toml, overwrite=True)
    assert vectors(tmp_path, "exam")["0"] == [50, 0, 1, 0, 0]


def test_levels_that_look_alike_are_pointed_out(tmp_path):
    prepared = prepare(tmp_path, {"exam": ("sex",)}, categorical=("sex",))
    assert "sex: 'F' and 'f' differ in case, blanks or accents only" in prepared.notes[0]
    rows = ROWS.replace(",m,", ",Zürich Nord,").replace(",F,", ",zurichnord,")
    prepared = prepare(tmp_path, {"exam": ("sex",)}, rows, categorical=("sex",), overwrite=True)
    assert "'Zürich Nord' and 'zurichnord' differ" in prepared.notes[0]


def test_words_that_may_mean_missing_are_asked_about(tmp_path):
    rows = ROWS.replace(",m,", ",Unknown,").replace(",F,", ",n.a.,")
    prepared = prepare(tmp_path, {"exam": ("age", "sex")}, rows, categorical=("sex",))
    assert any("sex: 'Unknown' in " in note and "--missing-values" in note for note in prepared.notes)
    assert any("sex: 'n.a.' in " in note and "taken as blank" in note for note in prepared.notes)


def test_a_measurement_named_as_categorical_is_pointed_out(tmp_path):
    rows = "id,site,y,crp\n" + "".join(f'{row},a,{"ny"[row % 2]},"{row},5"\n' for row in range(30))
    prepared = prepare(tmp_path, {"lab": ("crp",)}, rows, categorical=("crp",))
    assert "crp: 30 levels that are all numbers; if it is a measurement" in prepared.notes[0]
    assert "--decimal ," in prepared.notes[0]


def test_missing_codes_of_one_column(tmp_path):
    prepare(tmp_path, {"exam": ("age",), "rna": ("ENSG*",)}, missing_values=("age=0", "-9"))
    assert vectors(tmp_path, "exam") == {"0": [50], "2": [60], "3": [70]}
    assert vectors(tmp_path, "rna") == {
        "0": [0, 0, 0.5],
        "1": [1, 0, 0.5],
        "2": [None, 1, 2],
        "3": [3, 0, 4],
    }
    # A code of all columns leaves ids alone, unless they are named.
    prepare(tmp_path, {"exam": ("age",), "rna": ("ENSG*",)}, missing_values=("0", "-9"), overwrite=True)
    assert vectors(tmp_path, "rna")["0"] == [None, 1, 0.5]
    with pytest.raises(DataError, match="id is blank"):
        prepare(tmp_path, {"exam": ("age",)}, missing_values=("id=0",), overwrite=True)
    rows = ROWS.replace("age", "a=ge")
    spec = {"exam": ("a=ge",), "rna": ("ENSG*",)}
    prepare(tmp_path, spec, rows, missing_values=("a=ge=0", "-9"), overwrite=True)
    assert vectors(tmp_path, "exam") == {"0": [50], "2": [60], "3": [70]}
    with pytest.raises(DataError, match=r"no column 'agee' \(did you mean 'age'\?\)"):
        prepare(tmp_path, {"exam": ("age",)}, missing_values=("agee=0",), overwrite=True)


def test_a_file_groups_and_treats_columns(tmp_path):
    toml = """
[modality.rna]
prefix = "ENSG"
log = true
missing = ["-9"]
[modality.exam]
columns = ["a*", "sex"]
[column."s*"]
categorical = true
[column.age]
lowest = 55
highest = 65
blanks = true
[column.ENSG2]
log = false
"""
    prepare(tmp_path, spec=toml)
    found = vectors(tmp_path, "rna")
    assert found["3"] == pytest.approx([1.3862944, 0, 4])
    assert found["2"] == [None, 1, 2]
    assert vectors(tmp_path, "exam")["0"] == [55, 0, 0, 1, 0]
    assert vectors(tmp_path, "exam")["3"] == [65, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("toml", "error", "sentence"),
    [
        pytest.param("[modality.a]\ncolumn = []", StudyError, "unknown key 'column'", id="key"),
        pytest.param("[modality.a]\nprefix = 'X'", DataError, "no column begins with 'X'", id="prefix"),
        pytest.param("[modality.a]\ncolumns = ['X*']", DataError, r"no column matches 'X\*'", id="pattern"),
        pytest.param("[modality.a]\nlog = true", StudyError, "'a' has no column", id="no-column"),
        pytest.param(
            "[modality.a]\ncolumns = ['age']\n[column.agee]\nlog = true",
            StudyError,
            r"\[column.'agee'\] is in no modality \(did you mean 'age'\?\)",
            id="column",
        ),
        pytest.param(
            "[modality.a]\ncolumns = ['sex']\n[column.sex]\ncategorical = true\nlog = true",
            StudyError,
            "'sex' holds words, expected no lowest, highest or log",
            id="log-of-words",
        ),
        pytest.param(
            "[modality.a]\ncolumns = ['age']\nlowest = 2\nhighest = 1",
            StudyError,
            "lowest is 2, above highest",
            id="limits",
        ),
        pytest.param(
            "[modality.a]\ncolumns = ['sex']\n[column.sex]\nlevels = ['m', 'f', 'm']",
            StudyError,
            "'sex' has a level twice",
            id="level-twice",
        ),
        pytest.param(
            "[modality.a]\ncolumns = ['age']\nmissing = [-9]",
            StudyError,
            "modality.a missing must be text, found -9",
            id="missing-number",
        ),
    ],
)
def test_unusable_columns_files_are_refused(tmp_path, toml, error, sentence):
    with pytest.raises(error, match=sentence):
        prepare(tmp_path, spec=toml)
    assert not (tmp_path / "fed").exists()


def test_a_pattern_leaves_out_what_no_modality_may_hold(tmp_path):
    rows = "id,site,y,x\n0,a,n,1\n1,a,y,2\n"
    prepared = prepare(tmp_path, {"all": ("*",)}, rows)
    assert prepared.study.modalities[0].width == 1


def test_a_missing_code_of_the_second_table_only(tmp_path):
    prepare(tmp_path, {"exam": ("age", "sex")}, categorical=("sex",))
    kept = load_encoding(tmp_path / "fed" / "encoding.json")
    rows = ROWS.replace(",50,f,", ",50,unknown,").replace(",0,m,", ",999,m,")
    with pytest.raises(DataError, match="sex is 'unknown', expected a level that the encoding knows"):
        prepare(tmp_path, rows=rows, out="two", encoding=kept)
    with pytest.raises(DataError, match="sex is blank, expected a value, because the encoding was made"):
        prepare(tmp_path, rows=rows, out="two", encoding=kept, missing_values=("sex=unknown",))
    rows = rows.replace(",unknown,", ",f,").replace(",999,m,", ",unknown,unknown,")
    codes = ("unknown",)
    prepared = prepare(tmp_path, rows=rows, out="two", encoding=kept, missing_values=codes, drop_empty=True)
    assert "1" not in vectors(tmp_path, "exam", "two")
    assert "1 row without any modality left out" in prepared.notes


def test_words_that_the_user_named_as_missing_need_no_note(tmp_path):
    named = ("NA", "smoke=nan")
    assert prepare(tmp_path, {"exam": ("age", "smoke")}, categorical=("smoke",)).notes[0].startswith("smoke")
    prepared = prepare(
        tmp_path, {"exam": ("age", "smoke")}, categorical=("smoke",), missing_values=named, overwrite=True
    )
    assert not [note for note in prepared.notes if "smoke" in note]


@pytest.mark.parametrize("blank", ["NA", "-9", "?"])
def test_a_driver_of_mar_is_read_like_a_column_of_a_modality(tmp_path, blank):
    """Sorted as words, 5 would be above 10; with a decimal comma or a NA in the column it was."""
    ages = [5, 6, 7, 10, 40, 80] * 20
    lines = [f"{row};{'ab'[row % 2]};{'ny'[row % 3 == 0]};{age},5;1" for row, age in enumerate(ages)]
    rows = "\n".join(["id;site;y;age;x", *lines, f"999;a;n;{blank};1"])
    plain = rows.replace(",5", ".5").replace(blank, "")
    missing = Missingness("mar", 0.4, drivers=("age",), slope=8)
    prepare(tmp_path, {"x": ("x",), "z": ("x",)}, plain, missing=missing)
    options = {"decimal": ",", "missing_values": ("?", "-9"), "missing": missing}
    prepare(tmp_path, {"x": ("x",), "z": ("x",)}, rows, "two", "t.csv", **options)
    assert vectors(tmp_path, "x") == vectors(tmp_path, "x", "two")
    # Older patients lose the modality; those of whom nothing is known, as one of average age.
    assert len(vectors(tmp_path, "x")) < len(ages)


def skewed_rows(n_patients=80):
    """Columns with a long upper tail, without one, with one below zero, and of a rare 1."""
    random = np.random.default_rng(0)
    tail = np.exp(random.normal(0, 1.5, n_patients))
    even = random.uniform(0, 9, n_patients)
    lines = [
        f"{row},{'ab'[row % 2]},{'ny'[row // 2 % 2]},"
        f"{tail[row]:.3f},{even[row]:.3f},{tail[row] - 1:.3f},{int(row == 7)}"
        for row in range(n_patients)
    ]
    return tail, "id,site,y,tail,even,below,rare\n" + "\n".join(lines)


def test_a_long_upper_tail_becomes_a_logarithm_and_is_told(tmp_path):
    tail, rows = skewed_rows()
    group = {"labs": ("tail", "even", "below", "rare")}
    prepared = prepare(tmp_path, group, rows)
    encoding = load_encoding(tmp_path / "fed" / "encoding.json")
    assert [column.log for column in encoding.modalities["labs"]] == [True, False, False, False]
    assert vectors(tmp_path, "labs")["0"][0] == pytest.approx(np.log1p(tail[0]), abs=1e-3)
    assert prepared.notes[0] == (
        "labs: logarithms of tail, because of long upper tails (--keep-skewed, or log = false in --columns, "
        "leaves them as they are)"
    )


@pytest.mark.parametrize("options", [{"keep_skewed": True}, {"spec": "[column.tail]\nlog = false"}], ids=str)
def test_a_long_upper_tail_is_kept_on_demand(tmp_path, options):
    prepare(tmp_path, {"labs": ("tail", "even")}, skewed_rows()[1], **options)
    encoding = load_encoding(tmp_path / "fed" / "encoding.json")
    assert not any(column.log for column in encoding.modalities["labs"])


def test_few_numbers_do_not_show_a_tail(tmp_path):
    prepare(tmp_path, {"labs": ("tail",)}, skewed_rows(40)[1])
    assert not load_encoding(tmp_path / "fed" / "encoding.json").modalities["labs"][0].log
