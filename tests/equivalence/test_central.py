"""Federated training equals plain training where it must, and what is said of it equals the pooled rows'."""

import json

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch.nn import functional

from client.data.dataset import load_data
from client.training.trainer import draw_rows
from mmare.metrics.state import MetricState
from mmare.models.batch import Batch
from mmare.models.registry import build_model
from mmare.randomness import generator_for
from mmare.study.study import load_study
from mmare.wire.messages import Split
from server.store.model_file import load_model
from sites.federation import site_folders
from tests.federations import (
    SITES,
    ModelsByRound,
    outcome,
    run_nodes,
    tiny_federation,
    tiny_study,
)

NOISE_SHARE = 0.1  # of each feature's deviation


def models_of(federation, out, study, **options: object):
    kept = ModelsByRound(out, study, {})
    run_nodes(federation, out, listeners=(kept,), **options)
    return kept.models


def site_data(federation):
    study = load_study(federation / "study.toml")
    return {site.id: load_data(site, study) for site in site_folders(federation)}


def scaled_rows(study, sites):
    """Train rows per site, z-scored by numpy over the rows of all sites that have the modality."""
    parts = {site: [] for site in sites}
    for slot in range(len(study.modalities)):
        having = np.concatenate(
            [
                data.embedding[slot][rows[data.present[rows, slot]]].double().numpy()
                for data in sites.values()
                for rows in [data.rows[Split.TRAIN]]
            ]
        )
        mean, deviation = having.mean(0).astype(np.float32), having.std(0).astype(np.float32)
        for site, data in sites.items():
            rows = data.rows[Split.TRAIN]
            values = (data.embedding[slot][rows].numpy() - mean) / deviation
            parts[site].append(np.where(data.present[rows][:, [slot]].numpy(), values, 0))
    return {site: torch.from_numpy(np.concatenate(columns, axis=1)) for site, columns in parts.items()}


@pytest.mark.parametrize(
    "training",
    [
        pytest.param({}, id="adam"),
        pytest.param({"oversample": {"no": 3.0}, "local_epochs": 2}, id="adam-oversampled-two-epochs"),
        pytest.param({"optimizer": "sgd", "learning_rate": 0.05}, id="sgd", marks=pytest.mark.slow),
        pytest.param({"optimizer_state": "reset"}, id="adam-reset", marks=pytest.mark.slow),
    ],
)
def test_one_site_is_a_plain_training_loop(tmp_path, training):
    study = tiny_study(training={"rounds": 5, **training}, federation={"min_sites": 1})
    federation = tiny_federation(tmp_path / "fed", study, sites=("ash",), patients=60)
    found = models_of(federation, tmp_path / "run", study)
    assert sorted(found) == [1, 2, 3, 4, 5]

    settings = study.training
    sites = site_data(federation)
    data, scaled = sites["ash"], scaled_rows(study, sites)["ash"]
    rows = data.rows[Split.TRAIN]
    present, label = data.present[rows], data.label[rows]
    model = build_model(study)
    model.train()

    def fresh():
        kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.SGD
        return kind(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=False
        )

    optimizer = fresh()
    for number in range(1, 6):
        if settings.optimizer_state == "reset":
            optimizer = fresh()
        generator = generator_for(study.seed, "ash", number)
        for _ in range(settings.local_epochs):
            for batch in draw_rows(label, study, generator).split(settings.batch_size):
                chosen = torch.rand(len(batch), 1, generator=generator) < settings.noise_probability
                noise = torch.randn(len(batch), scaled.shape[1], generator=generator)
                inputs = scaled[batch] + chosen * noise * NOISE_SHARE
                optimizer.zero_grad()
                model.loss(inputs, present[batch], label[batch], generator).backward()
                optimizer.step()
        for name, value in model.named_parameters():
            torch.testing.assert_close(
                found[number][name], value.detach(), rtol=1e-4, atol=2e-5, msg=f"round {number}: {name}"
            )


@pytest.mark.slow
def test_kept_moments_matter(tmp_path):
    """Otherwise the test before would hold for a loop that forgets them too."""
    models = []
    for state in ("keep", "reset"):
        study = tiny_study(training={"optimizer_state": state}, federation={"min_sites": 1})
        federation = tiny_federation(tmp_path / f"fed-{state}", study, sites=("ash",))
        models.append(models_of(federation, tmp_path / state, study))
    name = "head.out.weight"
    torch.testing.assert_close(models[0][1][name], models[1][1][name], rtol=0, atol=0)
    assert (models[0][2][name] - models[1][2][name]).abs().max() > 1e-3


@pytest.mark.slow
def test_centralised_on_one_site_is_federated_bit_for_bit(tmp_path):
    study = tiny_study(federation={"min_sites": 1})
    federation = tiny_federation(tmp_path / "fed", study, sites=("ash",), patients=60)
    run_nodes(federation, tmp_path / "federated")
    run_nodes(federation, tmp_path / "centralised", mode="centralised")
    assert outcome(tmp_path / "federated") == outcome(tmp_path / "centralised")


@pytest.mark.slow
def test_full_batches_of_all_sites_are_pooled_gradient_descent(tmp_path):
    study = tiny_study(
        model={"dropout": 0.0, "order": "fixed"},
        training={
            "optimizer": "sgd",
            "learning_rate": 0.2,
            "batch_size": 1000,
            "noise_probability": 0.0,
            "weight_decay": 0.01,
        },
    )
    federation = tiny_federation(tmp_path / "fed", study, patients=40)
    found = models_of(federation, tmp_path / "run", study)
    sites = site_data(federation)
    assert len({len(data.rows[Split.TRAIN]) for data in sites.values()}) == len(sites)  # weights differ
    scaled = torch.cat(list(scaled_rows(study, sites).values()))
    present = torch.cat([data.present[data.rows[Split.TRAIN]] for data in sites.values()])
    label = torch.cat([data.label[data.rows[Split.TRAIN]] for data in sites.values()])
    model = build_model(study)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for number in range(1, study.training.rounds + 1):
        loss = functional.cross_entropy(model.logits(scaled, present), label)
        gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.sub_(0.2 * (gradient + 0.01 * parameter))
        for name, value in model.named_parameters():
            torch.testing.assert_close(
                found[number][name], value.detach(), rtol=1e-4, atol=1e-5, msg=f"round {number}: {name}"
            )
    moved = max((value - before[name]).abs().max().item() for name, value in model.named_parameters())
    assert moved > 0.05


def test_the_centralised_run_trains_on_the_rows_of_all_sites(tmp_path):
    study = tiny_study(
        model={"dropout": 0.0, "order": "fixed"},
        training={
            "optimizer": "sgd",
            "batch_size": 1000,
            "noise_probability": 0.0,
            "learning_rate": 0.2,
            "weight_decay": 0.0,
        },
    )
    federation = tiny_federation(tmp_path / "fed", study)
    federated = models_of(federation, tmp_path / "federated", study)
    central = models_of(federation, tmp_path / "centralised", study, mode="centralised")
    for number, tensors in federated.items():
        for name, value in tensors.items():
            torch.testing.assert_close(central[number][name], value, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    federation = tiny_federation(folder / "fed", patients=80)
    run_nodes(federation, folder / "run")
    return federation, folder / "run"


@pytest.mark.parametrize("split", [Split.VAL, Split.TEST])
def test_metrics_over_sites_are_those_of_the_pooled_rows(finished, split):
    """The handed-out model, scaling included, is asked about every site's rows, far from the federation."""
    federation, out = finished
    found = json.loads((out / "result.json").read_text())["metrics"][
        "validation" if split is Split.VAL else "test"
    ]
    model = load_model(out / "model")
    logits, labels = {}, {}
    for site, data in site_data(federation).items():
        rows = data.rows[split]
        batch = Batch(tuple(part[rows] for part in data.embedding), data.present[rows])
        with torch.inference_mode():
            logits[site], labels[site] = model(batch), data.label[rows]
    logits["pooled"] = torch.cat([logits[site] for site in SITES])
    labels["pooled"] = torch.cat([labels[site] for site in SITES])
    for name, values in {"pooled": found["pooled"], **found["sites"]}.items():
        label = labels[name].numpy()
        score = logits[name].double().softmax(dim=1)[:, 1].numpy()
        predicted = logits[name].argmax(dim=1).numpy()
        wanted = {
            "n": len(label),
            "accuracy": reference.accuracy_score(label, predicted),
            "balanced_accuracy": reference.balanced_accuracy_score(label, predicted),
            "f1": reference.f1_score(label, predicted, zero_division=0),
            "precision": reference.precision_score(label, predicted, zero_division=0),
            "recall": reference.recall_score(label, predicted),
            "macro_f1": reference.f1_score(label, predicted, average="macro", zero_division=0),
            "log_loss": reference.log_loss(label, score),
            "brier": reference.brier_score_loss(label, score),
        }
        assert {key: values[key] for key in wanted} == pytest.approx(wanted, abs=1e-6), name
        bound = MetricState.of(logits[name], labels[name]).auc_error_bound()
        assert values["auc"] == pytest.approx(reference.roc_auc_score(label, score), abs=bound + 1e-9), name


def test_the_scaling_that_travels_is_the_pooled_train_rows(finished):
    federation, out = finished
    model = load_model(out / "model")
    sites = site_data(federation)
    for slot in range(2):
        pooled = np.concatenate(
            [
                data.embedding[slot][rows[data.present[rows, slot]]].double().numpy()
                for data in sites.values()
                for rows in [data.rows[Split.TRAIN]]
            ]
        )
        mean, deviation = (model.scaling.get_buffer(f"{name}_{slot}") for name in ("mean", "deviation"))
        np.testing.assert_allclose(mean.numpy(), pooled.mean(0), rtol=1e-5)
        np.testing.assert_allclose(deviation.numpy(), pooled.std(0), rtol=1e-4)


def test_patterns_sum_to_the_pooled_rows(finished):
    result = json.loads((finished[1] / "result.json").read_text())["metrics"]["test"]
    assert sum(pattern["n"] for pattern in result["patterns"].values()) == result["pooled"]["n"]
    weighted = sum(pattern["n"] * pattern["accuracy"] for pattern in result["patterns"].values())
    assert weighted / result["pooled"]["n"] == pytest.approx(result["pooled"]["accuracy"])
