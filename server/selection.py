"""Which round's model is kept, and when a run stops looking."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Selection"]


@dataclass(frozen=True)
class Selection:
    """Best round so far: highest validation balanced accuracy; ties by lower log-loss, then the earlier.

    Args:
        round: Best round, 0 before any.
        score: Its balanced accuracy and negated log-loss; minus infinity where not defined.
        last: Last round that was looked at.

    Example:
        >>> first = Selection().after(1, {"balanced_accuracy": 0.6, "log_loss": 0.5})
        >>> second = first.after(2, {"balanced_accuracy": 0.6, "log_loss": 0.6})
        >>> second.round, second.exhausted(patience=1)
        (1, True)
    """

    round: int = 0
    score: tuple[float, float] = (-math.inf, -math.inf)
    last: int = 0

    def after(self, round_number: int, metrics: Mapping[str, Any]) -> Selection:
        """The selection once a round's pooled validation metrics are known."""
        accuracy, loss = metrics.get("balanced_accuracy"), metrics.get("log_loss")
        score = (-math.inf if accuracy is None else accuracy, -math.inf if loss is None else -loss)
        if self.round == 0 or score > self.score:
            return Selection(round_number, score, round_number)
        return Selection(self.round, self.score, round_number)

    def exhausted(self, patience: int) -> bool:
        """Whether ``patience`` rounds have gone by without a better one."""
        return self.last - self.round >= patience

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        score = [None if math.isinf(value) else value for value in self.score]
        return {"round": self.round, "score": score, "last": self.last}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Selection:
        """What `to_dict` gave."""
        first, second = (-math.inf if value is None else value for value in content["score"])
        return cls(content["round"], (first, second), content["last"])
