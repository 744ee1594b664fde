"""``mmare-server``: the coordinator's side. Commands import what they run, so that ``--help`` is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mmare.errors import InputError
from mmare.host.console import run_command
from server.console.commands import console as console_command
from server.deployment.commands import MinNodesOption, ModeOption, SetOption, abort, queue, submit
from server.membership.commands import DEFAULT_KIT, KitOption
from server.membership.commands import app as kit_app
from server.release.commands import extend, release
from server.run.options import StartFrom

__all__ = ["app", "main"]


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The coordinator's side. Errors are one sentence and an exit code; --debug shows the traceback.",
)
app.add_typer(kit_app, name="kit")
app.command(epilog="Example: mmare-server release coordinator/runs/first --out kidney.zip")(release)
_EXTEND = "Example: mmare-server extend coordinator/runs/first --modality rna=features:60 --out kidney-rna"
app.command(epilog=_EXTEND)(extend)


app.command(epilog="Example: mmare-server submit study.toml --kit coordinator --wait 7d")(submit)
app.command(epilog="Example: mmare-server queue --kit coordinator")(queue)
app.command("console", epilog="Example: mmare-server console --kit coordinator")(console_command)
app.command(epilog="Example: mmare-server abort kidney-federated-seed0 --kit coordinator")(abort)


@app.command(epilog="Example: mmare-server start --kit coordinator; mmare-server start study.toml")
def start(  # noqa: PLR0913 - a command line's options
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FEDERATION-or-STUDY]",
            help="A study.toml, or a folder with one, to run; without it, stay for what is submitted.",
        ),
    ] = None,
    *,
    kit: KitOption = DEFAULT_KIT,
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder; by default one in the kit's runs/, named after the study."),
    ] = None,
    mode: ModeOption = "federated",
    assignments: SetOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run with other settings.")
    ] = False,
    min_nodes: MinNodesOption = 0,
    tries: Annotated[
        int, typer.Option(min=1, help="Give up after so many attempts in a row without a new checkpoint.")
    ] = 5,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve the runs' metrics on this port, too.")
    ] = None,
    start_from: StartFrom = Path(),
    proxy: Annotated[
        bool, typer.Option("--proxy/--no-proxy", help="Run nginx as the public door, or leave it to another.")
    ] = True,
    side_by_side: Annotated[
        int | None,
        typer.Option(min=1, help="Submitted runs under way at a time, 2 by default; others wait their turn."),
    ] = None,
) -> None:
    """Run the coordinator: SuperLink, the public door, and what mmare-server submit queues, or one study.

    What dies on the way is started again and the run resumed. Ctrl-C or SIGTERM stops everything; the same
    command goes on. With a study it ends with its run, with exit code 0 only when the result is there.
    """
    of_a_run = (out is not None, assignments, overwrite, min_nodes, mode != "federated", start_from != Path())
    if source is None and any(of_a_run):
        raise InputError(
            "start without a study takes submitted runs: --out, --mode, --set, --overwrite, --min-nodes and "
            "--start-from are of one run; expected a study, or these options at mmare-server submit"
        )
    if source is not None and side_by_side is not None:
        raise InputError("--side-by-side is of submitted runs; expected it without a study")
    from server.deployment.standing import SIDE_BY_SIDE
    from server.deployment.start import StartSettings, start_run
    from server.store.journal import RESULT

    found = StartSettings(
        *(kit, source, out, mode, tuple(assignments or ()), overwrite, min_nodes, tries, metrics_port, proxy),
        side_by_side=side_by_side or SIDE_BY_SIDE,
        start_from=start_from,
    )
    done = start_run(found, Console(stderr=True))
    typer.echo("stopped" if done is None else f"result: {done / RESULT}")


@app.command(epilog="Example: mmare-server status; mmare-server status runs/mmist-fed --watch")
def status(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="Run folder, of a run under way or over; without it, the coordinator and its runs."
        ),
    ] = None,
    kit: KitOption = DEFAULT_KIT,
    *,
    watch: Annotated[
        bool, typer.Option("--watch", help="Stay and show the run, its curves and alerts until it ends.")
    ] = False,
) -> None:
    """State, rounds and sites of a run, from its journal; or programs, sites and run of a coordinator."""
    console = Console()
    runs = [run] if run is not None else _status_of_kit(kit, console, watch=watch)
    if watch and runs:
        from server.monitoring.watch import watch_run

        watch_run(runs[0], console)
        return
    from server.monitoring.run_summary import run_status

    for each in runs:
        console.print(run_status(each), *([""] if len(runs) > 1 else []), highlight=False)


def _status_of_kit(kit: Path, console: Console, *, watch: bool) -> list[Path]:
    """Print what a coordinator does; gives the folders of its runs that have begun."""
    from server.deployment.run_records import runs_under_way
    from server.deployment.status import kit_status
    from server.membership.kit import load_kit
    from server.store.journal import LOCK

    loaded = load_kit(kit)
    found = [*runs_under_way(loaded)]
    if not watch:
        console.print(kit_status(loaded), "", highlight=False)
    elif not found:
        raise InputError(f"{loaded.folder}: no run is under way; expected a run folder to watch")
    elif len(found) > 1:
        several = ", ".join(map(str, found))
        raise InputError(f"{loaded.folder}: several runs are under way; expected one to watch of {several}")
    return [each for each in found if (each / LOCK).exists()]


@app.command(epilog="Example: mmare-server export --runs runs --port 9464")
def export(
    runs: Annotated[Path, typer.Option(help="Folder of run folders; new ones are found as they come.")],
    kit: Annotated[
        Path | None, typer.Option(help="The coordinator's folder: certificates, sites and programs, too.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where /metrics is served.")] = 9464,
    address: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    min_count: Annotated[
        int,
        typer.Option(min=0, help="Numbers of patients below this are not told; a study can ask for more."),
    ] = 5,
    interval: Annotated[float, typer.Option(min=0.05, help="Seconds between looks at the journals.")] = 2.0,
) -> None:
    """Tell Prometheus what the journals of runs say, until it is stopped; needs no other process."""
    if not runs.is_dir():
        raise InputError(f"{runs}: no folder; expected the folder in which runs lie")
    if kit is not None and not (kit / "kit.toml").is_file():
        raise InputError(f"{kit}: no kit here (kit.toml is missing); mmare-server kit init makes one")
    from mmare.host.signals import stop_on_signals
    from server.monitoring.exporter import Exporter, serving

    exporter = Exporter(runs, min_count, kit)
    with stop_on_signals() as stopped, serving(exporter, port, address, interval) as served:
        typer.echo(f"metrics of {runs}: http://{address}:{served}/metrics", err=True)
        stopped.wait()


@kit_app.command(epilog="Example: mmare-server kit nginx > /etc/nginx/conf.d/mmare.conf")
def nginx(kit: KitOption = DEFAULT_KIT) -> None:
    """Print the public door for an nginx of your own, where mmare-server start runs with --no-proxy."""
    from server.deployment.proxy import shared_proxy_config
    from server.membership.kit import load_kit

    typer.echo(shared_proxy_config(load_kit(kit)), nl=False)


@kit_app.command(epilog="Example: mmare-server kit firewall --kit coordinator --apply")
def firewall(
    kit: KitOption = DEFAULT_KIT,
    *,
    user: Annotated[
        list[str] | None,
        typer.Option(
            help="Who may call SuperLink beside root and the kit's owner: of another nginx; repeat."
        ),
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Hand the rules to nft, as root.")] = False,
) -> None:
    """Print nftables rules: SuperLink closed to other users of this machine, 64 connections an address."""
    from server.deployment.firewall import apply_firewall, firewall_rules
    from server.membership.kit import load_kit

    rules = firewall_rules(load_kit(kit), user or ())
    if apply:
        apply_firewall(rules)
    else:
        typer.echo(rules, nl=False)


def main() -> None:
    """The console script."""
    sys.exit(run_command(lambda arguments: app(arguments, standalone_mode=True), sys.argv[1:]))
