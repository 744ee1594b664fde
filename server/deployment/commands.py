"""``mmare-server submit|queue|abort``: runs for a coordinator that stays."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.membership.commands import DEFAULT_KIT, KitOption
from server.run.options import StartFrom

__all__ = ["MinNodesOption", "ModeOption", "SetOption", "abort", "queue", "submit"]

ModeOption = Annotated[str, typer.Option(help="federated, or local: each site trains alone, tested on all.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change the study; repeat.")
]
MinNodesOption = Annotated[
    int, typer.Option(min=0, help="Sites that the roll call waits for; by default all that are admitted.")
]


def submit(
    source: Annotated[
        Path, typer.Argument(metavar="FEDERATION-or-STUDY", help="A study.toml, or a folder with one.")
    ],
    *,
    kit: KitOption = DEFAULT_KIT,
    wait: Annotated[
        str,
        typer.Option(
            metavar="30m|12h|7d", help="Wait so long for enough hospitals to approve it and to be there."
        ),
    ] = "",
    name: Annotated[
        str, typer.Option(help="Of the run and its folder; by default from study, mode and seed.")
    ] = "",
    mode: ModeOption = "federated",
    assignments: SetOption = None,
    min_nodes: MinNodesOption = 0,
    start_from: StartFrom = Path(),
) -> None:
    """Queue a run of a study; mmare-server start takes it when fewer than two are under way.

    Hospitals that are connected learn of the study and can approve it. Submitted again, a run that failed or
    was aborted resumes.
    """
    from mmare.host.console import must_exist
    from mmare.host.locks import is_held
    from server.deployment.queue import parse_wait
    from server.deployment.queue import submit as submit_run
    from server.deployment.start import chosen_mode, count_admitted
    from server.membership.kit import load_kit
    from server.run.request import RunRequest

    must_exist(source, "a study.toml, or a folder with one")
    loaded = load_kit(kit)
    request = RunRequest(source, mode=chosen_mode(mode), set=tuple(assignments or ()), start_from=start_from)
    time = parse_wait(wait) if wait else None
    if time is None:
        count_admitted(loaded, request.study)
    from server.run.folder import check_run

    begun = check_run(request)
    if request.study.start is not None:
        typer.echo("\n".join(begun.words()))
    entry = submit_run(
        *(loaded, request.study),
        mode=request.mode,
        name=name,
        wait=time,
        min_nodes=min_nodes,
        start_from=request.start_from,
    )
    typer.echo(f"queued: {entry.name}, study {entry.study}, hash {request.study.hash}")
    if not is_held(loaded.start_lock):
        typer.echo(f"next: mmare-server start --kit {kit}, which does not run yet, takes it")
    else:
        typer.echo(f"next: mmare-server queue --kit {kit} shows whether it is its turn and who is missing")


def queue(kit: KitOption = DEFAULT_KIT) -> None:
    """List submitted runs, what each is doing, and which hospitals it waits for and why."""
    from rich.console import Console

    from server.deployment.queue import queued
    from server.deployment.status import queue_table
    from server.membership.kit import load_kit

    entries = queued(load_kit(kit))
    if not entries:
        typer.echo("no run was submitted: mmare-server submit study.toml")
        return
    Console().print(queue_table(entries), highlight=False)


def abort(
    run: Annotated[str, typer.Argument(help="Its name, as mmare-server queue shows it.")],
    kit: KitOption = DEFAULT_KIT,
) -> None:
    """End a run that is queued or under way; its rounds are kept, and submitted again it resumes."""
    from server.deployment.queue import QueueState
    from server.deployment.queue import abort as abort_run
    from server.membership.kit import load_kit

    entry = abort_run(load_kit(kit), run)
    under_way = entry.state is QueueState.RUNNING
    typer.echo(f"{'ends within seconds' if under_way else 'aborted'}: {run}")
