"""``flower-simulation``: Flower's Ray simulation of the same app, with an honest exit code.

Flower removed its own command of that name in 1.27; this one keeps its flags.
"""

from __future__ import annotations

import json
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mmare.errors import InputError
from mmare.host.console import run_command
from mmare.study.choices import Backend

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(
    epilog="Example: flower-simulation --app . --num-supernodes 2 "
    '--run-config \'federation="/data/mmist" out="/data/run"\''
)
def simulate(
    app_folder: Annotated[Path, typer.Option("--app", help="Folder of the app's pyproject.toml.")] = Path(),
    supernodes: Annotated[
        int | None, typer.Option("--num-supernodes", help="Number of nodes: that of the federation's sites.")
    ] = None,
    run_config: Annotated[
        str, typer.Option(help="key=value pairs over [tool.flwr.app.config]; texts in double quotes.")
    ] = "",
    backend_config: Annotated[str, typer.Option(help="JSON for Flower's engine.")] = "",
) -> None:
    """Run the app in Flower's Ray engine; partition i is the i-th site in id order.

    An empty federation means the embedded one of three synthetic hospitals.
    """
    from server.run.request import RunRequest

    request = RunRequest.from_config({**_config(app_folder, run_config), "backend": Backend.RAY})
    from server.store.journal import RESULT
    from simulation.progress import live_rounds
    from simulation.run import run_federation
    from sites.federation import site_folders

    sites = site_folders(request.federation)
    if supernodes is not None and supernodes != len(sites):
        raise InputError(
            f"--num-supernodes is {supernodes}, expected {len(sites)}: the sites of {request.federation}"
        )
    with live_rounds(request.study.training.rounds, Console(stderr=True)) as table:
        run_federation(request, (table,), _backend(backend_config))
    typer.echo(f"result: {request.out / RESULT}\nreport: {request.out / 'report.html'}")


def _config(folder: Path, assignments: str) -> dict[str, Any]:
    """The app's configuration with the given values over its defaults."""
    path = folder / "pyproject.toml"
    try:
        defaults: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))["tool"]["flwr"]["app"][
            "config"
        ]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        raise InputError(
            f"{path}: no Flower app ([tool.flwr.app.config]); expected this project's folder"
        ) from None
    config = dict(defaults)
    try:
        parts = shlex.split(assignments)
    except ValueError as error:
        raise InputError(f"--run-config {assignments!r}: {error}") from None
    for part in parts:
        key, equals, text = part.partition("=")
        if not equals or key not in defaults:
            known = ", ".join(sorted(defaults))
            raise InputError(f"--run-config: unknown key {key!r} in {part!r}; expected key=value of {known}")
        config[key] = _value(key, text, defaults[key])
    return config


def _value(key: str, text: str, default: object) -> object:
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise InputError(f"--run-config: {key} must be true or false, found {text!r}")
        return text == "true"
    if isinstance(default, int):
        if not text.isdecimal():
            raise InputError(f"--run-config: {key} must be a whole number, found {text!r}")
        return int(text)
    return text


def _backend(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text or "{}")
    except ValueError as error:
        raise InputError(f"--backend-config: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"--backend-config: expected a JSON object, found {text}")
    return content


def main() -> None:
    """The console script."""
    sys.exit(run_command(lambda arguments: app(arguments, standalone_mode=True), sys.argv[1:]))
