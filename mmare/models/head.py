"""The task head: two hidden layers and dropout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["TaskHead", "draw_dropout", "dropout"]

SMALLEST_WIDTH: Final = 4  # a quarter of it is the last hidden layer


def dropout(values: Tensor, probability: float, generator: Generator) -> Tensor:
    """Inverted dropout that draws from ``generator``; torch's own uses global state."""
    kept = torch.rand(values.shape, generator=generator) >= probability
    return values * kept.to(values) / (1 - probability)


def draw_dropout(
    values: Tensor, probability: float, generator: Generator | None, *, training: bool
) -> Tensor:
    """Dropout while training, else the values unchanged.

    Raises:
        ValueError: If it must draw without a generator.
    """
    if not training or probability == 0:
        return values
    if generator is None:
        raise ValueError("training draws from a generator: pass one")
    return dropout(values, probability, generator)


class TaskHead(nn.Module):
    """Hidden layers of width D/2 and D/4, Kaiming-normal, with dropout after the second ReLU only."""

    def __init__(self, width: int, classes: int, dropout_probability: float) -> None:
        super().__init__()
        if width < SMALLEST_WIDTH:
            raise ValueError(f"width must be at least {SMALLEST_WIDTH}, found {width}")
        if not 0 <= dropout_probability < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, found {dropout_probability}")
        half, quarter = nn.Linear(width, width // 2), nn.Linear(width // 2, width // 4)
        for layer in (half, quarter):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        self.hidden = nn.Sequential(half, nn.ReLU(), quarter, nn.ReLU())
        self.out = nn.Linear(width // 4, classes)
        self.dropout_probability = dropout_probability

    def forward(self, fused: Tensor, generator: Generator | None = None) -> Tensor:
        """Logits ``(B, K)`` of ``(B, D)``; training needs a generator."""
        hidden = draw_dropout(self.hidden(fused), self.dropout_probability, generator, training=self.training)
        logits: Tensor = self.out(hidden)
        return logits
