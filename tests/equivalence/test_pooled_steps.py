"""FedSGD: a round is the step that the pooled rows make, however many sites hold them."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from client.data.dataset import SiteData, load_data
from mmare.models.batch import Batch
from mmare.models.registry import build_model
from mmare.wire.messages import Split
from server.store.model_file import load_model
from sites.federation import SiteTables, site_folders, write_federation
from tests.federations import (
    ModelsByRound,
    run_nodes,
    tiny_federation,
    tiny_study,
)

SURE = {"recipe": "table", "noise_probability": 0.0, "rounds": 4}  # nothing is drawn
STILL = {
    "name": "mmare",
    "width": 16,
    "dropout": 0.0,
    "embedding_dropout": 0.0,
    "order": "fixed",
    "merge": "thesis",  # the symmetric one starts with gradients below the resolution of their parameters
}
MOMENTUM = 0.9
DAMPING = 50.0
UNEVEN = 44  # classes: a gradient that is zero but for rounding would be a step of Adam, up or down


def still_study(**training):
    federation = {"strategy": "fedsgd", "options": {"damping": DAMPING}}
    return tiny_study(model=STILL, training=SURE | training, federation=federation)


def models_of(federation, out, study, **options):
    kept = ModelsByRound(out, study, {})
    run_nodes(federation, out, listeners=(kept,), **options)
    return kept.models


def _damp(model, before, present):
    """Shorten the steps of AdamW: a block of exposure E goes E / (E + 50) of its way."""
    values = dict(model.named_parameters())
    for block in model.blocks():
        if block.descent is None:
            exposure = block.exposure(present).item()
            for name in block.parameters:
                column = slice(None) if block.column is None else (slice(None), block.column)
                way = values[name].detach()[column] - before[name][column]
                values[name].data[column] = before[name][column] + exposure / (exposure + DAMPING) * way


def pooled_steps(federation, study):
    """The models of plain full-batch training on the rows of all sites, by torch's own optimisers."""
    data = SiteData.pooled([load_data(site, study) for site in site_folders(federation)])
    rows = data.rows[Split.TRAIN]
    model = build_model(study)
    present, label = data.present[rows], data.label[rows]
    for slot, part in enumerate(data.embedding):
        having = part[rows][present[:, slot]].double()
        mean, deviation = having.mean(0).float(), having.std(0, correction=0).float()
        model.scaling.set_moments(slot, mean, deviation)
    scaled = model.scaling([part[rows] for part in data.embedding], present)
    linear = [value for name, value in model.named_parameters() if name.startswith("linear.")]
    deep = [value for name, value in model.named_parameters() if not name.startswith("linear.")]
    training = study.training
    optimizers = [
        torch.optim.AdamW(deep, lr=training.learning_rate, weight_decay=training.weight_decay),
        torch.optim.SGD(linear, lr=1 / (2 * len(study.modalities) + 1), momentum=MOMENTUM),  # all are bent
    ]
    for _ in range(training.rounds):
        model.zero_grad()
        functional.cross_entropy(model.logits(scaled, present), label).backward()
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        for optimizer in optimizers:
            optimizer.step()
        _damp(model, before, present)
        yield {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize(
    "training", [pytest.param({}, id="one-pass"), pytest.param({"batch_size": 7}, id="in-pieces")]
)
def test_rounds_of_sites_are_steps_on_the_pooled_rows(tmp_path, training):
    study = still_study(**training)
    federation = tiny_federation(tmp_path / "fed", study, patients=UNEVEN)
    found = models_of(federation, tmp_path / "run", study)
    start = dict(build_model(study).named_parameters())
    for number, wanted in enumerate(pooled_steps(federation, study), start=1):
        for name, value in wanted.items():
            torch.testing.assert_close(
                found[number][name], value, rtol=1e-3, atol=2e-5, msg=f"round {number}: {name}"
            )
    moved = {
        name: (value - start[name]).abs().max().item() for name, value in found[4].items() if name in start
    }
    assert (
        min(value for name, value in moved.items() if name.startswith(("linear.inputs", "linear.bends")))
        > 0.01
    )
    assert moved["head.out.weight"] > 1e-3


@pytest.mark.slow
def test_how_the_rows_are_cut_into_sites_does_not_matter(tmp_path):
    """One site per ten patients, some of which lack a modality or a class altogether, or one for all."""
    study = still_study()
    federation = tiny_federation(
        tmp_path / "fed", study, sites=[f"s{place}" for place in range(6)], patients=12
    )
    cut = models_of(federation, tmp_path / "cut", study)
    whole = models_of(federation, tmp_path / "whole", study, mode="centralised")
    for number, tensors in cut.items():
        for name, value in tensors.items():
            torch.testing.assert_close(whole[number][name], value, rtol=1e-3, atol=2e-5)


def many_small_sites(folder, study, seed=0):
    """34 sites of 5 to 30 patients; the first has one class only, the second no validation rows."""
    random = np.random.default_rng(seed)
    sites = []
    for place in range(34):
        patients = (5, 8, 20, 30)[place % 4]
        names = [f"s{place:02d}-{row}" for row in range(patients)]
        label = random.integers(2, size=patients) if place else np.zeros(patients, dtype=int)
        split = random.choice(["train", "val", "test"], p=[0.6, 0.15, 0.25], size=patients)
        split[:1] = "train"
        if place == 1:
            split[split == "val"] = "train"
        absent = random.random((patients, 2)) < 0.3
        absent[absent.all(axis=1), 0] = False
        features = {
            modality.name: {
                name: (random.normal(size=modality.width) + 0.35 * label[row]).astype(np.float32)
                for row, name in enumerate(names)
                if not absent[row, slot]
            }
            for slot, modality in enumerate(study.modalities)
        }
        labels = [study.classes[value] for value in label]
        manifest = pd.DataFrame({"patient_id": names, "label": labels, "split": split})
        sites.append(SiteTables(f"s{place:02d}", manifest, features))
    write_federation(folder, study, sites)
    return folder


def auc_of(federation, out, study):
    data = SiteData.pooled([load_data(site, study) for site in site_folders(federation)])
    rows = data.rows[Split.TEST]
    batch = Batch(tuple(part[rows] for part in data.embedding), data.present[rows])
    return roc_auc_score(data.label[rows], load_model(out / "model").predict(batch)[:, 1])


@pytest.mark.slow
def test_many_small_sites_learn_as_their_pooled_rows_do(tmp_path):
    study = tiny_study(
        model={"name": "mmare", "width": 16},
        training={"recipe": "table", "rounds": 25, "noise_probability": 0.0},
        federation={"strategy": "fedsgd"},
        privacy={"min_count": 5},
    )
    federation = many_small_sites(tmp_path / "fed", study)
    found = {}
    for mode in ("federated", "centralised"):
        run_nodes(federation, tmp_path / mode, mode=mode)
        found[mode] = auc_of(federation, tmp_path / mode, study)
    assert found["centralised"] > 0.7
    assert found["federated"] > found["centralised"] - 0.02
