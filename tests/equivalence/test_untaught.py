"""A group or a column that no train row of the federation has changes no metric and no prediction."""

import numpy as np
import pytest
import torch

from client.data.dataset import load_data
from client.prediction.inputs import PatientInputs
from client.prediction.predict import predict
from mmare.package.package import read_package
from mmare.wire.messages import Split
from server.release.release import release_model
from sites.federation import site_folders, write_federation
from tests.federations import SITES, run_nodes, site_tables, tiny_study


def federation_of(folder, study, *, kept):
    """Patients of whom no train row has wsi or the first of ct's columns; others do, if ``kept``."""
    tables = [site_tables(name, study, 40, 3, 0.0) for name in SITES]
    for each in tables:
        for patient, split in zip(each.manifest["patient_id"], each.manifest["split"], strict=True):
            if split == "train" or not kept:
                del each.features["wsi"][patient]
                each.features["ct"][patient][0] = np.nan
    write_federation(folder, study, tables)
    return folder


@pytest.mark.parametrize("recipe", ["table", pytest.param("thesis", marks=pytest.mark.slow)])
def test_what_no_train_row_has_is_not_looked_at(tmp_path, recipe):
    study = tiny_study(training={"recipe": recipe, "rounds": 2})
    found = {}
    for name, kept in (("kept", True), ("gone", False)):
        result = run_nodes(federation_of(tmp_path / name, study, kept=kept), tmp_path / f"run-{name}")
        found[name] = {
            split: {where: result["metrics"][split][where] for where in ("pooled", "sites")}
            for split in ("validation", "test")
        }
    assert found["kept"] == found["gone"]
    release_model(tmp_path / "run-kept", tmp_path / "model.zip")
    package = read_package(tmp_path / "model.zip")
    data = load_data(site_folders(tmp_path / "kept")[0], study)
    rows = data.rows[Split.TEST]
    embedding, present = tuple(part[rows] for part in data.embedding), data.present[rows]
    patients = tuple(str(row) for row in rows.tolist())
    whole = predict(package, PatientInputs(patients, embedding, present, {}))
    hidden = predict(package, PatientInputs(patients, embedding, present & torch.tensor([True, False]), {}))
    assert torch.equal(whole.logits, hidden.logits)
    assert whole.shares[:, 1].abs().max() == 0
    assert whole.distance[:, 1].isnan().all()
    torch.testing.assert_close(whole.distance[:, 0], hidden.distance[:, 0])
