"""Start, resume or refuse a run in its folder: journal, checkpoints, model, result."""

from __future__ import annotations

import json
import shutil
import uuid
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

import tomli_w

from mmare.errors import BusyError, Ending, InputError, MmareError, RunError, StudyError
from mmare.host.files import own_folder, replacing, slug
from mmare.host.locks import locked
from mmare.models.registry import model_options
from mmare.study.choices import ExtraAnswer, Mode
from mmare.study.study import STUDY_FILE
from mmare.wire.limits import MOST_NAME, MOST_PAYLOAD, RUN_NAME, run_name
from mmare.wire.sharing import every_round
from mmare.wire.tensors import global_tensors, layout_of
from server.aggregation.strategies import strategy_of
from server.monitoring.followed_run import read_run
from server.rounds.global_model import GlobalModel
from server.rounds.loop import RoundLoop
from server.rounds.plan import Plan
from server.rounds.roll_call import roll_call
from server.rounds.update_checks import Upload
from server.run.result import (
    TIMED,
    common_facts,
    encoders_of,
    left_out,
    local_metrics,
    notes_of_model,
    notes_of_selection,
    notes_of_sites,
    notes_of_training,
    outcome_facts,
    versions,
)
from server.store.events import RunFailed, RunFinished, RunStarted, StartedFrom
from server.store.journal import JOURNAL, LOCK, RESULT, Journal
from server.store.model_file import save_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from mmare.package.graft import Graft
    from mmare.package.start import StartModel
    from mmare.study.study import Study
    from server.rounds.fleet import Fleet
    from server.rounds.plan import Outcome
    from server.run.request import RunRequest
    from server.store.journal import Listener

__all__ = ["check_run", "execute", "finished_result"]

COMPARED: Final = 2  # models in one message, at most
MOST_MODALITIES: Final = 6  # to test, and hide, subsets of: 63
_OWN: Final = (JOURNAL, RESULT, STUDY_FILE, "report.html", "checkpoints", "model", "spool", "local", LOCK)


def finished_result(request: RunRequest) -> dict[str, Any] | None:
    """The result of a finished run with the same settings, if there is one.

    Raises:
        InputError: If the folder holds a run with other settings, or something that is not a run.
    """
    out = request.out
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, expected a folder")
    if not out.exists():
        return None
    started = read_run(out).first
    if started is None:
        foreign = sorted(path.name for path in out.iterdir() if path.name not in _OWN)
        if foreign:
            raise InputError(f"{out}: holds {foreign[0]!r} and no run; choose an empty folder")
    if started is None or request.overwrite:
        return None
    wanted = _settings_table(request)
    for key, value in wanted.items():
        if started.settings.get(key) != value:
            raise InputError(
                f"{out}: holds a run with another {_difference(key, started.settings.get(key), value)}; "
                "choose another folder, or --overwrite to replace it"
            )
    path = out / RESULT
    if not path.exists():
        return None
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None  # the run is resumed and rewrites it
    return result


def check_run(request: RunRequest) -> Graft:
    """Validate what is asked for, before anything is written; returns what fits of the study's start model.

    Raises:
        StudyError: If model, strategy, subsets or local parts cannot be used.
        InputError: If the study's start model cannot.
    """
    study = request.study
    begun = GlobalModel(study, request.start())
    model = begun.model
    Upload(model, study)
    size = COMPARED * layout_of(global_tensors(model)).size
    if size > MOST_PAYLOAD:
        raise StudyError(
            f"two models of {size // COMPARED >> 20} MiB are too large to send, expected at most "
            f"{MOST_PAYLOAD >> 20} MiB together"
        )
    strategy_of(study.federation)
    if request.subsets and len(study.modalities) > MOST_MODALITIES:
        raise StudyError(
            f"subsets of {len(study.modalities)} modalities are too many to test, "
            f"expected at most {MOST_MODALITIES} modalities"
        )
    if study.federation.local and request.mode is not Mode.FEDERATED:
        raise StudyError(
            f"[federation] local names parts that stay at sites, which mode {request.mode} has none of"
        )
    return begun.graft


def execute(
    fleet: Fleet,
    request: RunRequest,
    listeners: tuple[Listener, ...] = (),
    keeps: Callable[[str, int], bool] = every_round,
) -> dict[str, Any]:
    """Run, or resume an earlier attempt, to the end; write and return ``result.json``.

    Args:
        fleet: The nodes.
        request: Of the run.
        listeners: Called with every event of the journal.
        keeps: Whether a run saves a round, by the run's name, for a resume to continue from.

    Raises:
        InputError: If the request cannot be run.
        RunError: If the run failed; the same request resumes it.
    """
    done = finished_result(request)
    if done is not None:
        return done
    begun = check_run(request)
    study, out = request.study, request.out
    own_folder(out)
    with locked(out / LOCK, BusyError(f"{out}: another process is running this run"), mode=0o600):
        if request.overwrite:
            _clear(out)
        started = read_run(out).first
        run = started.run if started else run_name(slug(study.name) or "run", uuid.uuid4().hex[:8])
        if not RUN_NAME.fullmatch(run):
            raise InputError(
                f"{out}: the name of its run has {len(run)} characters, expected at most {MOST_NAME}; "
                "--overwrite begins another"
            )
        with replacing(out / STUDY_FILE, private=True) as partial:
            partial.write_text(tomli_w.dumps(study.to_dict()), encoding="utf-8")
        journal = Journal(out / JOURNAL, run, listeners)
        journal.write(_started(request))
        try:
            result = _run(fleet, request, begun, journal, run, keeps)
        except MmareError as error:
            journal.write(RunFailed(reason=str(error), code=error.ending))
            raise
        except KeyboardInterrupt:
            journal.write(RunFailed(reason="interrupted", code=Ending.INTERRUPTED))
            raise RunError("interrupted; the same command resumes the run") from None
        with replacing(out / RESULT, private=True) as partial:
            partial.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        journal.write(RunFinished(**{key: result[key] for key in ("rounds_run", "best_round", "seconds")}))
    return result


def _run(
    fleet: Fleet,
    request: RunRequest,
    begun: Graft,
    journal: Journal,
    run: str,
    keeps: Callable[[str, int], bool],
) -> dict[str, Any]:
    study, out = request.study, request.out
    common, start = common_facts(request), request.start()
    lineage: dict[str, Any] = {}
    if start is not None:
        lineage = {"start": {**start.lineage(), "taken": begun.taken, "left": begun.left}}
        journal.write(StartedFrom(lineage=start.lineage(), taken=tuple(begun.taken), left=begun.left))
        common |= lineage
    if request.mode is not Mode.LOCAL:
        calibration = ExtraAnswer.CALIBRATION in study.privacy.extra
        shapley = ExtraAnswer.SHAPLEY in study.privacy.extra and len(study.modalities) <= MOST_MODALITIES
        plan = Plan(request.mode, request.trainer, request.nodes, request.subsets, calibration, shapley)
        outcome = RoundLoop(fleet, study, out, journal, run, plan, start, keeps).run()
        facts = {
            "run": run,
            "round": outcome.best_round,
            "notes": notes_of_model(study),
            "encoders": encoders_of(out),
            **lineage,
        }
        save_model(out / "model", study, outcome.tensors, facts)
        remarks = _remarks(study, out, {"": outcome}, start)
        return {**common, **outcome_facts(outcome), "metrics": outcome.metrics, **remarks}
    members = roll_call(fleet, study, run, journal, request.nodes or 1)
    trainers = [site for site, member in members.items() if member.call.samples > 0]
    if not trainers:
        raise RunError("no site with training rows took part in the roll call", Ending.QUORUM)
    local: dict[str, Any] = {}
    alone: dict[str, Outcome] = {}
    for site in trainers:
        folder, alone_name = out / "local" / site, run_name(run, site)
        own_folder(folder)
        with replacing(folder / STUDY_FILE, private=True) as partial:
            partial.write_text(tomli_w.dumps(study.to_dict()), encoding="utf-8")
        own = Journal(folder / JOURNAL, alone_name, journal.listeners)
        own.write(replace(_started(request), site=site))
        plan = Plan(Mode.LOCAL, site, len(members), request.subsets)
        outcome = RoundLoop(fleet, study, folder, own, alone_name, plan, start, keeps).run()
        alone[site] = outcome
        save_model(folder / "model", study, outcome.tensors, {"run": run, "round": outcome.best_round})
        own.write(RunFinished(**outcome_facts(outcome)))
        local[site] = {**outcome_facts(outcome), "metrics": local_metrics(outcome, site)}
    totals = {
        phase: sum(outcome.progress.seconds.get(phase, 0.0) for outcome in alone.values()) for phase in TIMED
    }
    longest = max(alone.values(), key=lambda outcome: outcome.progress.round)
    return {
        **common,
        **outcome_facts(longest),
        "seconds": totals,
        "local": local,
        **_remarks(study, out, alone, start),
    }


def _remarks(
    study: Study, out: Path, outcomes: Mapping[str, Outcome], start: StartModel | None
) -> dict[str, Any]:
    begun = [] if start is None else [f"started from the model {start.digest[:12]} of run {start.run}"]
    notes = [*begun, *notes_of_sites(out), *notes_of_training(study, out), *notes_of_model(study)]
    notes += notes_of_selection(outcomes)
    return {"left_out": left_out(out), "notes": notes}


def _started(request: RunRequest) -> RunStarted:
    return RunStarted(
        settings=_settings_table(request),
        federation=request.study.to_dict()["federation"],
        versions=versions(),
        hash=request.study.hash,
        mode=request.mode,
        backend=request.backend,
    )


def _settings_table(request: RunRequest) -> dict[str, Any]:
    study = request.study
    model = {"name": study.model.name, **asdict(model_options(study))}
    table = {
        **study.to_dict(),
        "model": model,
        "mode": request.mode.value,
        "federation": str(request.federation.resolve()),
        "subsets": request.subsets,
    }
    plain: dict[str, Any] = json.loads(json.dumps(table))  # as read back from the journal
    return plain


def _difference(key: str, found: Any, wanted: Any) -> str:  # noqa: ANN401 - JSON values
    """Name one setting that differs."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in sorted({*found, *wanted}):
            if found.get(name) != wanted.get(name):
                return f"{key}.{name}: {found.get(name)!r}, now {wanted.get(name)!r}"
    if isinstance(found, list):
        return key
    return f"{key}: {found!r}, now {wanted!r}"


def _clear(out: Path) -> None:
    for name in _OWN:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        elif name != LOCK:
            path.unlink(missing_ok=True)
