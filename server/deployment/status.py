"""A coordinator in a screenful: where it is, what runs, which sites are there, and its run."""

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
    from rich.console import RenderableType

    from server.membership.kit import Kit

__all__ = ["kit_status"]

SOON_DAYS: Final = 30  # of a certificate: time to renew


def kit_status(kit: Kit) -> Group:
    """What a kit's files, its processes and its SuperLink say.

    Args:
        kit: Of the coordinator; whether it runs or not.
    """
    answers = superlink_answers(kit)
    found = last_run(kit)
    parts: list[RenderableType] = [_where(kit), "", _programs(kit, answers=answers), ""]
    parts.append(_sites(kit, found[0] if found else None, answers=answers))
    return Group(*parts)


def _where(kit: Kit) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2))
    days = certificate_days_left(kit.certificate)
    left = f"{days} days left" if days >= 0 else f"over since {-days} days"
    advice = "; mmare-server kit renew makes a new one" if days < SOON_DAYS else ""
    found = last_run(kit)
    for name, value in (
        ("federation", kit.federation),
        ("kit", str(kit.folder)),
        ("address", f"{kit.host}:{kit.port}"),
        ("certificate", left + advice),
        ("run", "none under way" if found is None else str(found[0])),
    ):
        table.add_row(name, escape(value))
    return table


def _programs(kit: Kit, *, answers: bool) -> Table:
    table = Table(box=None, padding=(0, 2))
    for heading in ("program", "process", "memory", "answers"):
        table.add_column(heading, justify="right" if heading == "memory" else "left")
    running = recorded(kit)
    app = server_app_pid(running.get(SUPEREXEC))
    said = {SUPERLINK: _yes(answers), PROXY: _yes(proxy_answers(kit))}
    pids = {name: running.get(name) for name in (SUPERLINK, SUPEREXEC, PROXY)} | {SERVER_APP: app}
    for name, pid in pids.items():
        if pid is None:
            table.add_row(name, "not running", "-", said.get(name, "-"))
        else:
            table.add_row(name, str(pid), _memory(pid), said.get(name, "-"))
    return table


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _memory(pid: int) -> str:
    """Of a process alone: what it shares with others is shared out."""
    try:
        return f"{psutil.Process(pid).memory_full_info().pss / 2**20:.0f} MiB"
    except psutil.Error:
        return "-"


def _sites(kit: Kit, run: Path | None, *, answers: bool) -> Table:
    """Sites of the kit's records, with what SuperLink says of their nodes and the run of their answers."""
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
    """When a site last answered, and in which round."""
    answers = {name: site.answer for name, site in read_run(run).sites.items()}
    return {
        name: f"round {answer.round}, {answer.time[:19]}Z"
        for name, answer in answers.items()
        if answer is not None
    }
