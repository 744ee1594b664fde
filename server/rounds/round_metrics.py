"""Merge of the sites' metric states: pooled, per site, per presence pattern, worst site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from mmare.errors import Reason
from mmare.metrics.attribution import AttributionState, merge_attributions
from mmare.metrics.calibration import CalibrationState, merge_calibration
from mmare.metrics.operating import Rule, choose_threshold, class_scores_at, positive_scores
from mmare.metrics.state import BINARY
from mmare.study.outcome import TASKS
from mmare.tasks.registry import task_of
from mmare.wire.messages import Split, WireError
from server.store.states import Kept

if TYPE_CHECKING:
    from mmare.study.study import Study
    from mmare.tasks.base import State, Task
    from mmare.wire.messages import Evaluation, Update

__all__ = [
    "SplitStates",
    "collect_states",
    "final_metrics",
    "headline",
    "joined_states",
    "metrics_of",
    "trained_state",
]

INTERVALS_SEED: Final = 0  # fixed, so that the same states give the same result file


class SplitStates:
    """Metric states of one split, sorted by site id: of all rows, per presence pattern and per subset.

    A secure sum knows no single site: there ``pooled`` is the state of all of them, and the attribution of
    all stands under an empty name.
    """

    def __init__(
        self,
        sites: Mapping[str, State],
        patterns: Mapping[str, Mapping[str, State]],
        subsets: Mapping[str, Mapping[str, State]],
        pooled: State | None = None,
        calibration: CalibrationState | None = None,
        attributions: Mapping[str, AttributionState] | None = None,
    ) -> None:
        self.attributions = dict(sorted((attributions or {}).items()))  # by site, of those that told them
        self.calibration = calibration  # over all sites, if they were asked
        self._pooled = pooled
        self.sites = dict(sorted(sites.items()))
        self.patterns = {name: dict(sorted(states.items())) for name, states in sorted(patterns.items())}
        self.subsets = {name: dict(sorted(states.items())) for name, states in sorted(subsets.items())}

    def pooled(self, task: Task[Any]) -> State:
        """The state of the rows of all sites."""
        state: State = self._pooled or task.merge(list(self.sites.values()))
        return state

    def kept(self, study: Study) -> Kept[State]:
        """As the journal keeps them."""
        return Kept(self.pooled(task_of(study)), self.sites, self.calibration)


def collect_states(updates: Mapping[str, Update], split: Split, study: Study) -> SplitStates:
    """The states of one split that sites sent.

    Raises:
        WireError: If a state or pattern is invalid.
    """
    told = [
        _states_of(site, evaluation, study)
        for site, update in updates.items()
        for evaluation in update.evaluations
        if evaluation.split is split
    ]
    return joined_states(told, len(study.classes))


def _states_of(site: str, evaluation: Evaluation, study: Study) -> SplitStates:
    state = _state(evaluation.state, study)
    patterns: dict[str, dict[str, State]] = {}
    subsets: dict[str, dict[str, State]] = {}
    for groups, sent in ((patterns, evaluation.patterns), (subsets, evaluation.subsets)):
        for name, one in sent.items():
            _check_pattern(name, study)
            groups[name] = {site: _state(one, study)}
    grid, shares = evaluation.calibration, evaluation.attribution
    return SplitStates(
        {site: state},
        patterns,
        subsets,
        calibration=_grid(grid, state, study) if grid else None,
        attributions={site: _attribution(shares, study)} if shares else {},
    )


def joined_states(states: Sequence[SplitStates], classes: int) -> SplitStates:
    """Those of several sites together; of each at most one has a calibration."""
    patterns: dict[str, dict[str, State]] = {}
    subsets: dict[str, dict[str, State]] = {}
    for each in states:
        for found, own in ((patterns, each.patterns), (subsets, each.subsets)):
            for name, of_sites in own.items():
                found.setdefault(name, {}).update(of_sites)
    told = {site: each.calibration for each in states for site in each.sites if each.calibration is not None}
    grids = [told[site] for site in sorted(told)]
    return SplitStates(
        {site: state for each in states for site, state in each.sites.items()},
        patterns,
        subsets,
        calibration=merge_calibration(grids, classes) if grids else None,
        attributions={site: state for each in states for site, state in each.attributions.items()},
    )


def _check_pattern(name: str, study: Study) -> None:
    if len(name) != len(study.modalities) or set(name) - {"0", "1"} or "1" not in name:
        raise WireError("a presence pattern that the study does not have")


def trained_state(update: Update, study: Study) -> State:
    """The validation state of the model that a site trained.

    Raises:
        WireError: If it is missing, invalid or of another split.
    """
    if update.trained is None or update.trained.split is not Split.VAL:
        raise WireError("no evaluation of the trained model on the validation split", Reason.METRICS)
    return _state(update.trained.state, study)


def _state(content: Mapping[str, Any], study: Study) -> State:
    try:
        state: State = task_of(study).read(dict(content))
    except ValueError as error:
        raise WireError(f"metric state: {error}", Reason.METRICS) from None
    return state


def _grid(content: Mapping[str, Any], state: State, study: Study) -> CalibrationState:
    try:
        found = CalibrationState.from_dict(dict(content), len(study.classes))
    except ValueError as error:
        raise WireError(f"calibration state: {error}", Reason.METRICS) from None
    if tuple(found.counts.tolist()) != state.counts:
        raise WireError("calibration state of other rows than the metric state", Reason.METRICS)
    return found


def _attribution(content: Mapping[str, Any], study: Study) -> AttributionState:
    try:
        return AttributionState.from_dict(dict(content), len(study.modalities))
    except ValueError as error:
        raise WireError(f"attribution state: {error}", Reason.METRICS) from None


def headline(states: SplitStates, study: Study) -> dict[str, Any]:
    """Pooled and per-site metrics without intervals, as logged each round."""
    task = task_of(study)
    pooled = states.pooled(task)
    return {
        "pooled": task.compute(pooled),
        "sites": {site: task.compute(state, pooled) for site, state in states.sites.items()},
    }


def metrics_of(states: SplitStates, study: Study) -> dict[str, Any]:
    """All metrics of one split, with 95 % intervals, as in ``result.json``.

    ``spread`` is the largest minus the smallest headline metric of a site; ``subsets`` evaluate the model on
    only some modalities. ``over`` lists, per class or stratum, the sites whose rows of it are pooled: one
    that is too small at a site is withheld there. ``shapley`` says how far each modality moves
    predictions, ``risk_groups`` how times differ between patients of lower and higher risk.
    """
    task, name_of_score = task_of(study), TASKS[study.task].headline
    scores = {
        site: value
        for site, state in states.sites.items()
        if (value := task.compute(state)[name_of_score]) is not None
    }

    pooled = states.pooled(task)

    def detailed(state: State) -> dict[str, Any]:
        return task.detailed(state, INTERVALS_SEED, pooled)

    worst = min(scores, key=lambda site: (scores[site], site)) if scores else None
    return {
        "pooled": detailed(pooled),
        "sites": {site: detailed(state) for site, state in states.sites.items()},
        "patterns": {
            name: detailed(task.merge(list(parts.values()))) for name, parts in states.patterns.items()
        },
        "subsets": {
            name: task.compute(task.merge(list(parts.values())), pooled)
            for name, parts in states.subsets.items()
        },
        "spread": max(scores.values()) - min(scores.values()) if scores else None,
        "worst_site": None if worst is None else {"site": worst, name_of_score: scores[worst]},
        "over": {
            name: [site for site, state in states.sites.items() if state.counts[index] > 0]
            for index, name in enumerate(study.classes)
        },
        **_shapley(states, study),
        **task.described(pooled),
    }


def _shapley(states: SplitStates, study: Study) -> dict[str, Any]:
    """Of all sites' rows and of each site's; nothing where no site told any."""
    if not states.attributions:
        return {}
    names = [modality.name for modality in study.modalities]
    pooled = merge_attributions(states.attributions.values(), len(names))
    sites = {site: state.compute(names) for site, state in states.attributions.items() if site}
    return {"shapley": {"pooled": pooled.compute(names), "sites": sites}}


def final_metrics(states: Mapping[str, SplitStates], study: Study) -> dict[str, Any]:
    """`metrics_of` validation and test; the test's have what a threshold gives, too (``operating_point``)."""
    metrics = {name: metrics_of(found, study) for name, found in states.items()}
    metrics["test"]["operating_point"] = _at_operating_point(states["validation"], states["test"], study)
    return metrics


def _at_operating_point(validation: SplitStates, test: SplitStates, study: Study) -> dict[str, Any] | None:
    """Scores of the classes that a threshold gives, instead of the larger probability.

    The threshold has the largest sum of sensitivity and specificity on the validation rows of all sites: if
    few are positive, the larger probability may be that of the others for everybody. ``None`` without two
    classes, of which one is named positive, or without validation rows of both.
    """
    positive, task = study.positive_index, task_of(study)
    if positive is None or len(study.classes) != BINARY:
        return None
    seen: Any = validation.pooled(task)  # a MetricState, as all states of classes
    if not all(seen.counts):
        return None
    threshold = choose_threshold(*positive_scores(seen, positive), Rule.YOUDEN)

    def scored(state: Any) -> dict[str, Any]:  # noqa: ANN401 - as above
        return class_scores_at(state, positive, threshold)

    return {
        "rule": Rule.YOUDEN.value,
        "threshold": threshold,
        "validation": scored(seen),
        "pooled": scored(test.pooled(task)),
        "sites": {site: scored(state) for site, state in test.sites.items()},
    }
