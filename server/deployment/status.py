"""Overview of a coordinator: its address, programs, sites and run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import psutil
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from mmare.errors import RunError
from server.deployment.programs import proxy_answers, recorded, server_apps, superlink_answers
from server.deployment.queue import queued
from server.deployment.run_records import runs_under_way
from server.membership.certificates import certificate_days_left
from server.membership.flower_nodes import registered
from server.membership.kit import PROXY, SERVER_APP, SUPEREXEC, SUPERLINK
from server.membership.records import SiteState, listed
from server.monitoring.followed_run import read_run

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from server.deployment.queue import QueuedRun
    from server.membership.kit import Kit

__all__ = ["kit_status", "programs_table", "queue_table", "sites_table", "summary_table"]

SOON_DAYS: Final = 30  # before a certificate expires, renewal is advised
MOST_RUNS: Final = 10  # of the queue that the overview shows, the latest


def kit_status(kit: Kit) -> Group:
    """The state of a coordinator from its files, processes and SuperLink; it need not be running."""
    answers = superlink_answers(kit)
    runs = runs_under_way(kit)
    tables: list[RenderableType] = [
        summary_table(kit, runs),
        "",
        programs_table(kit, answers=answers),
        "",
        sites_table(kit, runs, _statuses(kit) if answers else None),
    ]
    entries = queued(kit)
    if entries:
        tables += ["", queue_table(entries[-MOST_RUNS:])]
    return Group(*tables)


def queue_table(entries: Iterable[QueuedRun]) -> Table:
    """Submitted runs, what each is doing, and what keeps it waiting."""
    table = Table(box=None, padding=(0, 2))
    for heading in ("run", "study", "submitted", "state", ""):
        table.add_column(heading, overflow="fold")
    for entry in entries:
        waits = f"; tried again until {_utc(entry.until)}" if entry.until and entry.due else ""
        words = (entry.name, entry.study, f"{_utc(entry.submitted)} by {entry.by}", entry.state.value)
        table.add_row(*map(escape, (*words, entry.said + waits)))
    return table


def _utc(time: str) -> str:
    return f"{time[:10]} {time[11:16]} UTC"


def summary_table(kit: Kit, runs: Collection[Path]) -> Table:
    """Name, address and certificate of a coordinator, and its runs."""
    table = Table(box=None, show_header=False, padding=(0, 2))
    days = certificate_days_left(kit.certificate)
    left = f"{days} days left" if days >= 0 else f"expired {-days} days ago"
    advice = "; mmare-server kit renew makes a new one" if days < SOON_DAYS else ""
    for name, value in (
        ("federation", kit.federation),
        ("kit", str(kit.folder)),
        ("address", f"{kit.host}:{kit.port}"),
        ("certificate", left + advice),
        *((("run", str(run)) for run in runs) if runs else [("run", "no study under way")]),
    ):
        table.add_row(name, escape(value))
    return table


def programs_table(kit: Kit, *, answers: bool) -> Table:
    """The coordinator's programs; ``answers``: whether SuperLink does."""
    table = Table(box=None, padding=(0, 2))
    for heading in ("program", "process", "memory", "answers"):
        table.add_column(heading, justify="right" if heading == "memory" else "left")
    running = recorded(kit)
    apps: list[int | None] = [*server_apps(running.get(SUPEREXEC))]
    healthy = {SUPERLINK: answers, PROXY: proxy_answers(kit)}
    for name, pid in [
        *((name, running.get(name)) for name in (SUPERLINK, SUPEREXEC, PROXY)),
        *((SERVER_APP, pid) for pid in apps or [None]),
    ]:
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


def _statuses(kit: Kit) -> dict[str, str] | None:
    """What SuperLink says of the sites' nodes; None if it does not answer."""
    try:
        nodes = registered(kit)
    except RunError:
        return None
    return {
        node.site: node.status for node in nodes if node.site is not None and node.status != "unregistered"
    }


def sites_table(kit: Kit, runs: Iterable[Path], statuses: Mapping[str, str] | None) -> Table:
    """The kit's sites with the status of their nodes, if it is known, and their last answer in each run."""
    table = Table(box=None, padding=(0, 2))
    for heading in ("site", "state", "node", "last answer"):
        table.add_column(heading)
    last = {run.name: _last_answers(run) for run in runs}
    for record in listed(kit):
        status = "not known" if statuses is None else statuses.get(record.site, "not registered")
        status = status if record.state is SiteState.ADMITTED or statuses is None else "-"
        words = [
            f"{name}: {answers[record.site]}" if len(last) > 1 else answers[record.site]
            for name, answers in last.items()
            if record.site in answers
        ]
        table.add_row(record.site, record.state.value, status, escape("; ".join(words) or "-"))
    return table


def _last_answers(run: Path) -> dict[str, str]:
    """Round and time of each site's last answer, or why it does not take part."""
    state = read_run(run)
    answers = {name: site.answer for name, site in state.sites.items()}
    refused = {name: f"{call.reason}" for name, call in state.calls.items() if not call.accepted}
    return refused | {
        name: f"round {answer.round}, {answer.time[:19]}Z"
        for name, answer in answers.items()
        if answer is not None and name not in refused
    }
