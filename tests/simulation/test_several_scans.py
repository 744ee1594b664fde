from dataclasses import replace

import numpy as np
import torch

from client.data.dataset import load_data
from client.prediction.inputs import site_inputs
from client.training.evaluate import logits_of
from client.training.scans import weighed
from mmare.package.package import read_package
from mmare.study.choices import Scans
from server.release.release import release_model
from simulation.engine import run_in_process
from sites.config import load_site
from sites.federation import write_federation
from sites.manifest import load_manifest
from tests.federations import SITES, events, request_of, site_tables, tiny_study


def test_a_federation_learns_the_weights_of_scans_and_its_package_predicts_with_them(tmp_path):
    study = tiny_study(training={"rounds": 2})
    ct, wsi = study.modalities
    study = replace(study, modalities=(replace(ct, scans=Scans.ATTENTION), wsi))
    random = np.random.default_rng(5)
    tables = []
    for name in SITES:
        table = site_tables(name, study, 40, 3, 0.3)
        bags = {
            patient: vector + random.normal(size=(1 + place % 3, 8)).astype(np.float32)
            for place, (patient, vector) in enumerate(table.features["ct"].items())
        }
        tables.append(replace(table, features={**table.features, "ct": bags}))
    write_federation(tmp_path / "fed", study, tables)
    run_in_process(request_of(tmp_path / "fed", tmp_path / "run"))
    assert all(event["exposure"]["attention.ct"] > 0 for event in events(tmp_path / "run", "aggregated"))
    release_model(tmp_path / "run", tmp_path / "model.zip")
    package = read_package(tmp_path / "model.zip")
    assert package.model.weighing_scans["0"].score.weight.abs().sum() > 0
    site = load_site(tmp_path / "fed" / "ash" / "site.toml")
    found = site_inputs(package, site, load_manifest(site.manifest, study))
    data = load_data(site, study)
    rows = torch.arange(len(data.label))
    fused = weighed(package.model, data.embedding, data.bags)
    assert not torch.equal(fused[0], data.embedding[0])
    assert torch.equal(
        logits_of(package.model, found.embedding, rows, found.present),
        logits_of(package.model, fused, rows, data.present),
    )
