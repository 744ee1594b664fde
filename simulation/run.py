"""One simulated run, of a request."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmare.errors import InputError
from mmare.study.choices import Backend, Mode
from server.run.folder import check_run, finished_result
from simulation.report.run_report import write_report
from sites.federation import site_folders

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.run.request import RunRequest
    from server.store.journal import Listener

__all__ = ["run_federation"]


def run_federation(
    request: RunRequest,
    listeners: tuple[Listener, ...] = (),
    backend_config: Mapping[str, Any] | None = None,
    *,
    report: bool = True,
) -> dict[str, Any]:
    """Run a federation, or take up where an earlier attempt stopped.

    Args:
        request: Of a federation folder; in this process, unless its backend is Flower's Ray engine.
        listeners: Called with every event of the journal.
        backend_config: Of Flower's Ray engine.
        report: Whether to write ``report.html``, too.

    Returns:
        The content of ``result.json``.

    Raises:
        InputError: If the federation or the settings cannot be used.
        RunError: If the run failed; the same call resumes it.
    """
    sites = site_folders(request.federation)
    pools = request.mode is Mode.CENTRALISED
    request = replace(request, trainer="+".join(site.id for site in sites) if pools else "")
    done = finished_result(request)
    if done is not None:
        if report and not (request.out / "report.html").exists():
            write_report(request.out)
        return done
    from simulation.engine import run_in_process, run_with_ray  # noqa: PLC0415 - Flower and torch take seconds
    from simulation.nodes import check_sites  # noqa: PLC0415 - as above

    check_run(request)
    check_sites(request, len(sites))
    request = replace(request, nodes=len(sites) + (pools and len(sites) > 1))
    if request.backend == Backend.RAY:
        run_with_ray(request, listeners, backend_config)
    else:
        run_in_process(request, listeners)
    found = finished_result(replace(request, overwrite=False))
    if found is None:
        raise InputError(f"{request.out}: the run left no result")
    if report:
        write_report(request.out)
    return found
