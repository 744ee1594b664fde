"""Flower's ServerApp: settings from the run configuration, nodes from the Grid, then the round loop."""

from __future__ import annotations

import logging
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from mmare.errors import InputError
from mmare.study.study import load_study
from server.grid_fleet import POLL_S, GridFleet, hurry
from server.rounds import Mode
from server.run_folder import RunSettings, execute
from server.supervisor import BAD_INPUT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmare.study.study import Study
    from server.journal import Listener

__all__ = ["app", "run_on", "settings_of"]

LOG = logging.getLogger("flwr.mmare")  # under Flower's own, which shows what a run says

app = ServerApp()


def settings_of(run_config: Mapping[str, object]) -> tuple[Study, RunSettings]:
    """Study and settings from Flower's run configuration (``pyproject.toml`` lists the keys).

    Raises:
        InputError: If a value cannot be used.
    """
    federation = str(run_config.get("federation") or "")
    source = Path(federation) if federation else _embedded()  # a folder, or a study file alone
    assignments = [part for part in str(run_config.get("set") or "").split(";") if part.strip()]
    study = load_study(source / "study.toml" if source.is_dir() else source).override(assignments)
    mode = str(run_config.get("mode") or Mode.FEDERATED)
    if mode not in list(Mode):
        raise InputError(f"mode must be one of {', '.join(Mode)}, found {mode!r}")
    out = Path(str(run_config.get("out") or "") or f"runs/{study.name}-{mode}-seed{study.seed}")
    return study, RunSettings(
        out=out.absolute(),
        federation=str(source.resolve()),
        mode=Mode(mode),
        backend=str(run_config.get("backend") or "flower"),
        overwrite=bool(run_config.get("overwrite") or False),
        trainer=str(run_config.get("trainer") or ""),
        expected_nodes=int(str(run_config.get("nodes") or 0)),
        subsets=bool(run_config.get("subsets") or False),
    )


def _embedded() -> Path:
    for entry in entry_points(group="mmare.embedded_federation"):
        folder: Path = entry.load()()
        return folder
    raise InputError("federation is empty and no embedded one is installed")


def run_on(
    grid: Grid, run_config: Mapping[str, object], listeners: tuple[Listener, ...] = (), poll_s: float = POLL_S
) -> tuple[dict[str, Any], Path]:
    """Run what a run configuration says on a Grid; returns the result and its folder."""
    study, settings = settings_of(run_config)
    return execute(GridFleet(grid, poll_s), study, settings, listeners), settings.out


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study that the run configuration names, and write its report where one is installed."""
    hurry()
    try:
        result, out = run_on(grid, context.run_config)
    except InputError as error:
        raise InputError(f"{BAD_INPUT}{error}") from None
    LOG.info("%s rounds, best %s; %s", result["rounds_run"], result["best_round"], out)
    for entry in entry_points(group="mmare.report"):
        LOG.info("report: %s", entry.load()(out))
