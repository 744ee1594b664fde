"""The manifest of a site."""

from collections import Counter

import numpy as np
import pytest

from mmare.errors import DataError
from mmare.study.choices import Kind
from mmare.study.specs import ModalitySpec
from mmare.study.study import Study
from mmare.wire.messages import Split
from sites.manifest import load_manifest

STUDY = Study("s", ("dead", "alive"), (ModalitySpec("ct", Kind.FEATURES, 2),))


def write(tmp_path, text):
    path = tmp_path / "patients.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_in_file_order(tmp_path):
    text = "patient_id,label,split,age\nb,alive,test,\na,dead,train,61\n01,alive,val,\n"
    manifest = load_manifest(write(tmp_path, text), STUDY, seed=0)
    assert manifest.source == tmp_path / "patients.csv"
    assert manifest.patient_ids == ("b", "a", "01")
    assert manifest.labels.dtype == np.int64
    assert manifest.labels.tolist() == [1, 0, 1]
    assert manifest.splits.tolist() == [Split.TEST, Split.TRAIN, Split.VAL]
    assert manifest.table["age"].isna().tolist() == [True, False, True]
    assert manifest.table["age"][1] == "61"


def test_without_a_split_column_one_is_drawn_6_1_3_by_label(tmp_path):
    rows = [f"p{row},{'dead' if row < 30 else 'alive'}" for row in range(100)]
    path = write(tmp_path, "\n".join(["patient_id,label", *rows]))
    manifest = load_manifest(path, STUDY, seed=3)
    assert Counter(manifest.splits.tolist()) == {"train": 60, "val": 10, "test": 30}
    assert Counter(manifest.splits[:30].tolist()) == {"train": 18, "val": 3, "test": 9}
    assert (load_manifest(path, STUDY, seed=3).splits == manifest.splits).all()
    assert (load_manifest(path, STUDY, seed=4).splits != manifest.splits).any()


def test_a_split_is_drawn_despite_a_class_of_one_patient(tmp_path):
    text = "patient_id,label\na,dead\n" + "".join(f"b{row},alive\n" for row in range(9))
    assert Counter(load_manifest(write(tmp_path, text), STUDY, 0).splits.tolist()) == {
        "train": 6,
        "val": 1,
        "test": 3,
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("patient_id,split\na,train\n", "no column 'label'", id="no-label-column"),
        pytest.param("id,label\na,dead\n", "no column 'patient_id'", id="no-id-column"),
        pytest.param("patient_id,label\n", "no patient, expected at least one row", id="no-row"),
        pytest.param(
            "patient_id,label\na,dead\nb,alive\na,dead\n",
            r"row 3 \(line 4\): patient_id 'a' occurs twice, first in row 1",
            id="repeated-id",
        ),
        pytest.param("patient_id,label\n,dead\n", r"row 1 \(line 2\): patient_id is blank", id="blank-id"),
        pytest.param("patient_id,label\na,\n", r"row 1 \(line 2\): label is blank", id="blank-label"),
        pytest.param(
            "patient_id,label\na,dead\nb,Dead\n",
            r"row 2 \(line 3\): label is 'Dead', expected one of the study's classes dead, alive",
            id="unknown-label",
        ),
        pytest.param(
            "patient_id,label,split\na,dead,train\nb,dead,holdout\n",
            r"row 2 \(line 3\): split is 'holdout', expected one of train, val, test",
            id="unknown-split",
        ),
        pytest.param("patient_id,label,split\na,dead,\n", "split is blank", id="blank-split"),
    ],
)
def test_manifests_that_cannot_be_used_are_refused(tmp_path, text, sentence):
    path = write(tmp_path, text)
    with pytest.raises(DataError, match=sentence) as caught:
        load_manifest(path, STUDY, seed=0)
    assert str(caught.value).startswith(str(path))


def test_a_missing_manifest_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"patients\.csv: no such file"):
        load_manifest(tmp_path / "patients.csv", STUDY, seed=0)
