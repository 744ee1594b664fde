"""Feature tables: three equivalent formats, and invalid files."""

import io
import zipfile

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mmare.errors import DataError
from sites.features import load_bags, load_features, write_features
from tests.properties import examples

VECTORS = {"b": np.array([1.5, -2.0, 0.1], np.float32), "a": np.array([0, 3e-30, 7e20], np.float32)}


def as_csv(folder, vectors):
    lines = ["f0,patient_id,f1,f2"]
    lines += [f"{v[0]},{patient},{v[1]},{v[2]}" for patient, v in vectors.items()]
    (folder / "x.csv").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return folder / "x.csv"


def as_parquet(folder, vectors):
    frame = pd.DataFrame(list(vectors.values()), columns=["f0", "f1", "f2"])
    frame.insert(1, "patient_id", list(vectors))
    frame.to_parquet(folder / "x.parquet")
    return folder / "x.parquet"


def as_npz(folder, vectors):
    np.savez_compressed(folder / "x.npz", **vectors)
    return folder / "x.npz"


@pytest.mark.parametrize("write", [as_csv, as_parquet, as_npz])
@pytest.mark.parametrize("width", [3, None])
def test_formats_agree(tmp_path, write, width):
    loaded = load_features(write(tmp_path, VECTORS), width)
    assert list(loaded) == ["b", "a"]
    for patient, vector in VECTORS.items():
        assert loaded[patient].dtype == np.float32
        np.testing.assert_array_equal(loaded[patient], vector)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    st.sampled_from([1, 5, 63, 64, 100]).flatmap(
        lambda width: st.dictionaries(
            st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=6),
            npst.arrays(np.float32, width, elements=finite, fill=finite),
            min_size=1,
            max_size=4,
        )
    )
)
@examples(60)
def test_what_is_written_reads_back_bit_for_bit(tmp_path_factory, vectors):
    folder = tmp_path_factory.mktemp("features")
    name = write_features(folder, "ct", vectors)
    loaded = load_features(folder / name, len(next(iter(vectors.values()))))
    assert list(loaded) == list(vectors)
    for patient, vector in vectors.items():
        assert loaded[patient].tobytes() == vector.tobytes()
    first = (folder / name).read_bytes()
    write_features(folder, "ct", vectors)
    assert (folder / name).read_bytes() == first


@pytest.mark.parametrize("patient", ["file", "allow_pickle", "x.npy", "a/b", "../a"])
def test_any_patient_id_is_kept_by_npz(tmp_path, patient):
    vectors = {patient: np.ones(64, np.float32), "x": np.zeros(64, np.float32)}
    assert write_features(tmp_path, "ct", vectors) == "ct.npz"
    assert list(load_features(tmp_path / "ct.npz", 64)) == [patient, "x"]


def test_numpy_reads_our_npz(tmp_path):
    write_features(tmp_path, "ct", {"p": np.arange(64, dtype=np.float32)})
    with np.load(tmp_path / "ct.npz") as archive:
        np.testing.assert_array_equal(archive["p"], np.arange(64))


def test_whole_numbers_become_float32(tmp_path):
    loaded = load_features(as_npz(tmp_path, {"a": np.array([1, 2], np.int64)}), 2)
    assert loaded["a"].dtype == np.float32
    assert loaded["a"].tolist() == [1, 2]


@pytest.mark.parametrize("write", [as_csv, as_parquet, as_npz])
@pytest.mark.parametrize(
    ("bad", "width", "sentence"),
    [
        pytest.param([1, 2, 3], 4, "found 3 numbers, expected 4 numbers", id="width"),
        pytest.param([float("nan")] * 3, 3, "every cell is blank", id="nan"),
        pytest.param([1, 2, float("inf")], 3, "feature 3 is inf, expected a finite number", id="inf"),
        pytest.param(
            [1e300, 2, 3], 3, r"feature 1 is 1e\+300, expected a finite", id="too-large-for-float32"
        ),
    ],
)
def test_wrong_vectors_are_refused_in_every_format(tmp_path, write, bad, width, sentence):
    good = np.arange(width, dtype=np.float64)
    path = write(tmp_path, ({"a": good} if width == 3 else {}) | {"b": np.array(bad, np.float64)})
    row = 2 if width == 3 else 1
    with pytest.raises(DataError, match=sentence) as caught:
        load_features(path, width)
    assert str(caught.value).startswith(f"{path}, row {row} (patient 'b'): ")


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        pytest.param(
            np.zeros((1, 1, 3)), r"an array of shape \(1, 1, 3\), expected 3 numbers in one row", id="3d"
        ),
        pytest.param(np.array(["1", "2", "3"]), "values of type <U1, expected numbers", id="text"),
        pytest.param(np.array([True, True, False]), "values of type bool, expected numbers", id="bool"),
        pytest.param(np.array([1j, 1, 1]), "values of type complex128, expected numbers", id="complex"),
        pytest.param(np.array([1, 2, None], dtype=object), "cannot be read as npz", id="object"),
        pytest.param(np.zeros(0), "found 0 numbers, expected 3", id="empty"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, array, sentence):
    with pytest.raises(DataError, match=sentence):
        load_features(as_npz(tmp_path, {"a": array}), 3)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param(
            "patient_id,f0\na,1\na,2\n", r"row 2 \(patient 'a'\): this patient id occurs twice", id="twice"
        ),
        pytest.param("patient_id,f0\na,1\n,2\n", "row 2: patient_id is blank", id="blank-id"),
        pytest.param(
            "patient_id,f0,f1\na,1,high\n", r"row 1 \(patient 'a'\): f1 is 'high', expected a", id="word"
        ),
        pytest.param("patient_id,f0\na,1_5\n", "f0 is '1_5', expected a number", id="underscore"),
        pytest.param(
            "patient_id,f0\na,\uff11\uff15\n", "f0 is '\uff11\uff15', expected a number", id="full-width"
        ),
        pytest.param("f0,patient_id,f1\n,a,\n", r"row 1 \(patient 'a'\): every cell is blank", id="blank"),
        pytest.param(
            "patient_id,f0,f1\na,1\n", r"row 1 \(line 2\): found 2 cells, expected 3", id="short-row"
        ),
        pytest.param("id,f0\na,1\n", "found 0 columns called 'patient_id', expected one", id="no-id-column"),
        pytest.param("patient_id\na\n", "found no number|found 0 numbers", id="no-number"),
        pytest.param("patient_id,f0\n", "no vector, expected at least one patient", id="no-row"),
        pytest.param("", "found 0 columns called 'patient_id'", id="empty"),
        pytest.param('patient_id,f0\n"a"b,1\n', "line 2: not valid CSV", id="quotes"),
    ],
)
def test_wrong_csv_is_refused(tmp_path, text, sentence):
    path = tmp_path / "x.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=sentence):
        load_features(path)


def test_a_blank_cell_is_not_there(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("f0,patient_id,f1\n,a,2\n1,b,NaN\n", encoding="utf-8")
    found = load_features(path)
    np.testing.assert_array_equal(found["a"], np.float32([np.nan, 2]))
    np.testing.assert_array_equal(found["b"], np.float32([1, np.nan]))
    again = load_features(tmp_path / write_features(tmp_path, "again", found))
    np.testing.assert_array_equal(again["a"], found["a"])


def test_wrong_parquet_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    pd.DataFrame({"patient_id": ["a"], "f0": ["high"]}).to_parquet(path)
    with pytest.raises(DataError, match="column 'f0' is str, expected numbers"):
        load_features(path, 1)
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        load_features(path, 1)


def test_numeric_patient_ids_of_parquet_are_text(tmp_path):
    path = tmp_path / "x.parquet"
    pd.DataFrame({"patient_id": [17, 8], "f0": [1.0, 2.0]}).to_parquet(path)
    assert list(load_features(path, 1)) == ["17", "8"]


def test_missing_or_damaged_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"ct\.npz: no such features file"):
        load_features(tmp_path / "ct.npz", 3)
    with pytest.raises(DataError, match=r"ending '\.pt', expected one of \.npz, \.csv, \.parquet"):
        load_features(tmp_path / "ct.pt", 3)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.npy", b"nonsense")
    for content in (b"nonsense", stream.getvalue(), stream.getvalue()[:40]):
        (tmp_path / "ct.npz").write_bytes(content)
        with pytest.raises(DataError, match="cannot be read as npz"):
            load_features(tmp_path / "ct.npz", 3)
    (tmp_path / "ct.npz").write_bytes(as_npz(tmp_path, VECTORS).read_bytes()[:-9])
    with pytest.raises(DataError, match="cannot be read as npz"):
        load_features(tmp_path / "ct.npz", 3)


def test_one_patient_twice_in_npz_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ones(3))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", stream.getvalue())
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.npy", stream.getvalue())
    with pytest.raises(DataError, match=r"row 2 \(patient 'a'\): this patient id occurs twice"):
        load_features(path, 3)


def test_long_ids_of_parquet_keep_their_digits(tmp_path):
    path = tmp_path / "x.parquet"
    ids = pd.array([2**53, 2**53 + 1], dtype="Int64")
    pd.DataFrame({"patient_id": ids, "f0": pd.array([1, 2], dtype="Int64")}).to_parquet(path)
    assert {patient: float(vector[0]) for patient, vector in load_features(path).items()} == {
        "9007199254740992": 1,
        "9007199254740993": 2,
    }
    pd.DataFrame({"f0": [1.0]}, index=pd.Index(["a"], name="patient_id")).to_parquet(path)
    assert list(load_features(path)) == ["a"]


@pytest.mark.parametrize("ending", ["csv", "tsv", "xlsx"])
def test_features_are_read_as_other_tables_are(tmp_path, ending):
    path = tmp_path / f"x.{ending}"
    frame = pd.DataFrame({"patient_id": ["007", "NA"], "f0": [1.5, 2]})
    frame.to_excel(path, index=False) if ending == "xlsx" else frame.to_csv(path, sep=";", index=False)
    assert {patient: vector.tolist() for patient, vector in load_features(path).items()} == {
        "007": [1.5],
        "NA": [2],
    }
    frame.loc[1, "f0"] = None
    frame.to_excel(path, index=False) if ending == "xlsx" else frame.to_csv(path, sep=";", index=False)
    with pytest.raises(DataError, match=r"row 2 \(patient 'NA'\): every cell is blank"):
        load_features(path)


@pytest.mark.parametrize("width", [3, 64])
def test_several_vectors_of_a_patient_are_read_back(tmp_path, width):
    random = np.random.default_rng(width)
    bags = {"a": random.normal(size=(3, width)).astype(np.float32), "b": np.ones((1, width), np.float32)}
    name = write_features(tmp_path, "ct", bags)
    loaded = load_bags(tmp_path / name, width)
    assert loaded.keys() == bags.keys()
    assert all(np.array_equal(loaded[patient], bag) for patient, bag in bags.items())
    if name.endswith(".npz"):  # there the first is known to be meant
        assert np.array_equal(load_features(tmp_path / name, width)["a"], bags["a"][0])
