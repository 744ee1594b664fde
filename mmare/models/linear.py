"""A linear term beside a deep model: logistic regression on the inputs and on what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torch import nn

from mmare.models.adapters import present_parts
from mmare.models.blocks import Block, all_samples, samples_with, samples_without
from mmare.models.numeric import BINS, piecewise_linear

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import Tensor

__all__ = ["LinearTerm"]

MISSING: Final = 0.5  # what stands in the missing vector


class LinearTerm(nn.Module):
    r"""Logits that are linear in a patient's inputs, their bends and missing vector; zero at the start.

    .. math:: A m / 2 + b + \sum_{j\ present} (W_j x_j + V_j\, p(x_j)) / \ell_j

    with the root mean square length :math:`\ell_j` of the train rows of modality j (`InputScaling.lengths`),
    and `piecewise_linear` p of the B modalities whose slots are ``bent``: there the term is an additive model
    of bent functions, one a column. A patient has, on the mean of all modalities, an input of mean square
    length 1, bends of at most 4 (of normal scores 1.8), or a half in the missing vector. So the cross entropy
    of M modalities has a curvature of at most (M + 4 B + 1) / 2 (Böhning 1992), whatever the table: gradient
    descent with the step 1 / (M + B + 1) cannot diverge, and stopped early it acts as a ridge penalty. What
    is linear is learned first, as inputs and bends share it. Halves, because ones would grow long before the
    inputs, even where what is missing tells nothing.
    """

    def __init__(self, widths: Sequence[int], classes: int, bent: Collection[int] = ()) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.bends = nn.ModuleDict(
            {str(slot): nn.Linear(BINS * widths[slot], classes, bias=False) for slot in sorted(bent)}
        )
        self.inputs = nn.ModuleList(nn.Linear(width, classes, bias=False) for width in widths)
        self.missing = nn.Linear(len(widths), classes)
        for value in self.parameters():
            nn.init.zeros_(value)

    def forward(self, scaled: Tensor, present: Tensor, lengths: Sequence[Tensor]) -> Tensor:
        """Logits ``(B, K)`` of ``(B, W)`` and ``(B, M)``; ``lengths`` are those of `InputScaling.lengths`."""
        logits = self.of_absence(present)
        parts = present_parts(scaled, present, self.widths)
        for slot, (layer, part, length) in enumerate(zip(self.inputs, parts, lengths, strict=True)):
            logits = logits + layer(part / length)
            if str(slot) in self.bends:
                logits = logits + self.bends[str(slot)](piecewise_linear(part) / length)
        return logits

    def of_absence(self, present: Tensor) -> Tensor:
        """The part of the logits that the missing vector gives, ``(B, K)``."""
        logits: Tensor = self.missing(MISSING * (~present).to(self.missing.weight.dtype))
        return logits

    def blocks(self, names: Sequence[str], path: str) -> list[Block]:
        """Inputs by presence, columns of the missing vector by absence, the intercept by all.

        Args:
            names: Of the modalities.
            path: Of this module in the model.
        """
        step = 1 / (len(names) + len(self.bends) + 1)
        found = [Block("intercept", (f"{path}.missing.bias",), all_samples, descent=step)]
        for slot, name in enumerate(names):
            missing = f"{path}.missing.weight"
            inputs = [f"{path}.inputs.{slot}.weight"]
            if str(slot) in self.bends:
                inputs.append(f"{path}.bends.{slot}.weight")
            found += [
                Block(f"linear.{name}", tuple(inputs), samples_with(slot), descent=step, unit=True),
                Block(f"missing.{name}", (missing,), samples_without(slot), column=slot, descent=step),
            ]
        return found
