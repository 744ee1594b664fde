"""Layers of DRIM: embedding encoder, masked attention fusion, discriminator.

Robinet et al., 2024: "DRIM: Learning Disentangled Representations from Incomplete Multimodal Healthcare
Data", and the released code (Lucas-rbnt/DRIM, commits 8b568821 and ce4580bd).
"""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn import functional

from mmare.models.head import draw_dropout

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = [
    "Discriminator",
    "EmbeddingEncoder",
    "MaskedAttentionFusion",
    "SeededDropout",
    "SoftmaxOne",
    "attention_weights",
]

DISCRIMINATOR_HIDDEN: Final = 1024  # whatever the width, as released


class SoftmaxOne(StrEnum):
    """Softmax of the attention: DRIM's code, the off-by-one softmax of the formula, or a plain softmax."""

    RELEASED = "released"
    FORMULA = "formula"
    OFF = "off"


def attention_weights(scores: Tensor, rule: SoftmaxOne) -> Tensor:
    """Attention weights from scores ``(..., N)`` along the last axis; minus infinity masks.

    The off-by-one softmax is ``exp(x) / (1 + sum exp(x))``: low scores get almost no weight in total. The
    released code subtracts the largest score before it adds the 1, so the weight that is lost is at most a
    half and does not depend on how low the scores are.

    Example:
        >>> low = torch.tensor([-5.0, -5.0])
        >>> [round(attention_weights(low, rule)[0].item(), 4) for rule in SoftmaxOne]
        [0.3333, 0.0066, 0.5]
    """
    top = scores.amax(dim=-1, keepdim=True)  # (..., 1)
    if rule is SoftmaxOne.FORMULA:
        top = top.clamp_min(0)  # exp(-top) cannot overflow
    powers = (scores - top).exp()
    total = powers.sum(dim=-1, keepdim=True)  # (..., 1)
    if rule is SoftmaxOne.RELEASED:
        total = 1 + total
    elif rule is SoftmaxOne.FORMULA:
        total = (-top).exp() + total
    return powers / total


class SeededDropout(nn.Module):
    """Dropout while training, drawn from a generator."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, values: Tensor, generator: Generator | None) -> Tensor:
        """Apply `draw_dropout`."""
        return draw_dropout(values, self.probability, generator, training=self.training)


class EmbeddingEncoder(nn.Module):
    """Linear, dropout, GELU, Linear, L2 normalisation: the released encoder of MRI embeddings."""

    def __init__(self, given: int, hidden: int, width: int, dropout_probability: float) -> None:
        super().__init__()
        self.first = nn.Linear(given, hidden)
        self.second = nn.Linear(hidden, width)
        self.dropout = SeededDropout(dropout_probability)

    def forward(self, rows: Tensor, generator: Generator | None = None) -> Tensor:
        """Encode ``(B, W)`` to ``(B, D)``."""
        hidden = functional.gelu(self.dropout(self.first(rows), generator))
        return functional.normalize(self.second(hidden), dim=1)


class MaskedAttentionFusion(nn.Module):
    """One layer of attention in which a learned token attends to itself and a patient's modalities.

    Only the token's output is used, so only its query is computed; the other queries of the released code
    have no effect. Dropout draws for the token alone: on weights, on attention's output, twice in the
    feed-forward. Modalities have no position, so their order does not matter.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        feedforward: int,
        dropout_probability: float,
        rule: SoftmaxOne,
    ) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(width))
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, feedforward)
        self.contract = nn.Linear(feedforward, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = SeededDropout(dropout_probability)
        self.heads, self.head_width, self.rule = heads, head_width, rule

    def forward(self, tokens: Tensor, present: Tensor, generator: Generator | None = None) -> Tensor:
        """Fuse ``(B, M, D)``, whose absent rows may hold anything, to ``(B, D)``."""
        token = self.token.expand(tokens.shape[0], 1, -1)  # (B, 1, D)
        known = torch.where(present.unsqueeze(-1), tokens, tokens.new_zeros(()))
        fused = self.token + self._attend(torch.cat([token, known], dim=1), present, generator)  # (B, D)
        hidden = functional.gelu(self.expand(self.feedforward_norm(fused)))  # (B, F)
        hidden = self.contract(self.dropout(hidden, generator))  # (B, D)
        result: Tensor = self.norm(fused + self.dropout(hidden, generator))
        return result

    def _attend(self, tokens: Tensor, present: Tensor, generator: Generator | None) -> Tensor:
        """Attention output ``(B, D)`` of the first of ``(B, 1 + M, D)``."""
        normed = self.attention_norm(tokens)
        inner = self.heads * self.head_width
        from_query, from_others = torch.split(self.query_key_value.weight, [inner, 2 * inner])
        query = functional.linear(normed[:, 0], from_query)  # (B, H * E)
        key, value = functional.linear(normed, from_others).chunk(2, dim=-1)  # (B, 1 + M, H * E) each
        query = query.reshape(-1, self.heads, self.head_width)  # (B, H, E)
        key, value = (
            part.reshape(*part.shape[:2], self.heads, -1) for part in (key, value)
        )  # (B, 1 + M, H, E)
        scores = torch.einsum("bhe,bnhe->bhn", query, key) * self.head_width**-0.5  # (B, H, 1 + M)
        absent = functional.pad(~present, (1, 0)).unsqueeze(1)  # (B, 1, 1 + M), the token is always there
        weights = attention_weights(scores.masked_fill(absent, -torch.inf), self.rule)
        seen = torch.einsum("bhn,bnhe->bhe", self.dropout(weights, generator), value)  # (B, H, E)
        result: Tensor = self.dropout(self.out(seen.flatten(1)), generator)
        return result


class Discriminator(nn.Module):
    """Classifies whether the shared and the unique half of a pair are of one patient."""

    def __init__(self, width: int, dropout_probability: float) -> None:
        super().__init__()
        sizes = (2 * width, DISCRIMINATOR_HIDDEN, 2 * width, 1)
        self.layers = nn.ModuleList(nn.Linear(given, wanted) for given, wanted in pairwise(sizes))
        self.dropout = SeededDropout(dropout_probability)

    def forward(
        self, shared: Tensor, unique: Tensor, generator: Generator | None = None, *, frozen: bool = False
    ) -> Tensor:
        """Logits ``(N,)``, high for independent halves ``(N, D)``; ``frozen`` detaches the weights."""
        values = torch.cat([shared, unique], dim=1)  # (N, 2 D)
        for step, layer in enumerate(self.layers):
            if step:
                values = functional.gelu(self.dropout(values, generator))
            weights: list[Tensor] = [layer.get_parameter("weight"), layer.get_parameter("bias")]
            if frozen:
                weights = [weight.detach() for weight in weights]
            values = functional.linear(values, *weights)
        return values.squeeze(1)
