"""The Flower app that travels, and its runs: submitted, asked about and stopped by Flower's command line.

What travels holds no logic: two lines that name the app which the coordinator, or the hospital, has
installed. Flower's command line leaves with exit code 0 whatever happened, so its answers are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import tomli_w

from mmare.errors import InputError, RunError
from mmare.host.files import write_whole
from server.membership.flower_cli import CONNECTION, flower_answer, flower_output
from server.run.request import default_config

if TYPE_CHECKING:
    from collections.abc import Collection

    from server.membership.kit import Kit
    from server.run.request import RunRequest

__all__ = [
    "FlowerRun",
    "app_files",
    "flower_status",
    "run_log",
    "stop_run",
    "stop_runs",
    "submit_run",
    "write_app",
]

SERVER_APP, CLIENT_APP = "coordinator_app", "relay_app"


@dataclass(frozen=True)
class FlowerRun:
    """What Flower says of a run.

    Args:
        status: ``pending``, ``starting``, ``running``, ``finished:completed``, ``finished:failed`` or
            ``finished:stopped``.
        details: Why, where it failed.
    """

    status: str
    details: str = ""


def app_files() -> dict[str, str]:
    """The app, by file name."""
    project = {
        "project": {
            "name": "mmare",
            "version": version("federated-mmare"),
            "description": "Names the installed apps of federated-mmare.",
            "dependencies": [],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "mmare",
                    "fab-include": [f"{SERVER_APP}.py", f"{CLIENT_APP}.py"],
                    "components": {"serverapp": f"{SERVER_APP}:app", "clientapp": f"{CLIENT_APP}:app"},
                    "config": default_config(),
                }
            }
        },
    }
    files = {"pyproject.toml": tomli_w.dumps(project)}
    for name, module in ((SERVER_APP, "server.app"), (CLIENT_APP, "client.relay.app")):
        # Flower looks for an assignment to `app` before it takes a bundle
        files[f"{name}.py"] = f"from {module} import app as installed\n\napp = installed\n"
    return files


def write_app(kit: Kit) -> None:
    """Write the app into the kit.

    Raises:
        InputError: If it cannot be written.
    """
    try:
        kit.app.mkdir(parents=True, exist_ok=True)
        for name, text in app_files().items():
            write_whole(kit.app / name, text.encode())
    except OSError as error:
        raise InputError(f"{kit.app}: cannot be written ({type(error).__name__})") from None


def submit_run(kit: Kit, request: RunRequest) -> int:
    """Submit a run of the app.

    Args:
        kit: Whose SuperLink takes it.
        request: What to run.

    Returns:
        Flower's number of it.

    Raises:
        RunError: If SuperLink does not take it.
    """
    path = kit.state / "run-config.toml"  # a file, since quotes within words would be cut
    try:
        write_whole(path, tomli_w.dumps(request.to_config()).encode())
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror})") from None
    answer = flower_answer(kit, "run", str(kit.app), CONNECTION, "--run-config", str(path))
    return int(answer["run-id"])


def flower_status(kit: Kit, run: int) -> FlowerRun:
    """How a run is doing.

    Raises:
        RunError: If SuperLink does not answer or does not know it.
    """
    runs = flower_answer(kit, "list", CONNECTION, "--run-id", str(run)).get("runs") or []
    if not runs:
        raise RunError(f"SuperLink does not know the run {run}")
    details = str(runs[0].get("status-details", ""))
    return FlowerRun(str(runs[0]["status"]), "" if details == "N/A" else details)


def stop_run(kit: Kit, run: int) -> bool:
    """Stop a run, with what was on its way to the sites; whether there was anything to stop."""
    try:
        flower_answer(kit, "stop", str(run), CONNECTION)
    except RunError:
        return False  # over already, or unknown
    return True


def stop_runs(kit: Kit, keep: Collection[int] = ()) -> list[int]:
    """Stop every run that is not over, as a crash may leave some behind, but those to ``keep``.

    Returns:
        Their numbers.

    Raises:
        RunError: If SuperLink does not list its runs.
    """
    runs = flower_answer(kit, "list", CONNECTION).get("runs") or []
    left = [int(run["run-id"]) for run in runs if not str(run["status"]).startswith("finished")]
    return [run for run in left if run not in keep and stop_run(kit, run)]


def run_log(kit: Kit, run: int) -> str:
    """What the run's ServerApp wrote; nothing where SuperLink does not say."""
    try:
        return flower_output(kit, "log", str(run), CONNECTION, "--show")
    except RunError:
        return ""
