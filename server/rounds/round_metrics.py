"""Merge of the sites' metric states: pooled, per site, per presence pattern, worst site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from mmare.errors import Reason
from mmare.metrics.intervals import bootstrap_intervals
from mmare.metrics.state import MetricState, merge_all
from mmare.wire.messages import Split, WireError

if TYPE_CHECKING:
    from mmare.study.study import Study
    from mmare.wire.messages import Update

__all__ = ["SplitStates", "collect_states", "headline", "metrics_of", "trained_state"]

INTERVALS_SEED: Final = 0  # of the bootstrap: the same result file for the same states


class SplitStates:
    """States of one split: of all rows per site, and of groups of rows over sites.

    Args:
        sites: State per site id.
        patterns: Per presence pattern, state per site id.
        subsets: Per subset of modalities, state per site id.
    """

    def __init__(
        self,
        sites: Mapping[str, MetricState],
        patterns: Mapping[str, Mapping[str, MetricState]],
        subsets: Mapping[str, Mapping[str, MetricState]],
    ) -> None:
        self.sites = dict(sorted(sites.items()))
        self.patterns = {name: dict(sorted(states.items())) for name, states in sorted(patterns.items())}
        self.subsets = {name: dict(sorted(states.items())) for name, states in sorted(subsets.items())}


def collect_states(updates: Mapping[str, Update], split: Split, study: Study) -> SplitStates:
    """The states that sites sent of one split.

    Raises:
        WireError: If a state is not one.
    """
    sites: dict[str, MetricState] = {}
    patterns: dict[str, dict[str, MetricState]] = {}
    subsets: dict[str, dict[str, MetricState]] = {}
    for site, update in updates.items():
        for evaluation in update.evaluations:
            if evaluation.split is split:
                sites[site] = _state(evaluation.state, study)
                for groups, told in ((patterns, evaluation.patterns), (subsets, evaluation.subsets)):
                    for name, state in told.items():
                        groups.setdefault(_pattern(name, study), {})[site] = _state(state, study)
    return SplitStates(sites, patterns, subsets)


def _pattern(name: str, study: Study) -> str:
    """The name of a presence pattern, once it is one of the study.

    Raises:
        WireError: If it is none.
    """
    if len(name) != len(study.modalities) or set(name) - {"0", "1"} or "1" not in name:
        raise WireError("a presence pattern that the study does not have")
    return name


def trained_state(update: Update, study: Study) -> MetricState:
    """The validation state of the model that a site trained.

    Raises:
        WireError: If it is not one, or of another split.
    """
    if update.trained is None or update.trained.split is not Split.VAL:
        raise WireError("an evaluation of the trained model on another split than validation", Reason.METRICS)
    return _state(update.trained.state, study)


def _state(content: Mapping[str, Any], study: Study) -> MetricState:
    try:
        return MetricState.from_dict(dict(content), len(study.classes))
    except ValueError as error:
        raise WireError(f"metric state: {error}", Reason.METRICS) from None


def headline(states: SplitStates, study: Study) -> dict[str, Any]:
    """Pooled and per-site metrics without intervals: what a round needs."""
    positive = study.positive_index
    pooled = merge_all(list(states.sites.values()), len(study.classes))
    return {
        "pooled": pooled.compute(positive),
        "sites": {site: state.compute(positive) for site, state in states.sites.items()},
    }


def metrics_of(states: SplitStates, study: Study) -> dict[str, Any]:
    """Everything a result says of one split, with 95 % intervals.

    ``spread`` is the largest less the smallest balanced accuracy of a site, ``subsets`` what the model does
    with only some modalities. ``over`` names, per class, the sites whose rows of that class are in the pooled
    value: a class that is too small at a site is withheld there.
    """
    classes = len(study.classes)
    pooled = merge_all(list(states.sites.values()), classes)
    scores = {
        site: value
        for site, state in states.sites.items()
        if (value := state.compute(study.positive_index)["balanced_accuracy"]) is not None
    }
    worst = min(scores, key=lambda site: (scores[site], site)) if scores else None
    return {
        "pooled": _with_intervals(pooled, study),
        "sites": {site: _with_intervals(state, study) for site, state in states.sites.items()},
        "patterns": {
            name: _with_intervals(merge_all(list(parts.values()), classes), study)
            for name, parts in states.patterns.items()
        },
        "subsets": {
            name: merge_all(list(parts.values()), classes).compute(study.positive_index)
            for name, parts in states.subsets.items()
        },
        "spread": max(scores.values()) - min(scores.values()) if scores else None,
        "worst_site": None if worst is None else {"site": worst, "balanced_accuracy": scores[worst]},
        "over": {
            name: [site for site, state in states.sites.items() if state.counts[index] > 0]
            for index, name in enumerate(study.classes)
        },
    }


def _with_intervals(state: MetricState, study: Study) -> dict[str, Any]:
    positive = study.positive_index
    return {
        **state.compute(positive),
        "auc_error_bound": state.auc_error_bound(),  # the AUC is of binned scores
        "ci95": bootstrap_intervals(state, positive, INTERVALS_SEED),
    }
