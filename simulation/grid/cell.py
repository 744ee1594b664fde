"""One cell of a grid: prepare its federation, check its study, encode its scans, run it, tidy up after it."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from mmare.errors import InputError, StudyError
from mmare.host.files import replacing
from mmare.host.locks import locked
from mmare.study.choices import Kind, TaskName
from mmare.study.study import STUDY_FILE
from mmare.study.tables import read_toml
from server.monitoring.followed_run import read_run
from server.run.request import RunRequest
from server.store.events import RoundStarted, RunStarted, parse_event
from simulation.grid.file import resolve
from simulation.grid.plan import Cell
from sites.config import load_site

if TYPE_CHECKING:
    from mmare.study.study import Study
    from sites.config import SiteConfig

__all__ = ["FEDERATIONS", "Say", "Workplace", "check_cell", "run_cell"]

FEDERATIONS, RUNS, CACHE = "federations", "runs", "cache"  # folders of a grid

Say = Callable[[str], None]


@dataclass(frozen=True)
class Workplace:
    """What all cells of a grid share.

    Args:
        out: Folder of the grid, absolute.
        sources: Where data lie on this machine, by name.
        weights: Folder that ``mmare-site weights import`` has filled, where encoders need it.
        keep_models: Whether run folders keep their models.
    """

    out: Path
    sources: Mapping[str, str]
    weights: Path | None = None
    keep_models: bool = False

    @classmethod
    def make(
        cls,
        sources: Mapping[str, str],
        out: Path,
        given: Sequence[str] = (),
        weights: Path | None = None,
        *,
        keep_models: bool = False,
    ) -> Workplace:
        """From the flags of the command.

        Args:
            sources: Of the grid.
            out: As typed.
            given: ``NAME=PATH``, instead of the grid's.
            weights: As typed; ``./weights`` where there is such a folder.
            keep_models: As typed.

        Raises:
            InputError: If a word is none, names no source, or there is no such folder of weights.
        """
        found = dict(sources)
        for word in given:
            name, _, path = (part.strip() for part in word.partition("="))
            if not path or name not in sources:
                known = ", ".join(sources) or "none, the grid has no sources"
                raise InputError(f"--source is {word!r}, expected NAME=PATH with one of {known}")
            found[name] = str(Path(path).resolve())
        if weights is None and Path("weights").is_dir():
            weights = Path("weights")
        if weights is not None and not weights.is_dir():
            raise InputError(f"--weights is {str(weights)!r}, and there is no such folder")
        return cls(out.absolute(), found, None if weights is None else weights.resolve(), keep_models)


def check_cell(cell: Cell, place: Workplace, say: Say = lambda _text: None) -> RunRequest:
    """Prepare the federation of a cell and refuse a study that cannot be run; nothing is encoded or trained.

    Returns:
        What to run.

    Raises:
        InputError: If data, study, model or mode do not go together.
    """
    from server.run.folder import check_run  # noqa: PLC0415 - torch takes seconds

    say("preparing")
    federation = _federation(cell, place)
    request = RunRequest(
        federation, place.out / RUNS / cell.id, cell.mode, tuple(cell.assignments), subsets=cell.subsets
    )
    check_run(request)
    _check_encoders(request.study, federation, place)
    return request


def run_cell(cell: Cell, place: Workplace, say: Say = lambda _text: None) -> dict[str, Any]:
    """Run a cell, or take up where an earlier attempt stopped.

    Args:
        cell: Which.
        place: Where.
        say: Told where it is.

    Returns:
        The line of results, but for the name of the grid.

    Raises:
        InputError: If its settings cannot be run.
        RunError: If the run failed.
    """
    from simulation.run import run_federation  # noqa: PLC0415 - torch takes seconds

    began = time.monotonic()
    request = check_cell(cell, place, say)
    federation, study = request.federation, request.study
    _embed(federation, study, place, say)
    _clear_other_run(request)
    say("starting")
    told = cell.references and not study.federation.local and study.task is not TaskName.REGRESSION
    result = run_federation(
        request, (_listener(say),), report=not told
    )  # once: it takes as long as some rounds
    references = _references(request, say) if told else {}
    _thin(request.out, federation, keep_models=place.keep_models)
    amputation = federation / "amputation.json"
    return {
        "cell": cell.id,
        "settings": cell.settings,
        "modalities": [modality.name for modality in study.modalities],
        "classes": list(study.classes),
        "amputation": json.loads(amputation.read_text(encoding="utf-8")) if amputation.exists() else None,
        "seconds": round(max(time.monotonic() - began, result["seconds"]["total"]), 3),
        "result": result,
        "decisions": _decisions(request),
        **references,
    }


def _decisions(request: RunRequest) -> dict[str, Any]:
    """What a release would report of calibration and decisions; nothing of sites that trained alone."""
    if request.study.task is not TaskName.CLASSIFICATION:
        return {}
    from server.release.decide import decide  # noqa: PLC0415 - torch takes seconds
    from server.store.states import parse_states  # noqa: PLC0415 - as above

    states = parse_states(read_run(request.out).states, len(request.study.classes))
    return decide(request.study, states, None).report


def _references(request: RunRequest, say: Say) -> dict[str, Any]:
    """Simple models beside a run, for its line and its report; its model must still be there."""
    from simulation.references import measure_references  # noqa: PLC0415 - scikit-learn takes seconds
    from simulation.report.run_report import REFERENCES, write_report  # noqa: PLC0415 - as above

    say("simple models")
    if not (request.out / REFERENCES).exists():
        measure_references(request)
    write_report(request.out)
    return {"references": json.loads((request.out / REFERENCES).read_text(encoding="utf-8"))["models"]}


def _listener(say: Say) -> Callable[[Mapping[str, Any]], None]:
    alone = ""

    def listen(entry: Mapping[str, Any]) -> None:
        nonlocal alone
        match parse_event(entry):
            case RunStarted(site=site):
                alone = f"{site} alone, " if site else ""
            case RoundStarted(round=number):
                say(f"{alone}round {number}")

    return listen


def _federation(cell: Cell, place: Workplace) -> Path:
    """The federation folder of a cell, made by whoever comes first."""
    folder = place.out / FEDERATIONS / cell.federation
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock")):
        if not folder.exists():
            staging = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
            try:
                _prepare(cell, place, staging)
                for file in sorted(staging.glob("*/site.toml")):
                    _share_cache(file, place)
                staging.rename(folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        for file in sorted(folder.glob("*/site.toml")):
            if place.weights not in {None, load_site(file).weights}:
                _set_compute(file, "weights", str(place.weights))  # given on this call only
    return folder


def _prepare(cell: Cell, place: Workplace, out: Path) -> None:
    """``mmare-sim prepare`` with the cell's arguments; what it prints is for nobody."""
    from click import ClickException, UsageError  # noqa: PLC0415 - as below

    from simulation.prepare import commands as prepare  # noqa: PLC0415 - nothing else here needs a command line

    arguments = resolve(cell.prepare, place.sources)
    if arguments[0] == "ixi" and place.weights is not None and "--weights" not in arguments:
        arguments += ["--weights", str(place.weights)]
    silence = io.StringIO()
    try:
        with redirect_stdout(silence), redirect_stderr(silence):
            prepare.app([*arguments, "--out", str(out)], standalone_mode=False)
    except UsageError as error:
        raise StudyError(f"prepare {' '.join(cell.prepare)}: {error.format_message()}") from None
    except ClickException as error:
        raise StudyError(error.format_message()) from None
    if not (out / STUDY_FILE).exists():
        raise StudyError(f"prepare {' '.join(cell.prepare)}: made no federation")


def _share_cache(file: Path, place: Workplace) -> None:
    """Let a site keep its embeddings where all federations of the grid find them.

    Embeddings are keyed by site, patient and content of the scan, so federations that differ in what is
    missing or in the split share them. What was encoded while the federation was prepared moves there, too.
    """
    site = load_site(file)
    shared = place.out / CACHE / site.id / "embeddings"
    for embedding in sorted((site.cache / "embeddings").glob("*/*")):
        target = shared / embedding.parent.name / embedding.name
        target.parent.mkdir(parents=True, exist_ok=True)
        embedding.replace(target)
    shutil.rmtree(site.cache, ignore_errors=True)
    _set_compute(file, "cache", f"../../../{CACHE}/{site.id}")


def _set_compute(file: Path, key: str, value: str) -> None:
    """Put one key of ``[compute]`` into a ``site.toml``."""
    content = read_toml(file, "site")
    content["compute"] = {**content.get("compute", {}), key: value}
    with replacing(file) as partial:
        partial.write_bytes(tomli_w.dumps(content).encode())


def _check_encoders(study: Study, federation: Path, place: Workplace) -> None:
    """Refuse encoders that do not exist or whose weights are not there.

    Raises:
        InputError: Naming the encoder.
    """
    from client.encoders.registry import (  # noqa: PLC0415 - as above
        GIVEN,
        check_encoders,
        encoder_source,
        fingerprint,
    )
    from sites.federation import site_folders  # noqa: PLC0415 - pandas takes seconds

    check_encoders(study)
    site = site_folders(federation)[0]  # all have the same weights
    for modality in study.modalities:
        try:
            if modality.encoder != GIVEN:
                fingerprint(modality.encoder, encoder_source(site))
        except InputError as error:
            hint = "" if place.weights is not None else "; --weights names their folder for all sites"
            raise InputError(f"{error}{hint}") from None


def _embed(federation: Path, study: Study, place: Workplace, say: Say) -> None:
    """Encode the scans that nobody has encoded yet; of two workers with the same scans, one waits."""
    volumes = [modality for modality in study.modalities if modality.kind is Kind.VOLUME]
    if not volumes:
        return
    from client.data.embed import embed_site  # noqa: PLC0415 - torch and readers of scans take seconds
    from sites.federation import site_folders  # noqa: PLC0415 - pandas takes seconds

    encoders = hashlib.sha256(repr(volumes).encode()).hexdigest()[:12]
    (place.out / CACHE).mkdir(exist_ok=True)
    say("waiting for another worker's scans")
    with locked(place.out / CACHE / f".{encoders}.lock"):
        for site in site_folders(federation):
            embed_site(site, study, partial(_say_scans, say, site))


def _say_scans(say: Say, site: SiteConfig, done: int, total: int) -> None:
    say(f"scans of {site.id}, {done} of {total}")


def _clear_other_run(request: RunRequest) -> None:
    """Remove a run that was begun by a program with other defaults, or where the grid lay elsewhere."""
    from server.run.folder import finished_result  # noqa: PLC0415 - torch takes seconds

    try:
        finished_result(request)
    except InputError:
        shutil.rmtree(request.out)


def _thin(out: Path, federation: Path, *, keep_models: bool) -> None:
    """Remove what a finished run needs no more: checkpoints, spool, the sites' optimiser states, the model.

    Result, journal, study and report stay.
    """
    from sites.federation import site_folders  # noqa: PLC0415 - pandas takes seconds

    for folder in (out, *out.glob("local/*")):
        for name in ("checkpoints", "spool", *(() if keep_models else ("model",))):
            shutil.rmtree(folder / name, ignore_errors=True)
    run = read_run(out).name
    caches = [site.cache for site in site_folders(federation)]
    for cache in (*caches, federation / ".pooled"):
        for state in (cache / "runs").glob(f"{run}*") if run else ():
            shutil.rmtree(state, ignore_errors=True)
