"""``mmare-server start``: the coordinator's programs, and one run to its end or those that are submitted.

Everything is started as a child of this process and ends with it. Who kills this process, too, loses nothing:
the same command ends what is left of it and goes on from the last checkpoint.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mmare.errors import InputError, RunError
from mmare.host.locks import locked
from mmare.host.signals import stop_on_signals
from mmare.host.supervised import ProcessSupervisor
from mmare.study.choices import Mode
from server.deployment.flower_runs import write_app
from server.deployment.programs import check_ports, end_leftovers
from server.deployment.proxy import write_proxy
from server.deployment.retry_policy import Limits
from server.deployment.run_records import forget_runs, record_run
from server.deployment.run_supervisor import Supervision
from server.deployment.services import Services
from server.deployment.standing import MARGIN_S, SIDE_BY_SIDE, Standing
from server.deployment.start_view import StartView
from server.membership.certificates import certificate_days_left, certificate_end
from server.membership.flower_cli import write_connection
from server.membership.flower_nodes import register_admitted
from server.membership.kit import load_kit
from server.membership.records import SiteState, listed
from server.run.request import RunRequest
from server.store.journal import make_run_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from mmare.study.study import Study
    from server.membership.kit import Kit

__all__ = ["MODES", "StartSettings", "chosen_mode", "count_admitted", "start_run"]

MODES: Final = ("federated", "local")  # a hospital's rows never lie in one place with another's
WARN_DAYS: Final = 30


@dataclass(frozen=True)
class StartSettings:
    """What the command was given.

    Args:
        kit: The coordinator's folder.
        source: A study file, or a federation folder with one; none to stay and take what is submitted.
        out: Run folder; by default in the kit.
        mode: Of `MODES`.
        assignments: ``section.key=value`` over the study.
        overwrite: Replace a run with other settings.
        min_nodes: Sites that the roll call waits for; 0 for all that are admitted.
        tries: Attempts in a row without a new checkpoint.
        metrics_port: Where the kit's runs are told to Prometheus; none for nowhere.
        proxy: Whether an own nginx stands in front.
        side_by_side: Submitted runs under way at a time.
        start_from: Package or run of the study's start model, if it has one.
    """

    kit: Path
    source: Path | None = None
    out: Path | None = None
    mode: str = "federated"
    assignments: tuple[str, ...] = ()
    overwrite: bool = False
    min_nodes: int = 0
    tries: int = 5
    metrics_port: int | None = None
    proxy: bool = True
    side_by_side: int = SIDE_BY_SIDE
    start_from: Path = Path()


def start_run(settings: StartSettings, console: Console) -> Path | None:
    """Run the coordinator until the run has ended; without one, until this process is told to stop.

    Args:
        settings: Of the command.
        console: For people.

    Returns:
        The run folder, with its result, if there is a run.

    Raises:
        InputError: If something that was given cannot be used.
        RunError: If the run was given up, or this process was told to stop; the same command resumes it.
    """
    kit = load_kit(settings.kit)
    request = None if settings.source is None else _request(settings, settings.source, kit)
    out = None if request is None else request.out
    with ExitStack() as stack:
        stopped = stack.enter_context(stop_on_signals())
        stack.enter_context(_alone(kit))
        done, said = (False, []) if request is None else _elsewhere(request)
        if done:
            return out
        view = stack.enter_context(StartView(console))
        for line in said:
            view.say(line)
        _prepare(kit, view, proxy=settings.proxy)
        forget_runs(kit)
        if out is not None:
            make_run_folder(out)
            record_run(kit, out)
        if settings.metrics_port is not None:
            view.say(f"metrics: {stack.enter_context(_metrics(kit, out, settings.metrics_port))}")
        services = Services(kit, stack.enter_context(ProcessSupervisor()), view.say, proxy=settings.proxy)
        view.say(f"{kit.federation}: starting SuperLink and its SuperExec{' and nginx' * settings.proxy}")
        if not services.begin(stopped, lambda: _register(kit, view)):
            raise RunError("stopped before the coordinator was ready")
        if request is None:
            Standing(kit, services, view, stopped, settings.tries, settings.side_by_side).keep_running()
            return None
        limits = Limits(silent_s=2 * request.study.federation.deadline_s + MARGIN_S, tries=settings.tries)
        Supervision(kit, request, limits, services, view.run(), stopped).run()
    return out


def chosen_mode(text: str) -> Mode:
    """A mode that hospitals can have; `InputError` for another."""
    if text not in MODES:
        raise InputError(f"--mode must be one of {', '.join(MODES)}, found {text!r}")
    return Mode(text)


def _request(settings: StartSettings, source: Path, kit: Kit) -> RunRequest:
    request = RunRequest(
        federation=source,
        mode=chosen_mode(settings.mode),
        set=settings.assignments,
        overwrite=settings.overwrite,
        start_from=settings.start_from,
    )
    return replace(
        request,
        out=settings.out or kit.runs / request.out.name,
        nodes=settings.min_nodes or count_admitted(kit, request.study),
    )


def count_admitted(kit: Kit, study: Study) -> int:
    """How many sites may take part.

    Raises:
        InputError: If the run could never have enough of them.
    """
    found = sum(record.state is SiteState.ADMITTED for record in listed(kit))
    if found < study.federation.min_sites:
        raise InputError(
            f"{kit.folder}: {found} sites are admitted, but federation.min_sites is "
            f"{study.federation.min_sites}; mmare-server kit admit takes in the request of a site"
        )
    return found


def _elsewhere(request: RunRequest) -> tuple[bool, list[str]]:
    """Check a run in a process of its own, which ends: this one is to stay small, and the check needs torch.

    Returns:
        Whether the run is finished, and what fits of its start model, in words.

    Raises:
        InputError: If it cannot be run.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_is_finished, request).result()


def _is_finished(request: RunRequest) -> tuple[bool, list[str]]:
    from server.run.folder import check_run, finished_result  # noqa: PLC0415 - as above

    begun = check_run(request)
    return finished_result(request) is not None, [] if request.study.start is None else begun.words()


def _prepare(kit: Kit, view: StartView, *, proxy: bool) -> None:
    """Files and ports; what a predecessor left is ended."""
    for name in end_leftovers(kit):
        view.say(f"{name} of an earlier start was still running and was ended")
    _check_certificate(kit, view)
    check_ports(kit, proxy=proxy)
    write_connection(kit)
    write_app(kit)
    if proxy:
        write_proxy(kit)


def _check_certificate(kit: Kit, view: StartView) -> None:
    """Refuse a certificate that no site would trust, and say in time that one is nearly over.

    Raises:
        InputError: If it is over.
    """
    end = certificate_end(kit.certificate)
    left = certificate_days_left(kit.certificate)
    renewal = "mmare-server kit renew makes a new one, and sites need do nothing"
    if left < 0:
        raise InputError(f"{kit.certificate}: expired on {end:%Y-%m-%d}; {renewal}")
    if left < WARN_DAYS:
        view.say(f"the server's certificate is valid until {end:%Y-%m-%d}, {left} more days; {renewal}")


def _register(kit: Kit, view: StartView) -> None:
    agreement = register_admitted(kit)
    for site in agreement.registered:
        view.say(f"registered {site}")
    for site, why in agreement.refused.items():
        view.say(f"{site} cannot take part: {why}")


@contextmanager
def _metrics(kit: Kit, out: Path | None, port: int) -> Iterator[str]:
    from server.monitoring.exporter import Exporter, serving  # noqa: PLC0415 - prometheus-client, where it is wanted

    runs = kit.runs if out is None or out.is_relative_to(kit.runs) else out
    with serving(Exporter(runs, kit=kit.folder), port, "127.0.0.1") as served:
        yield f"http://127.0.0.1:{served}/metrics"


@contextmanager
def _alone(kit: Kit) -> Iterator[None]:
    """Hold the kit for this start.

    Raises:
        InputError: If another one runs.
    """
    kit.state.mkdir(parents=True, exist_ok=True)
    lock = kit.start_lock
    owner = lock.read_text(encoding="ascii").strip() if lock.exists() else ""
    already = f"{kit.folder}: mmare-server start runs with this kit already (process {owner or 'unknown'})"
    with locked(lock, InputError(already)):
        lock.write_text(str(os.getpid()), encoding="ascii")
        yield
