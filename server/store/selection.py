"""Selection of the best round, and early stopping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mmare.study.choices import Select
from mmare.study.outcome import headline_of

__all__ = ["NO_ROWS", "Selection", "has_no_rows", "selection_note"]

NO_ROWS: Final = "no validation rows: the best round cannot be selected, the last one is kept"
ONE_CLASS: Final = (
    "the validation rows that sites tell of lack a class: the best round cannot be selected, the last one is "
    "kept"
)
NEVER_MOVED: Final = (
    "no round scored better on validation than the first: the model that is kept has hardly been trained"
)


def has_no_rows(metrics: Mapping[str, Any]) -> bool:
    """Whether nothing was scored, so that no round can be told from another."""
    return bool(metrics["pooled"].get("n") == 0)


@dataclass(frozen=True)
class Selection:
    """Best round so far: highest validation score; ties go to the lower log-loss, then the earlier round.

    Without validation rows it is the last one, and patience does not run out.

    Example:
        >>> one = {"pooled": {"balanced_accuracy": 0.6, "log_loss": 0.5}}
        >>> two = {"pooled": {"balanced_accuracy": 0.6, "log_loss": 0.6}}
        >>> first = Selection().after(1, one, Select.BALANCED_ACCURACY)
        >>> second = first.after(2, two, Select.BALANCED_ACCURACY)
        >>> second.round, second.exhausted(patience=1)
        (1, True)
    """

    round: int = 0  # 0 before any
    score: tuple[float, float] = (-math.inf, -math.inf)  # and negated log-loss; -inf if undefined
    last: int = 0  # last round seen

    def after(self, round_number: int, metrics: Mapping[str, Any], select: Select) -> Selection:
        """The selection after a round with these metrics (`server.rounds.round_metrics.headline`)."""
        first, loss = _value(metrics, select), metrics["pooled"].get("log_loss")
        score = (-math.inf if first is None else first, -math.inf if loss is None else -loss)
        if blind := _is_blind(metrics, select):
            score = (-math.inf, -math.inf)
        nothing = (blind or has_no_rows(metrics)) and score == self.score  # and none of the rounds before
        if self.round == 0 or score > self.score or nothing:
            return Selection(round_number, score, round_number)
        return Selection(self.round, self.score, round_number)

    def exhausted(self, patience: int) -> bool:
        """Whether ``patience`` rounds passed without improvement."""
        return self.last - self.round >= patience

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        score = [None if math.isinf(value) else value for value in self.score]
        return {"round": self.round, "score": score, "last": self.last}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Selection:
        """Reverse `to_dict`."""
        first, second = (-math.inf if value is None else value for value in content["score"])
        return cls(content["round"], (first, second), content["last"])


def selection_note(selection: Selection, metrics: Mapping[str, Any], select: Select, first: int) -> str:
    """What is wrong with a selection, in one sentence; empty if nothing is.

    Args:
        selection: Final.
        metrics: Of its round on validation.
        select: The score.
        first: Round that was validated first.
    """
    if has_no_rows(metrics):
        return NO_ROWS
    if _is_blind(metrics, select):
        return ONE_CLASS
    return NEVER_MOVED if selection.round == first < selection.last else ""


def _is_blind(metrics: Mapping[str, Any], select: Select) -> bool:
    """Whether rows of a single class would choose the model that calls everybody so."""
    return select in _OF_ALL_CLASSES and metrics["pooled"].get("auc", math.inf) is None


def _value(metrics: Mapping[str, Any], select: Select) -> float | None:
    """The value to maximise."""
    if select is Select.WORST_SITE:
        scores = (site.get(headline_of(site)) for site in metrics["sites"].values())
        return min((score for score in scores if score is not None), default=None)
    value: float | None = metrics["pooled"].get(_METRIC[select])
    return -value if value is not None and select in LOSSES else value


_METRIC = {
    Select.BALANCED_ACCURACY: "balanced_accuracy",
    Select.AUC: "auc",
    Select.LOSS: "log_loss",
    Select.BALANCED_LOSS: "balanced_log_loss",
    Select.CONCORDANCE: "concordance",
    Select.R2: "r2",
}
LOSSES: Final = {Select.LOSS, Select.BALANCED_LOSS}
_OF_ALL_CLASSES: Final = {Select.AUC, *LOSSES}
