"""Current alerts of a run for a terminal, the same as `deploy/prometheus` sends to Alertmanager."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Final

from mmare.errors import Ending, Reason, SiteCode
from mmare.study.outcome import headline_of
from server.monitoring.parts import rows_ratios
from server.monitoring.run_state import RunState

__all__ = ["run_alerts"]

STALLED: Final = 1.5  # deadlines without an event; after one, late sites are logged
SILENT_ROUNDS: Final = 3
STARVED_ROUNDS: Final = 5
NORM_RATIO: Final = 5.0  # of the median over sites
ROWS_RATIO: Final = 10.0  # of the median over the other sites
ROWS_CHANGE: Final = 1.5  # between two roll calls of a run, up or down
REGRESSION: Final = 0.1  # of pooled balanced accuracy against the best round
SITE_GAP: Final = 0.3  # of balanced accuracy between the best and the worst site
UNEXERCISED: Final = "conditioning."  # blocks for missing modalities, unused if none is missing


def run_alerts(state: RunState, now: float) -> list[tuple[str, str]]:
    """Alerts of a run, each with its name in the Prometheus rules and a sentence; none once it finished.

    Example:
        >>> run_alerts(RunState(), now=0.0)
        []
    """
    if state.failed is not None:
        name = "QuorumLost" if state.failed is Ending.QUORUM else "RunFailed"
        return [(name, f"the run failed ({state.failed}); the same command resumes it")]
    if not state.active:
        return []
    return [*_rounds(state, now), *_sites(state), *_rows(state), *_data(state), *_scores(state)]


def _rounds(state: RunState, now: float) -> Iterator[tuple[str, str]]:
    silent_s = now - state.last_event
    if state.deadline_s > 0 and silent_s > STALLED * state.deadline_s:
        yield "RoundStalled", f"no event for {silent_s:.0f} s, the deadline is {state.deadline_s:.0f} s"


def _sites(state: RunState) -> Iterator[tuple[str, str]]:
    for name, site in sorted(state.sites.items()):
        if site.missed >= SILENT_ROUNDS:
            yield "SiteSilent", f"{name} missed the last {site.missed} rounds"
    for reason, count in sorted(state.refused.items()):
        if alert := _alert_of(reason):
            yield alert, f"{count} answers of this round refused: {_in_words(reason)}"
    norms = {name: site.norm for name, site in state.sites.items() if site.norm is not None}
    median = statistics.median(norms.values()) if norms else 0.0
    for name, norm in sorted(norms.items()):
        if norm > NORM_RATIO * median > 0:
            yield "NormOutlier", f"the update of {name} is {norm / median:.1f} times the median"


def _rows(state: RunState) -> Iterator[tuple[str, str]]:
    for name, ratio in sorted(rows_ratios(state.sites).items()):
        if ratio > ROWS_RATIO:
            yield "RowsOutlier", f"{name} claims {ratio:.0f} times as many rows as the median of the others"
    for name, site in sorted(state.sites.items()):
        change = site.samples_change
        if change is not None and max(change, 1 / change) > ROWS_CHANGE:
            yield "RowsOutlier", f"{name} claims {change:.2g} times as many rows as before in this run"


def _in_words(reason: str) -> str:
    return f"{reason}, {SiteCode(reason).meaning}" if reason in list(SiteCode) else reason


def _alert_of(reason: str) -> str:
    """The alert for a refused answer; empty if there was no answer at all."""
    if reason == Reason.NODE_FAILED or reason.startswith("S40"):
        return ""
    if reason in {Reason.NON_FINITE, SiteCode.NON_FINITE}:
        return "NonFinite"
    return "PolicyDenied" if reason == SiteCode.STUDY or reason.startswith("S30") else "UpdateRejected"


def _data(state: RunState) -> Iterator[tuple[str, str]]:
    for modality in state.modalities:
        if state.absent[modality] >= STARVED_ROUNDS:
            rounds = state.absent[modality]
            yield "BlockStarved", f"no site with {modality} took part in the last {rounds} rounds"
    for block, rounds in sorted(state.starved.items()):
        if rounds >= STARVED_ROUNDS and not block.startswith(UNEXERCISED):
            yield "BlockStarved", f"block {block} had no sample in the last {rounds} rounds"


def _scores(state: RunState) -> Iterator[tuple[str, str]]:
    validation = state.scores.get("validation", {})
    name = headline_of(validation)
    score = validation.get(name)
    best = state.best_score
    if best is not None and score is not None and best - score > REGRESSION:
        yield "MetricRegression", f"validation {name.replace('_', ' ')} fell from {best:.3f} to {score:.3f}"
    worst = state.worst("validation", name)
    if worst is not None and worst[2] > SITE_GAP:
        yield "WorstSiteGap", f"{worst[0]} is {worst[2]:.3f} behind the best site"
