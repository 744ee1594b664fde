"""Predictions of a thousand patients whose scans are cached, and what explaining them takes more."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from client.data.cache import EmbeddingCache
from client.data.dataset import modality_fingerprint
from client.data.scan_list import list_scan, scans_of
from client.prediction.inputs import site_inputs
from client.prediction.predict import predict
from client.prediction.run import predict_site
from client.prediction.written.table_format import Format
from mmare.package.package import read_package
from sites.manifest import load_patients
from tests.bench.printed import report
from tests.client.data.test_embed import opened, scan_study, write_site
from tests.packages import made_package

PATIENTS, MODALITIES = 1000, ("t1", "t2", "flair", "ct")


@pytest.mark.bench
def test_predicting_and_explaining_a_thousand_cached_patients(tmp_path):
    study = scan_study(modalities=MODALITIES)
    study = replace(study, model=replace(study.model, options={}))  # of the thesis's size
    named = [dict.fromkeys(MODALITIES, f"{row}.nii.gz") for row in range(PATIENTS)]
    site, study = opened(write_site(tmp_path / "fed", named, study))
    random = np.random.default_rng(0)
    for row in range(PATIENTS):
        (site.folder / f"{row}.nii.gz").write_bytes(random.bytes(64))
    cache = EmbeddingCache(site.cache)
    for scan in scans_of(site, study, load_patients(site.manifest)):
        cache.put(list_scan(cache, site, scan).key, random.normal(size=512).astype(np.float32))
    cache.save_index()
    marks = {each.name: modality_fingerprint(each, site) for each in study.modalities}
    package = read_package(made_package(tmp_path / "model", study, marks, {"no": 6, "yes": 2}))
    torch.set_num_threads(1)
    began = time.perf_counter()
    found = predict_site(package, site, None, tmp_path / "out.csv", Format.CSV)
    whole = time.perf_counter() - began
    assert bool(found.inputs.present.all())
    seconds = {}
    for name, explain in (("predict", False), ("explain", True)):
        began = time.perf_counter()
        predict(package, site_inputs(package, site, load_patients(site.manifest)), explain=explain)
        seconds[name] = time.perf_counter() - began
    report(
        f"{PATIENTS} cached patients of {len(MODALITIES)} scans, one thread",
        with_log_table_and_page=f"{whole:.2f} s",
        predict=f"{seconds['predict']:.2f} s",
        and_explain=f"{seconds['explain']:.2f} s",
        subsets=2 ** len(MODALITIES),
    )
