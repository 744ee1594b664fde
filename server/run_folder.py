"""One run in its folder: begin, resume or refuse; journal, checkpoints, model, result."""

from __future__ import annotations

import fcntl
import json
import platform
import re
import shutil
import uuid
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import tomli_w

from mmare.errors import InputError, MmareError, RunError, StudyError
from mmare.models.registry import MODELS, build_model, model_options
from mmare.wire.tensors import global_tensors
from server.journal import Journal, read_journal
from server.model_file import save_model
from server.roll_call import roll_call
from server.rounds import Mode, Outcome, Plan, RoundLoop
from server.strategy import strategy_of
from server.upload import Upload

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mmare.study.study import Study
    from server.fleet import Fleet
    from server.journal import Listener

__all__ = ["RunSettings", "check_run", "execute", "finished_result"]

JOURNAL, RESULT, STUDY = "rounds.jsonl", "result.json", "study.toml"
MOST_MODALITIES: Final = 6  # whose subsets are tested: 63
_OWN: Final = (JOURNAL, RESULT, STUDY, "report.html", "checkpoints", "model", "spool", "local", ".lock")


@dataclass(frozen=True)
class RunSettings:
    """What a run is, besides its study.

    Args:
        out: Run folder.
        federation: Where the sites come from; another federation is another run.
        mode: Where the rows that train lie.
        backend: Who carries messages; noted, a run may be resumed on another.
        overwrite: Replace a run with other settings.
        trainer: Of a centralised run: the site that pools the others' rows.
        expected_nodes: Nodes to wait for; 0 where unknown.
        subsets: Whether to test every subset of modalities too.
    """

    out: Path
    federation: str
    mode: Mode = Mode.FEDERATED
    backend: str = "inprocess"
    overwrite: bool = False
    trainer: str = ""
    expected_nodes: int = 0
    subsets: bool = False


def finished_result(study: Study, settings: RunSettings) -> dict[str, Any] | None:
    """The result of a run that is finished with the same settings, or nothing.

    Raises:
        InputError: If the folder holds a run with other settings, or something that is not a run.
    """
    out = settings.out
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, expected a folder")
    if not out.exists():
        return None
    started = _first_start(out)
    if started is None:
        foreign = sorted(path.name for path in out.iterdir() if path.name not in _OWN)
        if foreign:
            raise InputError(f"{out}: holds {foreign[0]!r} and no run; choose an empty folder")
    if started is None or settings.overwrite:
        return None
    wanted = _settings_table(study, settings)
    for key, value in wanted.items():
        if started["settings"].get(key) != value:
            raise InputError(
                f"{out}: holds a run with another {_difference(key, started['settings'].get(key), value)}; "
                "choose another folder, or --overwrite to replace it"
            )
    path = out / RESULT
    if not path.exists():
        return None
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None  # the run is taken up again and writes it anew
    return result


def check_run(study: Study, mode: Mode, *, subsets: bool = False) -> None:
    """Refuse a study that cannot be run in a mode, before anything is written.

    Raises:
        StudyError: If model, strategy or local parts cannot be.
    """
    Upload(build_model(study), study)
    strategy_of(study.federation)
    if subsets and len(study.modalities) > MOST_MODALITIES:
        raise StudyError(
            f"subsets of {len(study.modalities)} modalities are too many to test, "
            f"expected at most {MOST_MODALITIES} modalities"
        )
    if study.federation.local and mode is not Mode.FEDERATED:
        raise StudyError(f"[federation] local names parts that stay at sites, which mode {mode} has none of")


def execute(
    fleet: Fleet, study: Study, settings: RunSettings, listeners: tuple[Listener, ...] = ()
) -> dict[str, Any]:
    """Run to the end, from wherever an earlier attempt got, and write the result.

    Args:
        fleet: The nodes.
        study: With all overrides applied.
        settings: Of the run.
        listeners: Called with every event of the journal.

    Returns:
        The content of ``result.json``.

    Raises:
        InputError: If the settings cannot be run.
        RunError: If the run failed; the same settings resume it.
    """
    done = finished_result(study, settings)
    if done is not None:
        return done
    check_run(study, settings.mode, subsets=settings.subsets)
    out = settings.out
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        if settings.overwrite:
            _clear(out)
        started = _first_start(out)
        run = started["run"] if started else f"{_slug(study.name)}-{uuid.uuid4().hex[:8]}"
        (out / STUDY).write_text(tomli_w.dumps(study.to_dict()), encoding="utf-8")
        journal = Journal(out / JOURNAL, run, listeners)
        journal.write(
            "run_started",
            settings=_settings_table(study, settings),
            versions=_versions(),
            hash=study.hash,
            mode=settings.mode,
            backend=settings.backend,
        )
        try:
            result = _run(fleet, study, settings, journal, run)
        except MmareError as error:
            journal.write("run_failed", reason=str(error))
            raise
        except KeyboardInterrupt:
            journal.write("run_failed", reason="interrupted")
            raise RunError("interrupted; the same command resumes the run") from None
        _write_atomically(out / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")
        journal.write("run_finished", **{key: result[key] for key in ("rounds_run", "best_round", "seconds")})
    return result


def _run(fleet: Fleet, study: Study, settings: RunSettings, journal: Journal, run: str) -> dict[str, Any]:
    out = settings.out
    common = _common(study, settings)
    if settings.mode is not Mode.LOCAL:
        loop = RoundLoop(
            fleet,
            study,
            out,
            journal,
            run,
            Plan(settings.mode, settings.trainer, settings.expected_nodes, settings.subsets),
        )
        outcome = loop.run()
        facts = {"run": run, "round": outcome.best_round, "notes": _of_model(study)}
        save_model(out / "model", study, outcome.tensors, facts)
        told = {"left_out": _left_out(out), "notes": [*_notes(out), *_of_model(study)]}
        return {**common, **_facts(outcome), "metrics": outcome.metrics, **told}
    members = roll_call(fleet, study, run, journal, settings.expected_nodes or 1)
    trainers = [site for site, member in members.items() if member.call.samples > 0]
    if not trainers:
        raise RunError("no site with training rows took part in the roll call")
    local: dict[str, Any] = {}
    outcomes = []
    for site in trainers:
        folder = out / "local" / site
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STUDY).write_text(tomli_w.dumps(study.to_dict()), encoding="utf-8")
        own = Journal(folder / JOURNAL, f"{run}-{site}", journal.listeners)
        own.write("run_started", mode=Mode.LOCAL, site=site, hash=study.hash)
        loop = RoundLoop(
            fleet,
            study,
            folder,
            own,
            f"{run}-{site}",
            Plan(Mode.LOCAL, site, len(members), settings.subsets),
        )
        outcome = loop.run()
        outcomes.append(outcome)
        save_model(folder / "model", study, outcome.tensors, {"run": run, "round": outcome.best_round})
        own.write("run_finished", **_facts(outcome))
        local[site] = {**_facts(outcome), "metrics": _local_metrics(outcome, site)}
    totals = {
        phase: sum(outcome.progress.seconds.get(phase, 0.0) for outcome in outcomes)
        for phase in ("total", "setup", "rounds", "train")
    }
    longest = max(outcomes, key=lambda outcome: outcome.progress.round)
    return {
        **common,
        **_facts(longest),
        "seconds": totals,
        "local": local,
        "left_out": _left_out(out),
        "notes": [*_notes(out), *_of_model(study)],
    }


def _local_metrics(outcome: Outcome, site: str) -> dict[str, Any]:
    test = outcome.metrics["test"]
    return {
        "validation": outcome.metrics["validation"]["pooled"],
        "test": {
            "own": test["sites"].get(site),
            **{name: test[name] for name in ("pooled", "sites", "subsets")},
        },
    }


def _common(study: Study, settings: RunSettings) -> dict[str, Any]:
    model = build_model(study)
    return {
        "study": study.name,
        "model": study.model.name,
        "strategy": study.federation.strategy,
        "mode": settings.mode.value,
        "seed": study.seed,
        "backend": settings.backend,
        "parameters": {
            "trainable": sum(value.numel() for value in model.parameters()),
            "federated": sum(value.numel() for value in Upload(model, study).tensors.values()),
            "buffers": sum(value.numel() for value in global_tensors(model).values())
            - sum(value.numel() for value in model.parameters()),
        },
        "versions": _versions(),
    }


def _facts(outcome: Outcome) -> dict[str, Any]:
    progress = outcome.progress
    return {
        "rounds_run": progress.round,
        "best_round": outcome.best_round,
        "bytes": {"down_per_round": progress.bytes_down, "up_per_round": progress.bytes_up},
        "seconds": {
            phase: progress.seconds.get(phase, 0.0) for phase in ("total", "setup", "rounds", "train")
        },
    }


def _left_out(out: Path) -> list[dict[str, Any]]:
    """Who was left out when and why, from the journals; round 0 is the roll call."""
    found = []
    for path in [out / JOURNAL, *sorted((out / "local").glob(f"*/{JOURNAL}"))]:
        for event in read_journal(path):
            if event["event"] == "site_left_out" or (event["event"] == "roll_call" and not event["accepted"]):
                at_test = " (at the test)" if event.get("phase") == "test" else ""
                entry = {
                    "site": event["site"],
                    "round": event.get("round", 0),
                    "reason": event["reason"] + at_test,
                }
                if entry not in found:
                    found.append(entry)
    return found


def _notes(out: Path) -> list[str]:
    """What sites said of their features at the roll call, each once."""
    events = read_journal(out / JOURNAL)
    return list(dict.fromkeys(note for event in events for note in event.get("notes", [])))


def _of_model(study: Study) -> list[str]:
    """What a reader must know of the model and its figures: what it stands for, what stayed at the sites."""
    parts = ", ".join(study.federation.local)
    stay = f"{parts} stay at each site: metrics are with the sites' own, the model has their starting values"
    return [note for note in (MODELS[study.model.name].NOTE, stay if parts else "") if note]


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("federated-mmare", "flwr", "numpy", "torch")}
    return {**packages, "python": platform.python_version()}


def _settings_table(study: Study, settings: RunSettings) -> dict[str, Any]:
    model = {"name": study.model.name, **asdict(model_options(study))}
    table = {
        **study.to_dict(),
        "model": model,
        "mode": settings.mode.value,
        "federation": settings.federation,
        "subsets": settings.subsets,
    }
    plain: dict[str, Any] = json.loads(json.dumps(table))  # as the journal gives it back
    return plain


def _first_start(out: Path) -> dict[str, Any] | None:
    events = read_journal(out / JOURNAL)
    return next((event for event in events if event["event"] == "run_started"), None)


def _difference(key: str, found: Any, wanted: Any) -> str:  # noqa: ANN401 - JSON values
    """Name one setting that differs."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in sorted({*found, *wanted}):
            if found.get(name) != wanted.get(name):
                return f"{key}.{name}: {found.get(name)!r}, now {wanted.get(name)!r}"
    if isinstance(found, list):
        return key
    return f"{key}: {found!r}, now {wanted!r}"


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder's lock.

    Raises:
        InputError: If another process holds it.
    """
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{out}: another process is running this run") from None
        yield


def _clear(out: Path) -> None:
    for name in _OWN:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        elif name != ".lock":
            path.unlink(missing_ok=True)


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or "run"
