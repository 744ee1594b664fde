"""Metric states of a model on a site's rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from client.gate import withheld_patterns
from mmare.batch import Batch
from mmare.errors import SiteCode, SiteError
from mmare.exchange import Evaluation
from mmare.metrics import MetricState

if TYPE_CHECKING:
    from torch import Tensor

    from client.dataset import SiteData
    from mmare.exchange import Split
    from mmare.model import MultimodalModel

__all__ = ["evaluate", "pattern_names"]

CHUNK: Final = 4096  # rows at a time: bounds memory, far above any hospital's validation set


def pattern_names(present: Tensor) -> list[str]:
    """Presence of each patient as ones and zeros in slot order.

    Example:
        >>> pattern_names(torch.tensor([[True, False, True]]))
        ['101']
    """
    return ["".join("1" if there else "0" for there in row) for row in present.tolist()]


def evaluate(
    model: MultimodalModel, data: SiteData, split: Split, min_count: int, *, patterns: bool
) -> Evaluation:
    """Evaluate on one split; groups that are too small are withheld.

    Args:
        model: With scaling filled in.
        data: Of the site.
        split: Whose rows.
        min_count: Smallest group (split and class, or presence pattern and class) that may be told of.
        patterns: Whether to evaluate each presence pattern too.

    Raises:
        SiteError: If the model's output is not finite.
    """
    rows = data.rows[split]
    device = next(model.parameters()).device
    label = data.label[rows]
    model.eval()
    with torch.inference_mode():
        parts = [
            model(
                Batch(
                    tuple(part[chunk].to(device) for part in data.embedding), data.present[chunk].to(device)
                )
            )
            for chunk in torch.split(rows, CHUNK)
            if len(chunk)
        ]
    logits = torch.cat(parts).cpu() if parts else torch.zeros(0, model.classes)
    if not bool(logits.isfinite().all()):
        raise SiteError(SiteCode.NON_FINITE)
    return Evaluation(
        split=split,
        state=MetricState.of(logits, label).withhold(min_count).to_dict(),
        patterns=_pattern_states(logits, label, data.present[rows], min_count) if patterns else {},
    )


def _pattern_states(
    logits: Tensor, label: Tensor, present: Tensor, min_count: int
) -> dict[str, dict[str, object]]:
    names = pattern_names(present)
    rows = {name: torch.tensor([other == name for other in names]) for name in set(names)}
    states = {name: MetricState.of(logits[chosen], label[chosen]) for name, chosen in rows.items()}
    hidden = withheld_patterns({name: state.counts for name, state in states.items()}, min_count)
    found = {name: state.to_dict() for name, state in states.items() if name not in hidden}
    return dict(sorted(found.items()))
