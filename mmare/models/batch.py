"""A batch of patients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """Embeddings, presence and labels of B patients.

    Args:
        embedding: One ``(B, W_j)`` float tensor per modality in slot order; absent rows may hold anything,
            NaN included; in other rows NaN is a blank cell.
        present: ``(B, M)`` bool; every patient has at least one modality.
        label: ``(B,)`` int64 class indices, if known.

    Raises:
        ValueError: If shapes or types do not match, or a patient has no modality.

    Example:
        >>> batch = Batch((torch.zeros(2, 3), torch.zeros(2, 5)), torch.tensor([[True, False], [True, True]]))
        >>> len(batch), batch.widths
        (2, (3, 5))
    """

    embedding: tuple[Tensor, ...]
    present: Tensor
    label: Tensor | None = None

    def __post_init__(self) -> None:
        shape = (len(self.embedding[0]) if self.embedding else 0, len(self.embedding))
        if self.present.dtype != torch.bool or tuple(self.present.shape) != shape:
            raise ValueError(f"present must be bool of shape {shape}, found {tuple(self.present.shape)}")
        if any(part.ndim != 2 or len(part) != shape[0] for part in self.embedding):  # noqa: PLR2004 - patients, width
            raise ValueError(f"every embedding must be (B, W) with B = {shape[0]}")
        if not all(part.is_floating_point() for part in self.embedding):
            raise ValueError("embeddings must be floating point")
        if not bool(self.present.any(dim=1).all()):
            raise ValueError("every patient needs at least one modality")
        if self.label is not None and (self.label.shape != shape[:1] or self.label.dtype != torch.int64):
            raise ValueError(f"label must be int64 of shape {shape[:1]}")

    def __len__(self) -> int:
        return len(self.present)

    @property
    def widths(self) -> tuple[int, ...]:
        """Embedding widths in slot order."""
        return tuple(part.shape[1] for part in self.embedding)
