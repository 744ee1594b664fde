"""Whatever replaces a file does it by `mmare.host.files.replacing`: flushed first, and all or nothing."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.data.cache import EmbeddingCache
from client.encoders.preprocess import run_mask_command
from client.encoders.weights import PINS, pinned_hash
from client.ingest.convert import write_volume
from client.ingest.reasons import ScanReason, ScanRefused
from client.ingest.report import write_json
from client.ingest.volume import Volume
from client.privacy.approvals import ApprovalFolder
from client.training.kept.state import StateStore
from mmare.errors import MmareError
from mmare.host.files import write_whole
from mmare.models.registry import build_model
from mmare.wire.tensors import global_tensors
from server.store.checkpoint import write_checkpoint
from server.store.checkpoints import CheckpointStore, Progress
from server.store.model_file import save_model
from simulation.grid.result_log import keep_lines
from simulation.report.page import replace_page
from tests.federations import run_nodes, tiny_federation, tiny_study


def state(folder, value):
    store = StateStore(folder)
    store.save("run", 1, {"a": torch.tensor([float(value)])}, None)
    assert store.held("run")


def best(folder, value):
    store = CheckpointStore(folder)
    store.hold_best(value, {"a": torch.ones(2)})
    store.save({"a": torch.ones(2)}, Progress(value, {"round": value}))


def mask(folder, value):
    source = folder / "scan.nii"
    if not source.exists():
        source.write_text("scan")
    run_mask_command("cp {input} {output}", source, folder / f"mask-{value}.nii", 30)


def pins(folder, value):
    (folder / f"{value}.safetensors").write_bytes(b"weights")
    pinned_hash(folder, f"{value}.safetensors")


def model(folder, value):
    study = replace(tiny_study(), seed=value)
    save_model(folder, study, global_tensors(build_model(study)), {})


WRITERS = {
    "whole": lambda folder, value: write_whole(folder / "file", bytes(value)),
    "state of a site": state,
    "embedding": lambda folder, value: EmbeddingCache(folder).put("key", np.full(2, value, np.float32)),
    "refusal": lambda folder, value: EmbeddingCache(folder).put_refusal(
        "key", ScanRefused(ScanReason.MASK_COMMAND, f"detail {value}")
    ),
    "approval": lambda folder, value: ApprovalFolder(folder).record(tiny_study(), value),
    "report": lambda folder, value: write_json(folder / "report.json", {"version": value}),
    "volume": lambda folder, value: write_volume(
        Volume(np.full((2, 2, 2), value, np.int16), np.eye(4)), folder / "a.nii.gz"
    ),
    "mask": mask,
    PINS: pins,
    "checkpoint": lambda folder, value: write_checkpoint(folder / "c", {"a": torch.ones(value)}, {}),
    "checkpoints": lambda folder, value: CheckpointStore(folder).save({"a": torch.ones(2)}, Progress(value)),
    "best": best,
    "model": model,
    "failures": lambda folder, value: keep_lines(folder / "failures.jsonl", [{"cell": value}]),
    "page": lambda folder, value: replace_page(folder / "page.html", str(value)),
}


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def spied(monkeypatch):
    """Names of the files that took their place, each after it was flushed."""
    flushed, placed = set(), []
    fsync, move = os.fsync, os.replace

    def note_fsync(number):
        fsync(number)
        flushed.add(os.fstat(number).st_ino)

    def note_move(source, target, **options):
        assert Path(source).stat().st_ino in flushed, target
        move(source, target, **options)
        placed.append(Path(target).name)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_move)
    return placed


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_flushed_before_it_takes_its_place(tmp_path, monkeypatch, name):
    placed = spied(monkeypatch)
    WRITERS[name](tmp_path, 1)
    assert placed
    assert set(placed) <= {name.split("/")[-1] for name in content(tmp_path)}


@pytest.mark.parametrize("name", WRITERS)
def test_one_that_fails_leaves_what_was_there_and_no_other(tmp_path, monkeypatch, name):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    WRITERS[name](tmp_path, 1)
    before = content(tmp_path)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises((OSError, MmareError)):
        WRITERS[name](tmp_path, 2)
    left = content(tmp_path)
    assert {name: left[name] for name in before} == before
    assert all(left[new] in {b"checkpoint", b"weights"} for new in left.keys() - before.keys())


def test_what_a_run_leaves_was_flushed(tmp_path, monkeypatch):
    federation = tiny_federation(tmp_path / "federation")
    placed = spied(monkeypatch)
    run_nodes(federation, tmp_path / "run")
    assert {"study.toml", "result.json", "model.json", "model.safetensors"} < set(placed)
