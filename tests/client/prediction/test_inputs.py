"""New patients as the model takes them, and what is refused before anything is predicted."""

from dataclasses import replace

import pytest
import torch

from client.data.dataset import load_data, modality_fingerprint
from client.encoders.registry import ENCODERS
from client.prediction.inputs import site_inputs as inputs_of
from client.prediction.run import predict_site
from client.prediction.written.table_format import Format
from mmare.errors import DataError, InputError, RunError
from mmare.package.package import read_package
from sites.config import load_site
from sites.federation import write_federation
from sites.manifest import load_patients
from tests.client.data.test_embed import ENCODER, write_series
from tests.client.prediction.conftest import table_of
from tests.federations import site_tables, tiny_study
from tests.packages import made_package


def site_inputs(package, site, table=None):
    return inputs_of(package, site, load_patients(table or site.manifest))


def test_scans_become_the_vectors_of_training_and_are_encoded_once(scans, tmp_path, monkeypatch):
    site, package = scans
    table = table_of(site, "patient_id,t1,t2\np-0,a.nii.gz,\np-1,a.nii.gz,b.nii.gz\n")
    steps = []
    found = predict_site(
        package, site, table, tmp_path / "new.csv", Format.CSV, lambda *step: steps.append(step)
    )
    assert steps[-1] == (3, 3)
    trained_on = load_data(site, package.study)  # of the cache that the prediction filled
    for one, other in zip(found.inputs.embedding, trained_on.embedding, strict=True):
        assert torch.equal(one, other)
    assert found.patterns == ["10", "11"]
    assert any("UNTRAINED" in note for note in found.notes)
    monkeypatch.setitem(
        ENCODERS, ENCODER, replace(ENCODERS[ENCODER], open_volume=lambda _: pytest.fail("encoded again"))
    )
    again = predict_site(package, site, table, tmp_path / "new.csv", Format.CSV)
    assert torch.equal(again.logits, found.logits)


def test_a_folder_of_dicom_files_is_read_as_in_training(scans):
    site, package = scans
    write_series(site.folder / "export")
    inputs = site_inputs(package, site, table_of(site, "patient_id,t1,t2\nnew,export,\n"))
    assert inputs.present.tolist() == [[True, False]]
    assert float(inputs.embedding[0].abs().sum()) > 0


def test_a_scan_that_cannot_be_used_is_a_missing_one_and_is_said(scans):
    site, package = scans
    (site.folder / "bad.nii.gz").write_bytes(b"no image")
    inputs = site_inputs(package, site, table_of(site, "patient_id,t1,t2\nnew,a.nii.gz,bad.nii.gz\n"))
    assert inputs.present.tolist() == [[True, False]]
    assert len(inputs.remarks[0]) == 1
    assert inputs.remarks[0][0].startswith("t2 is not used: ")


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        pytest.param(
            "patient_id,t1,t2\nnew,a.nii.gz,gone\n",
            DataError,
            "new.csv: data row 1: t2 names .*gone, but there is no such file or folder",
            id="a path that leads nowhere",
        ),
        pytest.param(
            "patient_id,t1,t2\none,a.nii.gz,\ntwo,,\n",
            DataError,
            "new.csv: data row 2 has none of the model's modalities, expected any of t1, t2$",
            id="a patient without anything",
        ),
        pytest.param(
            "patient_id,t1,t2\none,bad.nii.gz,\n",
            RunError,
            "none of 1 patients has any of t1, t2, so there is nothing to predict from .t1 is not used: ",
            id="nobody has anything",
        ),
        pytest.param(
            "patient_id,t1,t2\none,a.nii.gz,\none,a.nii.gz,\n",
            DataError,
            "new.csv, row 2 .line 3.: patient_id 'one' occurs twice, first in row 1",
            id="an id twice",
        ),
        pytest.param(
            "patient_id,t1\none,a.nii.gz\n", DataError, "modality t2 needs a column of scans", id="a column"
        ),
        pytest.param("patient_id,t1,t2\n", DataError, "no patient, expected at least one row", id="no row"),
    ],
)
def test_what_is_refused_leaves_nothing(scans, tmp_path, text, error, sentence):
    site, package = scans
    (site.folder / "bad.nii.gz").write_bytes(b"no image")
    table = table_of(site, text)
    with pytest.raises(error, match=sentence):
        predict_site(package, site, table, tmp_path / "out.csv", Format.CSV)
    assert not list(tmp_path.glob("*out*"))
    assert not (site.folder / "audit.jsonl").exists()


def test_another_encoder_or_preprocessing_is_refused(scans, tmp_path):
    site, package = scans
    marks = {each.name: modality_fingerprint(each, site) for each in package.study.modalities}
    older = read_package(made_package(tmp_path / "older", package.study, marks | {"t2": "med3d/0+steps/1"}))
    table = table_of(site, "patient_id,t1,t2\np-0,a.nii.gz,\n")
    with pytest.raises(
        InputError, match=r"^t2: this site makes .*; predictions on other vectors mean nothing"
    ):
        site_inputs(older, site, table)
    assert not list((site.cache).rglob("*.npy"))  # refused before anything was encoded


def test_vectors_of_another_encoding_are_refused_and_the_modality_nobody_had_is_said(tmp_path):
    study = tiny_study()
    write_federation(tmp_path / "fed", study, [site_tables("ash", study, 8, 0, 0.0)])
    site = load_site(tmp_path / "fed" / "ash" / "site.toml")
    given = read_package(made_package(tmp_path / "one", study, {"ct": "given"}))
    inputs = site_inputs(given, site)
    assert inputs.present.all()
    assert inputs.notes == ("No patient in training had wsi, so the model learned nothing of it",)
    other = read_package(made_package(tmp_path / "two", study, {"ct": "given:0123456789abcdef"}))
    with pytest.raises(
        InputError, match="ct: this site makes its vectors by given, the model was trained on "
    ):
        site_inputs(other, site)


def test_a_scan_is_known_by_patient_and_site_not_by_its_table(scans):
    """What the cache holds of training is used: nothing of the key depends on the table's name."""
    site, package = scans
    first = site_inputs(package, site, table_of(site, "patient_id,t1,t2\np-0,a.nii.gz,\n"))
    files = {path: path.stat().st_mtime_ns for path in (site.cache / "embeddings").rglob("*.npy")}
    second = site_inputs(package, site, table_of(site, "patient_id,t2,t1\np-0,,a.nii.gz\n", "other.csv"))
    assert torch.equal(first.embedding[0], second.embedding[0])
    assert {path: path.stat().st_mtime_ns for path in (site.cache / "embeddings").rglob("*.npy")} == files
    assert len(files) == 1
