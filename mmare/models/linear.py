"""A linear term beside a deep model: logistic regression on the inputs and on what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torch import nn

from mmare.models.adapters import present_parts
from mmare.models.blocks import Block, all_samples, samples_with, samples_without

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["LinearTerm"]

MISSING: Final = 0.5  # what stands in the missing vector


class LinearTerm(nn.Module):
    r"""Logits that are linear in a patient's inputs and missing vector; zero at the start.

    .. math:: A m / 2 + b + \sum_{j\ present} W_j x_j / \ell_j

    with the root mean square length :math:`\ell_j` of the train rows of modality j. Of each modality a
    patient has an input of mean square length 1 or a half in the missing vector, so the cross entropy of M
    modalities has a curvature of at most (M + 1) / 2 (Böhning 1992), whatever the table: gradient descent
    with the step 1 / (M + 1) cannot diverge, and stopped early it acts as a ridge penalty. Halves, because
    ones would grow long before the inputs, even where what is missing tells nothing.
    """

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.inputs = nn.ModuleList(nn.Linear(width, classes, bias=False) for width in widths)
        self.missing = nn.Linear(len(widths), classes)
        for value in self.parameters():
            nn.init.zeros_(value)

    def forward(self, scaled: Tensor, present: Tensor, lengths: Sequence[Tensor]) -> Tensor:
        """Logits ``(B, K)`` of ``(B, W)`` and ``(B, M)``; ``lengths`` are those of `InputScaling.lengths`."""
        logits: Tensor = self.missing(MISSING * (~present).to(scaled.dtype))
        parts = present_parts(scaled, present, self.widths)
        for layer, part, length in zip(self.inputs, parts, lengths, strict=True):
            logits = logits + layer(part / length)
        return logits

    def blocks(self, names: Sequence[str], path: str) -> list[Block]:
        """Inputs by presence, columns of the missing vector by absence, the intercept by all.

        Args:
            names: Of the modalities.
            path: Of this module in the model.
        """
        step = 1 / (len(names) + 1)
        found = [Block("intercept", (f"{path}.missing.bias",), all_samples, descent=step)]
        for slot, name in enumerate(names):
            inputs, missing = f"{path}.inputs.{slot}.weight", f"{path}.missing.weight"
            found += [
                Block(f"linear.{name}", (inputs,), samples_with(slot), descent=step),
                Block(f"missing.{name}", (missing,), samples_without(slot), column=slot, descent=step),
            ]
        return found
