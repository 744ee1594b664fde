"""Journals made in code."""

import json
from datetime import UTC, datetime
from pathlib import Path

START = 1_700_000_000.0
STUDY = {
    "study": {"name": "tiny"},
    "modality": [{"name": "ct"}, {"name": "wsi"}],
    "model": {"name": "mmare"},
    "training": {"rounds": 9},
    "federation": "somewhere",
    "privacy": {"min_count": 0},
}
TOML = '[federation]\nmin_sites = 2\ndeadline_s = 30\nstrategy = "fedavg"\n'


def event(kind, at=0.0, **content):
    time = datetime.fromtimestamp(START + at, UTC).isoformat()
    return {"event": kind, "time": time, "run": "tiny-0123abcd", **content}


def started(at=0.0, **changes):
    return event(
        "run_started",
        at,
        settings={**STUDY, **changes},
        versions={"torch": "2.15.0+cpu"},
        mode="federated",
        backend="ray",
    )


def called(site, at=1.0, samples=40, patterns=None, accepted=True, reason=None, modalities=("ct", "wsi")):
    counts = {"splits": {}, "patterns": {"train": patterns or {"11": samples}}}
    encoders = dict.fromkeys(modalities, "given")
    return event(
        "roll_call",
        at,
        site=site,
        accepted=accepted,
        reason=reason,
        samples=samples,
        encoders=encoders,
        counts=counts,
    )


def update(site, number, at=2.0, norm=1.0, samples=40, **more):
    return event(
        "site_update",
        at,
        round=number,
        site=site,
        samples=samples,
        seconds=1.0,
        bytes_up=100,
        bytes_down=200,
        norm=norm,
        train_loss=0.5,
        **more,
    )


def left_out(site, number, reason, at=2.0):
    return event("site_left_out", at, round=number, site=site, reason=reason)


def aggregated(number, at=3.0, **exposure):
    seconds = {"wait": 2.0, "evaluate": 0.02, "aggregate": 0.2}
    return event("aggregated", at, round=number, seconds=seconds, exposure=exposure)


def validated(number, pooled, at=3.0, n=60, loss=None, **sites):
    metrics = {
        "pooled": {"n": n, "balanced_accuracy": pooled, "log_loss": 1 - pooled if loss is None else loss},
        "sites": {name: {"n": rows, "balanced_accuracy": score} for name, (rows, score) in sites.items()},
    }
    return event("validated", at, round=number, metrics=metrics)


def a_round(number, sites, at=0.0, **exposure):
    return [
        event("round_started", at, round=number),
        *(update(site, number, at + 1) for site in sites),
        aggregated(number, at + 2, **exposure),
        event("checkpoint", at + 2.5, round=number, file="round.safetensors", bytes=1000, seconds=0.3),
    ]


def read_journal(path):
    """The lines that still count: what was written of rounds after the one resumed from does not."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        entry = json.loads(line)
        if "resumed_from" in entry:
            found = [other for other in found if other.get("round", 0) <= entry["resumed_from"]]
        found.append(entry)
    return found


def write(folder: Path, events, tail=b"", mode="wb"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(TOML)
    lines = b"".join(json.dumps(each).encode() + b"\n" for each in events)
    with (folder / "rounds.jsonl").open(mode) as file:
        file.write(lines + tail)
    return folder
