"""Scaling, training noise and width adapters of embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn import functional

from mmare.models.numeric import BINS, is_numeric, piecewise_linear
from mmare.study.choices import Scaling

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import Generator, Tensor

    from mmare.study.specs import ModalitySpec

__all__ = ["InputScaling", "WidthAdapters", "add_noise", "moment_rows", "pooled_moments", "present_parts"]

NOISE_SHARE: Final = 0.1  # of a feature's deviation over the train rows (the thesis gives no figure)
DEVIATION_FLOOR: Final = 1e-6  # features of a ReLU network can be constant


def moment_rows(embedding: Tensor, scaling: Scaling) -> Tensor:
    """Rows ``(N, W)`` float64 whose moments are pooled: L2-normalised where that is the scaling.

    NaN is a blank cell; a length is that of the others.
    """
    rows = embedding.double()
    if scaling is not Scaling.L2:
        return rows
    return torch.where(rows.isnan(), rows, functional.normalize(_filled(rows), dim=1))


def pooled_moments(
    n: float | Sequence[float], total: Sequence[float], squares: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation from sums over rows or weights, ``(W,)`` float32 each.

    The deviation is at least 1e-6, and 0 of a feature that no row has.

    Args:
        n: Rows or weights of each sum, or of all.
        total: Sum of each feature.
        squares: Of its squares.

    Example:
        >>> pooled_moments(2, [4.0], [10.0])
        (tensor([2.]), tensor([1.]))
        >>> pooled_moments([2, 0], [4.0, 0.0], [10.0, 0.0])
        (tensor([2., 0.]), tensor([1., 0.]))
    """
    sums = torch.tensor([list(total), list(squares)], dtype=torch.float64)  # (2, W)
    over = torch.as_tensor(n, dtype=torch.float64).expand(sums.shape[1])  # (W,)
    mean, square = sums / over.clamp_min(torch.finfo(torch.float64).tiny)
    deviation = (square - mean.square()).clamp_min(0).sqrt().clamp_min(DEVIATION_FLOOR)
    return mean.float(), torch.where(over > 0, deviation, 0.0).float()


def _filled(rows: Tensor) -> Tensor:
    """The rows with zeros for blank cells."""
    return torch.where(rows.isnan(), rows.new_zeros(()), rows)


class InputScaling(nn.Module):
    """Scale embeddings with pooled moments that are saved with the model.

    Each modality has the buffers ``mean_j`` and ``deviation_j`` ``(W_j,)`` over its train rows
    (`moment_rows`), at a site its own where the study says so (`mmare.models.site_scaling`). Z-scores use
    both; training noise uses the deviation. A feature that no train row has,
    of which nothing was learned, has the deviation 0 and is zero whatever a new patient has there.

    Args:
        modalities: In slot order.
        clip: Largest size of a z-score, so that a slip in one cell does not decide; 0: any. With it, features
            that are constant in the train rows are zero as well.

    Raises:
        ValueError: If ``clip`` is negative.
    """

    def __init__(self, modalities: Sequence[ModalitySpec], clip: float = 0.0) -> None:
        super().__init__()
        if clip < 0:
            raise ValueError(f"clip must not be negative, found {clip:g}")
        self.clip = clip
        self.scalings = tuple(modality.scaling for modality in modalities)
        self.widths = tuple(modality.width for modality in modalities)
        self.tables = tuple(slot for slot, modality in enumerate(modalities) if is_numeric(modality))
        for slot, width in enumerate(self.widths):
            self.register_buffer(f"mean_{slot}", torch.zeros(width))
            self.register_buffer(f"deviation_{slot}", torch.ones(width))

    def set_moments(self, slot: int, mean: Tensor, deviation: Tensor) -> None:
        """Set the buffers ``(W,)`` of one modality."""
        self.get_buffer(f"mean_{slot}").copy_(mean)
        self.get_buffer(f"deviation_{slot}").copy_(deviation)

    def forward(self, embedding: Sequence[Tensor], present: Tensor) -> Tensor:
        """Scale ``(B, W_j)`` per modality; absent rows may hold anything, elsewhere NaN is a blank cell.

        Returns:
            ``(B, W)``, the modalities concatenated (W = sum of widths), zero where absent or blank: with
            ``zscore`` that is the mean.
        """
        slots = range(len(self.scalings))
        return torch.cat(
            [self.of_slot(slot, embedding[slot], present[:, slot : slot + 1]) for slot in slots], dim=1
        )

    def of_slot(self, slot: int, rows: Tensor, present: Tensor) -> Tensor:
        """Scale ``(B, W_j)`` of one modality, present ``(B, 1)``, as `forward`."""
        taught = self.get_buffer(f"deviation_{slot}") > 0  # (W,)
        there = present & ~rows.isnan() & taught
        scaling = self.scalings[slot]
        if scaling.standardises:
            rows = (rows - self.get_buffer(f"mean_{slot}")) / self._divisor(slot)
            rows = self._clipped(slot, rows) if self.clip else rows
        elif scaling is Scaling.L2:
            rows = functional.normalize(_filled(rows), dim=1)
        return torch.where(there, rows, rows.new_zeros(()))

    def visible(self, present: Tensor, *, someone: bool = False) -> Tensor:
        """Presence ``(B, M)`` without modalities that no train row has: nothing was learned of them.

        With ``someone``, patients who have no other keep them.
        """
        taught = [self.get_buffer(f"deviation_{slot}").any() for slot in range(len(self.widths))]
        seen = present & torch.stack(taught).to(present.device)
        return torch.where(seen.any(dim=1, keepdim=True), seen, present) if someone else seen

    def _clipped(self, slot: int, scores: Tensor) -> Tensor:
        known = self.get_buffer(f"deviation_{slot}") > DEVIATION_FLOOR  # (W,)
        return torch.where(known, scores.clamp(-self.clip, self.clip), scores.new_zeros(()))

    def _divisor(self, slot: int) -> Tensor:
        """Deviation of a modality ``(W,)``; 1 where a feature was constant in training, as in scikit-learn.

        Dividing by the floor would blow up a new patient's deviating value.
        """
        deviation = self.get_buffer(f"deviation_{slot}")
        return torch.where(deviation <= DEVIATION_FLOOR, torch.ones_like(deviation), deviation)

    def distances(self, embedding: Sequence[Tensor]) -> Tensor:
        """How far B vectors of each modality are from those of the train rows, ``(B, M)``.

        Root mean square over the features of the difference from the mean, in standard deviations: over the
        train rows the mean square is 1. Blank cells and features that no train row has are left out. Rows of
        absent modalities give any number.
        """
        parts = []
        for slot, scaling in enumerate(self.scalings):
            rows = moment_rows(embedding[slot], scaling) - self.get_buffer(f"mean_{slot}")
            rows = torch.where(self.get_buffer(f"deviation_{slot}") > 0, rows, torch.nan)
            parts.append((rows / self._divisor(slot)).square().nanmean(dim=1).sqrt())
        return torch.stack(parts, dim=1)

    def centred(self, scaled: Tensor) -> Tensor:
        """Scaled rows ``(B, W)`` less the mean of the train rows; z-scores have none."""
        means = [
            torch.zeros_like(mean) if scaling.standardises else mean
            for slot, scaling in enumerate(self.scalings)
            for mean in (self.get_buffer(f"mean_{slot}"),)
        ]
        return scaled - torch.cat(means)

    def lengths(self, *, centred: bool = False, even: bool = False) -> list[Tensor]:
        """Root mean square length of the scaled train rows of each modality, M scalars; at least 1e-6.

        With ``even`` tables share theirs: a column is as likely to tell in a wide one as in a narrow one.
        """
        found = []
        for slot, scaling in enumerate(self.scalings):
            mean, deviation = (self.get_buffer(f"{name}_{slot}") for name in ("mean", "deviation"))
            if scaling.standardises:  # a constant feature is zero
                squares = (deviation > DEVIATION_FLOOR).to(deviation)
            else:
                squares = deviation.square() if centred else mean.square() + deviation.square()
            found.append(squares.sum().sqrt().clamp_min(DEVIATION_FLOOR))
        if even and self.tables:
            shared = torch.stack([found[slot] for slot in self.tables]).square().mean().sqrt()
            return [shared if slot in self.tables else own for slot, own in enumerate(found)]
        return found

    def noise_deviation(self) -> Tensor:
        """Deviation of the training noise per scaled feature, ``(W,)``; about zero for constant features."""
        parts = []
        for slot, scaling in enumerate(self.scalings):
            deviation = self.get_buffer(f"deviation_{slot}")
            parts.append(deviation / self._divisor(slot) if scaling.standardises else deviation)
        return NOISE_SHARE * torch.cat(parts)


def add_noise(scaled: Tensor, deviation: Tensor, probability: float, generator: Generator) -> Tensor:
    """Add Gaussian noise of ``deviation`` ``(W,)`` to all embeddings ``(B, W)`` of random patients.

    Absent modalities get noise too, which no model reads.
    """
    chosen = (torch.rand(len(scaled), generator=generator) < probability).nonzero().flatten()  # (C,)
    noise = torch.randn(scaled.shape, generator=generator).index_select(0, chosen)  # (C, W)
    noise = noise.to(scaled).mul_(deviation)
    return scaled.index_add(0, chosen.to(scaled.device), noise)


def present_parts(scaled: Tensor, present: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """Split ``(B, W)`` into modalities ``(B, W_j)``, zero where absent."""
    parts = torch.split(scaled, list(widths), dim=1)
    return [
        torch.where(present[:, slot : slot + 1], part, part.new_zeros(())) for slot, part in enumerate(parts)
    ]


class WidthAdapters(nn.Module):
    """Bring modalities to one width D: Linear and ReLU where the width differs, else unchanged.

    Modalities in the slots ``bent`` have an adapter always, which reads their `piecewise_linear` encoding as
    well; its weights there start at zero, so that bends are learned where they help.
    """

    def __init__(self, widths: Sequence[int], width: int, bent: Collection[int] = ()) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be positive, found {width}")
        self.widths = tuple(widths)
        self.adapters = nn.ModuleDict(
            {
                str(slot): nn.Linear(given, width)
                for slot, given in enumerate(widths)
                if given != width or slot in bent
            }
        )
        self.bends = nn.ModuleDict(
            {str(slot): nn.Linear(BINS * widths[slot], width, bias=False) for slot in sorted(bent)}
        )
        for bend in self.bends.parameters():
            nn.init.zeros_(bend)

    def forward(self, scaled: Tensor) -> Tensor:
        """Adapt ``(B, W)`` to ``(B, M, D)``."""
        parts = list(torch.split(scaled, list(self.widths), dim=1))
        for slot, adapter in self.adapters.items():
            rows = parts[int(slot)]
            adapted = adapter(rows)
            if slot in self.bends:
                adapted = adapted + self.bends[slot](piecewise_linear(rows))
            parts[int(slot)] = functional.relu(adapted)
        return torch.stack(parts, dim=1)
