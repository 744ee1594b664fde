"""One simulated run: a federation folder, a mode, a backend, a run folder."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmare.errors import InputError
from mmare.study.choices import Backend, Mode
from server.run.folder import check_run, finished_result
from server.run.request import settings_of
from simulation.report.run_report import write_report
from sites.federation import site_folders

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from server.store.journal import Listener

__all__ = ["run_federation"]


def run_federation(  # noqa: PLR0913 - one parameter per flag
    federation: Path,
    out: Path,
    *,
    mode: Mode = Mode.FEDERATED,
    backend: Backend = Backend.INPROCESS,
    assignments: Sequence[str] = (),
    overwrite: bool = False,
    subsets: bool = False,
    listeners: tuple[Listener, ...] = (),
    backend_config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run a federation, or take up where an earlier attempt stopped.

    Args:
        federation: Folder with ``study.toml`` and one folder per site.
        out: Run folder.
        mode: Where the rows that train lie.
        backend: Who carries the messages.
        assignments: ``section.key=value`` over the study.
        overwrite: Replace a run with other settings.
        subsets: Test every subset of modalities, too.
        listeners: Called with every event of the journal.
        backend_config: Of Flower's Ray engine.

    Returns:
        The content of ``result.json``, beside which ``report.html`` is written.

    Raises:
        InputError: If the federation or the settings cannot be used.
        RunError: If the run failed; the same call resumes it.
    """
    for assignment in assignments:
        if ";" in assignment:
            raise InputError(f"--set {assignment!r}: a value must not hold a semicolon")
    sites = site_folders(federation)
    pools = mode is Mode.CENTRALISED
    run_config: dict[str, Any] = {
        "federation": str(federation.resolve()),
        "out": str(out.absolute()),
        "mode": mode.value,
        "set": ";".join(assignments),
        "overwrite": overwrite,
        "subsets": subsets,
        "trainer": "+".join(site.id for site in sites) if pools else "",
    }
    study, settings = settings_of(run_config)
    done = finished_result(study, settings)
    if done is not None:
        if not (out / "report.html").exists():
            write_report(out)
        return done
    nodes = len(sites) + (pools and len(sites) > 1)
    from simulation.engine import run_in_process, run_with_ray  # noqa: PLC0415 - Flower and torch take seconds
    from simulation.nodes import check_sites  # noqa: PLC0415 - as above

    check_run(study, mode, subsets=subsets)
    check_sites(run_config, len(sites))
    if backend is Backend.RAY:
        run_with_ray(run_config, nodes, listeners, backend_config)
    else:
        run_in_process(run_config, nodes, listeners)
    found = finished_result(study, replace(settings, overwrite=False))
    if found is None:
        raise InputError(f"{out}: the run left no result")
    write_report(out)
    return found
