"""Flower's ServerApp: settings from the run configuration, nodes from the Grid, then the round loop."""

from __future__ import annotations

import logging
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from mmare.errors import BusyError, InputError
from server.deployment.retry_policy import BAD_INPUT
from server.rounds.flower_fleet import POLL_S, GridFleet, hurry
from server.run.folder import execute
from server.run.request import settings_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.store.journal import Listener

__all__ = ["app", "run_on"]

LOG = logging.getLogger("flwr.mmare")  # under Flower's own, which shows what a run says

app = ServerApp()


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
    except BusyError:  # an earlier attempt, which is about to end
        raise
    except InputError as error:
        raise InputError(f"{BAD_INPUT}{error}") from None
    LOG.info("%s rounds, best %s; %s", result["rounds_run"], result["best_round"], out)
    for entry in entry_points(group="mmare.report"):
        LOG.info("report: %s", entry.load()(out))
