"""Tiny federations in code: studies, folders, site data, and runs of them through the real apps."""

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from client.data.dataset import SiteData
from client.relay.app import app as client_app
from client.relay.app import register_factory
from mmare.errors import Reason
from mmare.models.registry import build_model
from mmare.study.choices import Mode
from mmare.study.study import Study, parse_study
from mmare.wire.messages import Endpoint, Request, Split, Task, Update, decode, encode
from mmare.wire.tensors import global_tensors, layout_of, unpack
from server.rounds.fleet import Answer
from server.rounds.flower_fleet import GridFleet
from server.run.folder import execute
from server.run.request import RunRequest
from server.store.checkpoint import read_checkpoint
from simulation.engine import InProcessGrid, held_up_s
from simulation.nodes import site_of_partition
from sites.federation import SiteTables, site_folders, write_federation
from tests.server.journals import read_journal

SITES = ("ash", "birch", "cedar")
WIDTHS = {"ct": 8, "wsi": 16}  # wsi has the model's width, so it gets no adapter
SPLITS = ("train", "train", "val", "test")

Fault = Callable[[Endpoint, str, bytes], tuple[str, bytes]]  # of the real site, header, payload


class KilledError(BaseException):
    """Ends a run in this process: nobody handles it, as nobody handles SIGKILL."""


def tiny_study(**sections: Mapping[str, Any]) -> Study:
    """A study of two features modalities; a keyword changes keys of its section, such as ``training``."""
    content: dict[str, Any] = {
        "study": {"name": "tiny", "classes": ["no", "yes"], "positive": "yes", "seed": 3},
        "modality": [
            {"name": name, "kind": "features", "width": width, "scaling": "zscore"}
            for name, width in WIDTHS.items()
        ],
        "model": {"name": "mmare", "width": 16},
        "training": {"rounds": 4, "batch_size": 8, "learning_rate": 0.01, "noise_probability": 0.3},
        "federation": {"min_sites": 2, "deadline_s": 30},
        "privacy": {"min_count": 0},
    }
    for name, changes in sections.items():
        if isinstance(content[name], dict):
            content[name] |= changes
        else:
            content[name] = changes
    return parse_study(content, source="test")


def survival_study(**sections: Mapping[str, Any]) -> Study:
    """The same of the time to an event."""
    content = tiny_study(**sections).to_dict()
    del content["training"]["select"]
    content |= {
        "study": {"name": "tiny", "task": "survival", "seed": 3},
        "survival": {"follow_up": 80.0, "intervals": 4},
    }
    return parse_study(content, source="test")


def site_tables(name: str, study: Study, patients: int, seed: int, missing: float) -> SiteTables:
    """One site whose features are noise plus the label; nobody lacks all modalities."""
    random = np.random.default_rng([seed, *name.encode()])
    ids = [f"{name}-{row}" for row in range(patients)]
    label = np.arange(patients) // len(SPLITS) % len(study.classes)  # every split has every class
    absent = random.random((patients, len(study.modalities))) < missing
    absent[absent.all(axis=1), 0] = False
    features = {
        modality.name: {
            patient: (random.normal(size=modality.width) * 2 + label[row] + len(name)).astype(np.float32)
            for row, patient in enumerate(ids)
            if not absent[row, slot]
        }
        for slot, modality in enumerate(study.modalities)
    }
    times = {"time": random.uniform(1, 60, patients) * (1.5 - label), "event": label}
    manifest = pd.DataFrame(
        {
            "patient_id": ids,
            **(times if study.survival else {"label": [study.classes[value] for value in label]}),
            "split": [SPLITS[row % len(SPLITS)] for row in range(patients)],
        }
    )
    return SiteTables(name, manifest, features)


def tiny_federation(
    folder: Path,
    study: Study | None = None,
    sites: Sequence[str] = SITES,
    patients: int = 40,
    seed: int = 3,  # with it the second and the fourth round are better than those before
    missing: float = 0.3,
) -> Path:
    """Write a federation folder; sites differ in size, the first has ``patients``, each next eight more."""
    study = study or tiny_study()
    tables = [
        site_tables(name, study, patients + 8 * index, seed, missing) for index, name in enumerate(sites)
    ]
    write_federation(folder, study, tables)
    return folder


def tiny_data(study: Study, patients: int = 40, seed: int = 0, missing: float = 0.3) -> SiteData:
    """A site's data without files; labels and splits as in `site_tables`."""
    random = np.random.default_rng(seed)
    row = np.arange(patients)
    label = row // len(SPLITS) % len(study.classes)
    present = random.random((patients, len(study.modalities))) >= missing
    present[~present.any(axis=1), 0] = True
    embedding = [
        random.normal(size=(patients, modality.width)) * 2 + label[:, None] for modality in study.modalities
    ]
    return SiteData(
        embedding=tuple(
            torch.from_numpy(np.where(present[:, [slot]], values, 0).astype(np.float32))
            for slot, values in enumerate(embedding)
        ),
        present=torch.from_numpy(present),
        label=torch.from_numpy(label),
        rows={
            split: torch.from_numpy(np.flatnonzero(np.array(SPLITS)[row % len(SPLITS)] == split.value))
            for split in Split
        },
        encoders={modality.name: "given" for modality in study.modalities},
    )


# Runs


def request_of(
    federation: Path, out: Path, mode: str = "federated", settings: Sequence[str] = (), **more: Any
) -> RunRequest:
    """What ``mmare-sim run`` asks for: a node per site, and one that pools their rows where that is asked."""
    sites = [site.id for site in site_folders(federation)]
    pools = mode == "centralised"
    return RunRequest(
        federation,
        out,
        Mode(mode),
        tuple(settings),
        trainer="+".join(sites) if pools else "",
        nodes=len(sites) + (pools and len(sites) > 1),
        backend="inprocess",
        **more,
    )


def node_configs(nodes: int, faults: Mapping[int, Fault]) -> list[dict[str, Any]]:
    """Partitions whose real sites are reached through ``faults``."""
    name = f"faulty-{uuid.uuid4().hex}"

    def factory(node: Mapping[str, object], run: Mapping[str, object]) -> Endpoint:
        site = site_of_partition(node, run)
        fault = faults.get(int(str(node["partition-id"])))
        if fault is None:
            return site
        return lambda header, payload: fault(site, header, payload)

    register_factory(name, factory)
    return [{"partition-id": index, "num-partitions": nodes, "site-factory": name} for index in range(nodes)]


def run_nodes(
    federation: Path,
    out: Path,
    *,
    mode: str = "federated",
    settings: Sequence[str] = (),
    faults: Mapping[int, Fault] | None = None,
    listeners: tuple[Callable[[Mapping[str, Any]], None], ...] = (),
    overwrite: bool = False,
    workers: int = 1,
    reverse: bool = False,
) -> dict[str, Any]:
    """What `simulation.engine.run_in_process` does, less the report, which has tests of its own.

    Args:
        federation: Folder.
        out: Run folder.
        mode: Of the run.
        settings: ``section.key=value``.
        faults: By partition.
        listeners: Of the journal.
        overwrite: As on the command line.
        workers: Sites side by side.
        reverse: Nodes in reversed order of partitions.
    """
    request = request_of(federation, out, mode, settings, overwrite=overwrite)
    configs = node_configs(request.nodes, faults or {})
    configs = configs[::-1] if reverse else configs
    held_s = held_up_s(request.study.federation.deadline_s)
    grid = InProcessGrid(client_app, configs, request.to_config(), workers, held_s)
    return execute(GridFleet(grid, poll_s=0.0), request, listeners)


def events(out: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Events of a run's journal that count, of one kind or all."""
    return [event for event in read_journal(out / "rounds.jsonl") if kind in (None, event["event"])]


def all_events(out: Path) -> list[dict[str, Any]]:
    """Every line of a run's journal, of earlier attempts too."""
    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


def weights(out: Path) -> bytes:
    """The file that a run hands out."""
    return (out / "model" / "model.safetensors").read_bytes()


def outcome(out: Path) -> dict[str, Any]:
    """All that two runs which are the same must agree on, bit for bit."""
    result = json.loads((out / "result.json").read_text())
    last = max((out / "checkpoints").glob("round-*.safetensors"))
    tensors, state = read_checkpoint(last)
    return {
        "model": weights(out),
        "last": (last.name, tensors["model"].numpy().tobytes(), state["selection"], state["state_rounds"]),
        **{key: result[key] for key in ("metrics", "best_round", "rounds_run", "left_out")},
        "validated": {event["round"]: event["metrics"] for event in events(out, "validated")},
    }


def checkpoint_tensors(path: Path, study: Study) -> dict[str, torch.Tensor]:
    """Model of a checkpoint file by tensor name."""
    return unpack(read_checkpoint(path)[0]["model"], layout_of(global_tensors(build_model(study))))


@dataclass
class ModelsByRound:
    """Listens to a run and keeps the model of every checkpoint that it writes."""

    folder: Path
    study: Study
    models: dict[int, dict[str, torch.Tensor]]

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "checkpoint":
            found = checkpoint_tensors(self.folder / "checkpoints" / event["file"], self.study)
            self.models[event["round"]] = {name: value.clone() for name, value in found.items()}


# Faults


def while_training(fault: Fault, *rounds: int) -> Fault:
    """A fault in training messages of the given rounds, of every round where none is given."""

    def maybe(site: Endpoint, header: str, payload: bytes) -> tuple[str, bytes]:
        request = decode(Request, header)
        hit = request.task is Task.TRAIN and (not rounds or request.round in rounds)
        return fault(site, header, payload) if hit else site(header, payload)

    return maybe


def with_update(change: Callable[[Update], Update]) -> Fault:
    """A site that trains and then says something else about it."""

    def lying(site: Endpoint, header: str, payload: bytes) -> tuple[str, bytes]:
        answer, tensors = site(header, payload)
        return encode(change(decode(Update, answer))), tensors

    return lying


def claiming(**fields: object) -> Fault:
    """A site whose update has other fields than the true ones."""
    return with_update(lambda update: replace(update, **fields))


class CallableFleet:
    """A fleet of functions in this process; ``None`` is a node that never answers."""

    def __init__(self, *endpoints: Endpoint | None) -> None:
        self._endpoints = dict(enumerate(endpoints, start=1))

    def nodes(self, at_least: int, deadline_s: float) -> Sequence[int]:
        assert at_least >= 0
        assert deadline_s > 0
        return list(self._endpoints)

    def ask(
        self, requests: Mapping[int, str], payload: bytes, deadline_s: float, _round_bytes: int = 0
    ) -> Iterator[Answer]:
        assert deadline_s > 0
        for node, header in requests.items():
            endpoint = self._endpoints[node]
            if endpoint is None:
                continue
            try:
                answer, tensors = endpoint(header, payload)
            except Exception as error:
                yield Answer(
                    node, None, failure=f"node failed ({type(error).__name__})", code=Reason.NODE_FAILED
                )
            else:
                yield Answer(node, answer, tensors)
