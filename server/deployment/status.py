"""Overview of a coordinator: its address, programs, sites and run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from mmare.errors import RunError
from server.deployment.programs import proxy_answers, recorded, server_app_pid, superlink_answers
from server.deployment.run_supervisor import last_run
from server.membership.certificates import certificate_days_left
from server.membership.flower_nodes import registered
from server.membership.kit import PROXY, SERVER_APP, SUPEREXEC, SUPERLINK
from server.membership.records import SiteState, listed
from server.monitoring.followed_run import read_run

if TYPE_CHECKING:
    from server.membership.kit import Kit

__all__ = ["kit_status"]

SOON_DAYS: Final = 30  # before a certificate expires, renewal is advised


def kit_status(kit: Kit) -> Group:
    """The state of a coordinator from its files, processes and SuperLink; it need not be running."""
    answers = superlink_answers(kit)
    last = last_run(kit)
    run = None if last is None else last[0]
    tables = (_summary(kit, run), "", _programs(kit, answers=answers), "", _sites(kit, run, answers=answers))
    return Group(*tables)


def _summary(kit: Kit, run: Path | None) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2))
    days = certificate_days_left(kit.certificate)
    left = f"{days} days left" if days >= 0 else f"expired {-days} days ago"
    advice = "; mmare-server kit renew makes a new one" if days < SOON_DAYS else ""
    for name, value in (
        ("federation", kit.federation),
        ("kit", str(kit.folder)),
        ("address", f"{kit.host}:{kit.port}"),
        ("certificate", left + advice),
        ("run", "none under way" if run is None else str(run)),
    ):
        table.add_row(name, escape(value))
    return table


def _programs(kit: Kit, *, answers: bool) -> Table:
    table = Table(box=None, padding=(0, 2))
    for heading in ("program", "process", "memory", "answers"):
        table.add_column(heading, justify="right" if heading == "memory" else "left")
    running = recorded(kit)
    app = server_app_pid(running.get(SUPEREXEC))
    healthy = {SUPERLINK: answers, PROXY: proxy_answers(kit)}
    pids = {name: running.get(name) for name in (SUPERLINK, SUPEREXEC, PROXY)} | {SERVER_APP: app}
    for name, pid in pids.items():
        health = {True: "yes", False: "no", None: "-"}[healthy.get(name)]
        process = ("not running", "-") if pid is None else (str(pid), _memory(pid))
        table.add_row(name, *process, health)
    return table


def _memory(pid: int) -> str:
    """Proportional set size of a process."""
    try:
        return f"{psutil.Process(pid).memory_full_info().pss / 2**20:.0f} MiB"
    except psutil.Error:
        return "-"


def _sites(kit: Kit, run: Path | None, *, answers: bool) -> Table:
    """The kit's sites with their node's status at SuperLink and their last answer in the run."""
    table = Table(box=None, padding=(0, 2))
    for heading in ("site", "state", "node", "last answer"):
        table.add_column(heading)
    statuses: dict[str, str] = {}
    try:
        for node in registered(kit) if answers else ():
            if node.site is not None and node.status != "unregistered":
                statuses[node.site] = node.status
    except RunError:
        answers = False
    last = _last_answers(run) if run is not None else {}
    for record in listed(kit):
        status = (
            "-" if record.state is not SiteState.ADMITTED else statuses.get(record.site, "not registered")
        )
        table.add_row(
            record.site, record.state.value, status if answers else "not known", last.get(record.site, "-")
        )
    return table


def _last_answers(run: Path) -> dict[str, str]:
    """Round and time of each site's last answer."""
    answers = {name: site.answer for name, site in read_run(run).sites.items()}
    return {
        name: f"round {answer.round}, {answer.time[:19]}Z"
        for name, answer in answers.items()
        if answer is not None
    }
