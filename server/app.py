"""Flower's ServerApp: settings from the run configuration, nodes from the Grid, then the round loop."""

from __future__ import annotations

import logging
from importlib.metadata import entry_points

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from mmare.errors import BusyError, InputError, StudyError
from mmare.study.choices import ExtraAnswer
from server.deployment.retry_policy import BAD_INPUT
from server.rounds.flower_fleet import GridFleet, shorten_polling
from server.run.folder import execute
from server.run.request import RunRequest

__all__ = ["app", "check_subsets"]

LOG = logging.getLogger("flwr.mmare")  # under Flower's own, which shows what a run says

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study that the run configuration names, and write its report where one is installed."""
    shorten_polling()
    try:
        request = RunRequest.from_config(context.run_config)
        check_subsets(request)
        result = execute(GridFleet(grid), request)
    except BusyError:  # an earlier attempt, which is about to end
        raise
    except InputError as error:
        raise InputError(f"{BAD_INPUT}{error}") from None
    LOG.info("%s rounds, best %s; %s", result["rounds_run"], result["best_round"], request.out)
    for entry in entry_points(group="mmare.report"):
        LOG.info("report: %s", entry.load()(request.out))


def check_subsets(request: RunRequest) -> None:
    """Refuse at the start what hospitals would refuse at the end."""
    extra = request.study.privacy.extra
    if request.subsets and ExtraAnswer.SUBSETS not in extra:
        raise StudyError(
            f"subsets is true, but the study that hospitals approve has [privacy] extra = {[*extra]}, "
            "expected 'subsets' in it"
        )
