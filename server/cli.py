"""``mmare-server``: the coordinator's side."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mmare.console import run_command
from mmare.errors import InputError
from server.status import run_status
from server.watch import watch_run

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The coordinator's side. Errors are one sentence and an exit code; --debug shows the traceback.",
)


@app.command(epilog="Example: mmare-server status runs/mmist-fed --watch")
def status(
    run: Annotated[Path, typer.Argument(help="Run folder, of a run under way or over.")],
    watch: Annotated[
        bool, typer.Option("--watch", help="Stay and show the run, its curves and alerts until it ends.")
    ] = False,
) -> None:
    """State, rounds and sites of a run, from its journal."""
    if watch:
        watch_run(run, Console())
    else:
        Console().print(run_status(run), highlight=False)


@app.command(epilog="Example: mmare-server export --runs runs --port 9464")
def export(
    runs: Annotated[Path, typer.Option(help="Folder of run folders; new ones are found as they come.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where /metrics is served.")] = 9464,
    address: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    min_count: Annotated[
        int,
        typer.Option(min=0, help="Numbers of patients below this are not told; a study can ask for more."),
    ] = 5,
    interval: Annotated[float, typer.Option(min=0.05, help="Seconds between looks at the journals.")] = 2.0,
) -> None:
    """Tell Prometheus what the journals of runs say, until it is stopped; needs no other process."""
    from server.exporter import Exporter, serving  # noqa: PLC0415 - prometheus-client serves no other command

    if not runs.is_dir():
        raise InputError(f"{runs}: no folder; expected the folder in which runs lie")
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with serving(Exporter(runs, min_count), port, address, interval) as served:
        typer.echo(f"metrics of {runs}: http://{address}:{served}/metrics", err=True)
        stopped.wait()


def main() -> None:
    """The console script."""
    sys.exit(run_command(lambda arguments: app(arguments, standalone_mode=True), sys.argv[1:]))
