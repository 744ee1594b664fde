"""A study that starts from a trained model: the site checks round 1 against the model that it has itself."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from client.privacy.approving import Approving
from client.training.kept.state import StateStore
from client.training.model_pool import ModelPool
from client.training.service import SiteService
from mmare.errors import SiteCode
from mmare.models.registry import build_model
from mmare.package.graft import graft
from mmare.package.package import install_package, read_package
from mmare.package.sealed import seal, write_sealed
from mmare.package.start import installed_start, read_start
from mmare.study.start import StartSpec
from mmare.wire.messages import Refusal, Request, RollCall, Task, Update, decode, encode
from mmare.wire.tensors import global_tensors, layout_of, pack
from sites.config import load_site
from tests.federations import tiny_data, tiny_federation, tiny_study
from tests.packages import made_package


@pytest.fixture
def package(tmp_path):
    """Of a study that the new one has all modalities of; its scaling is learned."""
    return read_package(made_package(tmp_path / "start.zip", replace(tiny_study(), seed=9)))


@pytest.fixture
def study(package):
    return replace(tiny_study(), start=StartSpec(read_start(package_path(package)).digest))


def package_path(package):
    return Path(package.sealed.source)


def site_of(folder, study):
    pool = ModelPool(torch.device("cpu"), find_start=partial(installed_start, folder))
    return SiteService("ash", tiny_data, StateStore(folder / "cache"), pool, 0, frozenset({study.hash}))


def ask(site, study, task, model=None):
    fields = {}
    if model is not None:
        layout = layout_of(global_tensors(model)).fingerprint
        fields = {"round": 1, "train": task is Task.TRAIN, "layout": layout}
    payload = b"" if model is None else pack(global_tensors(model)).numpy().tobytes()
    return site(encode(Request(task, "run", study.to_dict(), **fields)), payload)[0]


def test_without_the_package_a_site_refuses_at_the_roll_call(tmp_path, study, package):
    site = site_of(tmp_path, study)
    assert decode(Refusal, ask(site, study, Task.DESCRIBE)).code is SiteCode.START
    install_package(package, tmp_path)
    assert decode(RollCall, ask(site, study, Task.DESCRIBE)).study_hash == study.hash


def test_only_the_start_model_begins_a_run(tmp_path, study, package):
    install_package(package, tmp_path)
    begun = build_model(study)
    graft(begun, study, read_start(package_path(package)))
    changed = build_model(study)
    changed.load_state_dict(begun.state_dict())
    changed.head.out.bias.data[0] += 1e-7
    for model, folder in ((build_model(study), "seed"), (changed, "changed")):
        site = site_of(tmp_path, study)
        assert decode(Refusal, ask(site, study, Task.EVALUATE, model)).code is SiteCode.MODEL, folder
    assert decode(Update, ask(site_of(tmp_path, study), study, Task.EVALUATE, begun)).round == 1


def test_the_scaling_of_the_start_model_is_not_the_coordinators_to_choose(tmp_path):
    old = tiny_study()
    start = made_package(tmp_path / "start.zip", old)
    package = read_package(start)
    package.weights["scaling.mean_0"] += 1.0
    files = {**package.sealed.files, "weights.safetensors": save(package.weights)}
    write_sealed(seal(package.facts, files), tmp_path / "scaled.zip")
    install_package(read_package(tmp_path / "scaled.zip"), tmp_path)
    found = read_start(tmp_path / "scaled.zip")
    study = replace(old, seed=4, start=StartSpec(found.digest))
    begun = build_model(study)
    assert "scaling.mean_0" in graft(begun, study, found).fixed
    begun.scaling.get_buffer("mean_1").add_(1)  # no train row of the start model had it: pooled anew
    assert decode(Update, ask(site_of(tmp_path, study), study, Task.EVALUATE, begun)).round == 1
    begun.scaling.get_buffer("mean_0").add_(1)
    (tmp_path / "other").mkdir()
    install_package(read_package(tmp_path / "scaled.zip"), tmp_path / "other")
    site = site_of(tmp_path / "other", study)
    assert decode(Refusal, ask(site, study, Task.EVALUATE, begun)).code is SiteCode.MODEL


def test_an_approval_names_the_start_model(tmp_path, study, package):
    site = load_site(tiny_federation(tmp_path / "fed") / "ash" / "site.toml")
    told = " ".join(Approving(site, study).words.split())
    assert (
        f"what fits of the start model {study.start.digest}, which mmare-site install has not put here"
        in told
    )
    install_package(package, site.folder)
    told = " ".join(Approving(site, study).words.split())
    assert "is installed here: run run-1 of study tiny trained it on ct, wsi" in told
    assert study.hash != tiny_study().hash
