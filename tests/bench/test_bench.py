"""Measurements, printed; what is gated are exact numbers. Run with ``make bench``."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from client.training.optimizers import PhaseOptimizers
from mmare.models.registry import MODELS, build_model
from mmare.study.choices import Backend, Kind, Scaling, Wire
from mmare.study.specs import FederationSpec, ModalitySpec, ModelSpec, PrivacySpec, TrainingSpec
from mmare.study.strategy_options import STRATEGY_OPTIONS
from mmare.study.study import Study
from mmare.wire.tensors import layout_of, trained_tensors
from server.aggregation.mean import Contribution
from server.aggregation.strategies import Gathered, strategy_of
from server.rounds.update_checks import Upload
from server.run.request import RunRequest
from simulation.run import run_federation
from sites.datasets.mmist import prepare_mmist
from sites.federation import SiteTables, write_federation
from sites.options import Grouping
from tests.bench.plain import PlainMMARE
from tests.bench.printed import DEVICES, report
from tests.data_folder import data_folder
from tests.server.journals import read_journal

pytestmark = [pytest.mark.bench, pytest.mark.filterwarnings("default")]

WIDTHS = {"ct": 512, "mri": 512, "wsi": 1024, "text": 512}
SHARES = {"ct": 0.39, "mri": 0.08, "wsi": 1.0, "text": 1.0}  # of patients who have it, as in MMIST-ccRCC
PARAMETERS = 1_483_906
MMARE_SIM = str(Path(sys.executable).parent / "mmare-sim")


def study(model="mmare", **training):
    return Study(
        "bench",
        ("dead", "alive"),
        tuple(
            ModalitySpec(name, Kind.FEATURES, width, scaling=Scaling.ZSCORE) for name, width in WIDTHS.items()
        ),
        "alive",
        model=ModelSpec(model),
        training=TrainingSpec(patience=1000, noise_probability=0.3, **training),
        privacy=PrivacySpec(min_count=0),
    )


def federation(folder, sites, patients, **training):
    generator = np.random.default_rng(0)
    tables = []
    for site in range(sites):
        ids = [f"s{site:03d}p{patient:04d}" for patient in range(patients)]
        splits = [
            "test" if index % 5 == 0 else "val" if index % 10 == 1 else "train" for index in range(patients)
        ]
        labels = ["dead" if index % 7 == 0 else "alive" for index in range(patients)]
        features = {
            name: {
                patient: generator.standard_normal(width).astype(np.float32)
                for patient in ids
                if generator.random() < SHARES[name]
            }
            for name, width in WIDTHS.items()
        }
        manifest = pd.DataFrame({"patient_id": ids, "label": labels, "split": splits})
        tables.append(SiteTables(f"site{site:03d}", manifest, features, {}))
    write_federation(folder, study(**training), tables)
    return folder


def median_ms(call, times):
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        spent.append((time.perf_counter() - began) * 1e3)
    return statistics.median(spent)


def rows(n=64):
    generator = torch.Generator().manual_seed(0)
    embedding = [torch.randn(n, width, generator=generator) for width in WIDTHS.values()]
    present = torch.rand(n, len(WIDTHS), generator=generator) < torch.tensor(list(SHARES.values()))
    return embedding, present, torch.randint(2, (n,), generator=generator)


def test_local_step():
    torch.set_num_threads(1)
    embedding, present, label = rows()
    model, plain = build_model(study()), PlainMMARE(list(WIDTHS.values()), 2)
    assert sum(value.numel() for value in model.parameters()) == PARAMETERS
    assert sum(value.numel() for value in plain.parameters()) == PARAMETERS
    generator = torch.Generator().manual_seed(0)
    ((_, optimizer),) = PhaseOptimizers(model, model.phases()[0], study().training).steps
    default = torch.optim.Adam(plain.parameters(), lr=1e-4, weight_decay=1e-4)
    scaled = model.scaling(embedding, present)

    def ours():
        optimizer.zero_grad(set_to_none=True)
        model.loss(scaled, present, label, generator).backward()
        optimizer.step()

    def straightforward():
        default.zero_grad()
        functional.cross_entropy(plain(embedding, present), label).backward()
        default.step()

    pairs = [(median_ms(ours, 5), median_ms(straightforward, 5)) for _ in range(40)]
    report(
        "local step, 64 patients",
        ours_ms=f"{statistics.median(pair[0] for pair in pairs):.2f}",
        plain_ms=f"{statistics.median(pair[1] for pair in pairs):.2f}",
        ratio=f"{statistics.median(pair[1] / pair[0] for pair in pairs):.2f}",
    )


def overheads(run):
    """Milliseconds a round beyond what the sites themselves spent, and that."""
    events = read_journal(run / "rounds.jsonl")
    starts = {
        e["round"]: datetime.fromisoformat(e["time"]).timestamp()
        for e in events
        if e["event"] == "round_started"
    }
    local = {}
    for event in events:
        if event["event"] == "site_update" and event["train_loss"] is not None:
            local[event["round"]] = local.get(event["round"], 0) + event["seconds"]
    pairs = [
        (starts[number + 1] - starts[number], local[number])
        for number in starts
        if number + 1 in starts and number > 2
    ]
    return [1e3 * (total - spent) for total, spent in pairs], [1e3 * spent for _, spent in pairs]


def test_round_overhead_in_process_and_ray(tmp_path):
    folder = federation(tmp_path / "federation", 3, 200, rounds=20)
    for backend in Backend:
        result = run_federation(RunRequest(folder, tmp_path / backend, backend=backend))
        over, local = overheads(tmp_path / backend)
        assert result["parameters"]["federated"] == PARAMETERS
        whole = layout_of(trained_tensors(build_model(study()))).size
        upload = whole - 2 * 2 * 512 * 4  # slides and texts are never missing: two columns of both maps stay
        assert 3 * upload < result["bytes"]["up_per_round"] < 3 * (upload + 20_000)
        report(
            f"round, three sites, {backend}",
            beyond_local_ms=f"{statistics.median(over):.1f}",
            fastest_ms=f"{min(over):.1f}",
            local_ms=f"{statistics.median(local):.1f}",
            bytes_up=result["bytes"]["up_per_round"],
            bytes_down=result["bytes"]["down_per_round"],
        )


def test_start_up(tmp_path):
    folder = federation(tmp_path / "federation", 3, 200, rounds=1)
    seconds = []
    for attempt in range(5):
        out = tmp_path / f"run{attempt}"
        began = time.time()
        subprocess.run([MMARE_SIM, "run", str(folder), "--out", str(out)], check=True, capture_output=True)
        first = next(e for e in read_journal(out / "rounds.jsonl") if e["event"] == "round_started")
        seconds.append(datetime.fromisoformat(first["time"]).timestamp() - began)
    report("start of the command to first round", median_s=f"{statistics.median(seconds):.2f}")


@pytest.mark.parametrize("sites", [3, 30, 100, 300])
def test_peak_memory(tmp_path, sites):
    folder = federation(tmp_path / "federation", sites, 40, rounds=3)
    program = (
        "import json, sys; from pathlib import Path; from server.run.request import RunRequest; "
        "from simulation.run import run_federation; "
        "result = run_federation(RunRequest(Path(sys.argv[1]), Path(sys.argv[2]))); "
        "status = Path('/proc/self/status').read_text().split(); "
        "print(json.dumps([int(status[status.index('VmHWM:') + 1]) / 1024, result['seconds']['rounds']]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(tmp_path / "run")],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    peak, seconds = json.loads(done.stdout.splitlines()[-1])
    report(f"memory, {sites} sites", peak_mb=f"{peak:.0f}", seconds_a_round=f"{seconds / 3:.2f}")
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("strategy", sorted(STRATEGY_OPTIONS))
@pytest.mark.parametrize("updates", [3, 30, 300])
def test_aggregation(updates, strategy):
    """Tensors come from memory here; a run maps them from the spool."""
    torch.set_num_threads(1)
    if strategy in {"fedmedian", "krum", "trimmed-mean"} and updates > 30:
        pytest.skip("Flower's classes hold all updates at once: 300 are 1.8 GB and minutes")
    model = build_model(study())
    upload = Upload(model, study())
    generator = torch.Generator().manual_seed(0)
    sent = [
        {
            name: value + torch.randn(value.shape, generator=generator)
            for name, value in upload.tensors.items()
        }
        for _ in range(3)
    ]
    blocks = tuple(upload.parts)
    contributions = [
        Contribution(
            f"{index:03d}", 10, dict.fromkeys(blocks, 10), blocks, lambda index=index: sent[index % 3]
        )
        for index in range(updates)
    ]
    step = strategy_of(FederationSpec(strategy))
    spent = median_ms(lambda: step(Gathered(upload.tensors, upload.parts, contributions)), 3)
    report(
        f"aggregation of {updates} updates, {strategy}", ms=f"{spent:.1f}", ms_each=f"{spent / updates:.2f}"
    )


@pytest.mark.parametrize("wire", list(Wire))
@pytest.mark.parametrize("strategy", ["fedavg", "exposure", "fedadam"])
def test_bytes_on_mmist_by_hospital(tmp_path, strategy, wire):
    source = data_folder("mmist")
    prepared = prepare_mmist(source, tmp_path / "federation", Grouping.HOSPITAL)
    settings = (f"federation.strategy={strategy}", f"federation.wire={wire}", "training.rounds=3")
    result = run_federation(RunRequest(prepared.folder, tmp_path / "run", set=settings))
    sites = len(prepared.sites)
    whole = layout_of(trained_tensors(build_model(prepared.study))).size
    up = result["bytes"]["up_per_round"] / sites
    assert up < whole if wire is Wire.FLOAT32 else up < whole / 2 + 20_000
    report(
        f"bytes a round and site, MMIST by hospital, {strategy}, {wire}",
        up=f"{up:.0f}",
        down=f"{result['bytes']['down_per_round'] / sites:.0f}",
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", sorted(MODELS))
def test_local_step_of_every_model(name, device):
    torch.set_num_threads(1)
    if name == "hypermm":
        pytest.skip("needs images; hypermm-embedding is its form for features")
    embedding, present, label = rows()
    embedding, present, label = [part.to(device) for part in embedding], present.to(device), label.to(device)
    model = build_model(study(name)).to(device)
    generator = torch.Generator().manual_seed(0)
    scaled = model.scaling(embedding, present)
    for phase in model.phases():
        steps = PhaseOptimizers(model, phase, study().training).steps

        def step(steps=steps):
            for objective, optimizer in steps:
                optimizer.zero_grad(set_to_none=True)
                objective.loss(scaled, present, label, generator).backward()
                optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()

        model.train()
        step()  # the first makes the optimiser's moments
        report(
            f"local step of {name}, phase {phase.name}, 64 patients, {device}",
            ms=f"{median_ms(step, 9):.1f}",
            parameters=sum(value.numel() for value in model.parameters()),
        )
