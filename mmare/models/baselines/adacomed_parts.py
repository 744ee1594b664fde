"""Layers and losses of AdaCoMed.

A stream is one modality or several concatenated. What only one stream exercises is a parameter of its own;
together they equal the released layers (``tests/mmare/models/baselines/test_adacomed.py``).
"""

from __future__ import annotations

import itertools
import math
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn import functional

from mmare.models.fusion import masked_mean
from mmare.models.head import draw_dropout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Generator, Tensor

__all__ = [
    "LogitScheme",
    "SharedHead",
    "SmallModel",
    "StreamAttention",
    "StreamProjection",
    "SubsetExperts",
    "agreement",
    "info_nce",
    "large_share",
    "subsets",
]

SMALL_WIDTH: Final = 256  # of the hidden layer of the small model
THRESHOLD, SLOPE = 0.95, 10.0  # of the threshold scheme: the repository's command line


class LogitScheme(StrEnum):
    """Weighting of the two logits; all but ``learnable`` follow how well the two models agree."""

    LEARNABLE = "learnable"
    INVERSE = "inverse"
    GAUSSIAN = "gaussian"
    THRESHOLD = "threshold"


def large_share(scheme: LogitScheme, weighing: Tensor) -> Tensor:
    """Weight of the large model's logits; the small model's is one minus it.

    Args:
        scheme: The formula, with the repository's constants.
        weighing: For ``learnable`` two scores ``(2,)``; else the models' agreement from 0 to 1, ``(1,)``,
            which gets no gradient.

    Example:
        >>> large_share(LogitScheme.THRESHOLD, torch.tensor([0.95])).item()
        0.5
    """
    if scheme is LogitScheme.LEARNABLE:
        return weighing.softmax(dim=0)[0]
    found = weighing.detach()
    if scheme is LogitScheme.INVERSE:
        large = found.sigmoid()
        return large / (large + 1 / (1 + found))
    if scheme is LogitScheme.GAUSSIAN:
        return 1 - torch.exp(-found.square() / 2)
    return 0.5 + 0.5 * torch.tanh(SLOPE * (found - THRESHOLD))


def _similarity(large: Tensor, small: Tensor, temperature: float) -> Tensor:
    return functional.normalize(large, dim=1) @ functional.normalize(small, dim=1).T / temperature


def info_nce(large: Tensor, small: Tensor, temperature: float) -> Tensor:
    r"""Contrast each patient's large feature with the small features of the batch.

    .. math:: -\frac{1}{B} \sum_i \log \frac{\exp(s_{ii} / T)}{\sum_k \exp(s_{ik} / T)}

    with the cosine :math:`s_{ik}` of large feature i and small feature k, ``(B, D)`` each. Zero for a single
    patient.
    """
    score = _similarity(large, small, temperature)  # (B, B)
    return functional.cross_entropy(score, torch.arange(len(large), device=large.device))


def agreement(large: Tensor, small: Tensor, temperature: float) -> Tensor:
    r"""How well large features ``(B, D)`` identify their small features: 0 to 1, by chance 0.5.

    .. math:: \frac{1}{B} \sum_i \frac{\exp(s_{ii} / T)}{\exp(s_{ii} / T) + n_i}

    where :math:`n_i` is the sum of :math:`\exp(s_{ik} / T)` over the others, divided by B as in the
    repository.
    """
    score = _similarity(large, small, temperature)  # (B, B)
    own = torch.eye(len(score), dtype=torch.bool, device=score.device)
    others = score.masked_fill(own, -math.inf).logsumexp(dim=1) - math.log(len(score))  # (B,)
    return (score.diagonal() - others).sigmoid().mean()


def subsets(streams: int) -> list[tuple[int, ...]]:
    """Non-empty subsets of the streams, small ones first.

    Example:
        >>> subsets(2)
        [(0,), (1,), (0, 1)]
    """
    sizes = range(1, streams + 1)
    return [subset for size in sizes for subset in itertools.combinations(range(streams), size)]


class StreamProjection(nn.Module):
    """A Linear on the concatenated modalities of a stream, its weight split per modality."""

    def __init__(self, widths: Sequence[int], hidden: int) -> None:
        super().__init__()
        whole = nn.Linear(sum(widths), hidden)
        self.weights = nn.ParameterList(
            part.clone() for part in torch.split(whole.weight.detach(), list(widths), dim=1)
        )
        self.bias = nn.Parameter(whole.bias.detach().clone())

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        """``(B, H)`` of ``(B, W_j)`` each."""
        token: Tensor = self.bias
        for weight, part in zip(self.weights, parts, strict=True):
            token = token + functional.linear(part, weight)
        return token


class StreamAttention(nn.Module):
    """Attention among a patient's streams.

    The released layer is a `torch.nn.MultiheadAttention` on the S concatenated streams (E = S·H wide). Here
    each stream is a token with its values in its own slice of E and zeros elsewhere, and of its output only
    that slice is kept. So a stream uses its columns of the query, key and value weights and its rows of the
    output weight, which are stored per stream: as many parameters as released. E must be divisible by
    ``heads``.
    """

    def __init__(self, streams: int, hidden: int, heads: int, dropout_probability: float) -> None:
        super().__init__()
        width = streams * hidden
        whole = nn.MultiheadAttention(width, heads)  # for its initial weights
        query, key, value = whole.in_proj_weight.detach().chunk(3)  # (E, E) each

        def columns(weight: Tensor) -> nn.ParameterList:
            return nn.ParameterList(part.clone() for part in torch.split(weight, hidden, dim=1))

        self.query, self.key, self.value = columns(query), columns(key), columns(value)  # (E, H) per stream
        self.query_bias = nn.Parameter(torch.zeros(width))
        self.key_bias = nn.Parameter(torch.zeros(width))
        self.value_bias = nn.Parameter(torch.zeros(width))
        self.out = nn.ParameterList(
            part.clone() for part in torch.split(whole.out_proj.weight.detach(), hidden)
        )
        self.out_bias = nn.ParameterList(torch.zeros(hidden) for _ in range(streams))
        self.heads = heads
        self.dropout_probability = dropout_probability

    def forward(self, tokens: Tensor, present: Tensor, generator: Generator | None = None) -> Tensor:
        """``(B, S, H)``, zero where absent, of ``(B, S, H)``, finite where absent; one present at least."""
        query = self._heads(tokens, self.query, self.query_bias)  # (B, heads, S, E / heads)
        key = self._heads(tokens, self.key, self.key_bias)
        value = self._heads(tokens, self.value, self.value_bias)
        score = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])  # (B, heads, S, S)
        weight = score.masked_fill(~present[:, None, None, :], -math.inf).softmax(dim=3)
        weight = draw_dropout(weight, self.dropout_probability, generator, training=self.training)
        mixed = (weight @ value).transpose(1, 2).flatten(2)  # (B, S, E)
        gained = torch.stack(
            [
                functional.linear(mixed[:, stream], rows, bias)
                for stream, (rows, bias) in enumerate(zip(self.out, self.out_bias, strict=True))
            ],
            dim=1,
        )  # (B, S, H)
        return torch.where(present.unsqueeze(-1), gained, gained.new_zeros(()))

    def _heads(self, tokens: Tensor, weights: nn.ParameterList, bias: Tensor) -> Tensor:
        made = [functional.linear(tokens[:, stream], weight, bias) for stream, weight in enumerate(weights)]
        joined = torch.stack(made, dim=1)  # (B, S, E)
        return joined.view(*joined.shape[:2], self.heads, -1).transpose(1, 2)


class SubsetExperts(nn.Module):
    """A mixture of one expert per non-empty subset of the streams.

    Expert: Linear, ReLU, Linear on the subset's slices. The gate's softmax runs over the experts whose
    streams the patient has; the released gate knows no missing stream.
    """

    needs: Tensor

    def __init__(self, streams: int, hidden: int) -> None:
        super().__init__()
        self.subsets = subsets(streams)
        self.experts = nn.ModuleList(
            nn.Sequential(
                nn.Linear(len(subset) * hidden, hidden), nn.ReLU(), nn.Linear(hidden, streams * hidden)
            )
            for subset in self.subsets
        )
        self.gate = nn.Linear(streams * hidden, len(self.subsets))
        needs = torch.tensor([[stream in subset for stream in range(streams)] for subset in self.subsets])
        self.register_buffer("needs", needs, persistent=False)  # (experts, S) bool

    def shares(self, slices: Tensor, present: Tensor) -> Tensor:
        """The gate ``(B, experts)``: sums to one, zero for experts that lack a stream."""
        usable = (present.unsqueeze(1) | ~self.needs).all(dim=2)  # (B, experts)
        score: Tensor = self.gate(slices.flatten(1))
        return score.masked_fill(~usable, -math.inf).softmax(dim=1)

    def forward(self, slices: Tensor, present: Tensor) -> Tensor:
        """Mix ``(B, S, H)`` to ``(B, S·H)``.

        The gate reads all slices, so absent ones must not depend on absent rows.
        """
        share = self.shares(slices, present)  # (B, experts)
        mixed = slices.new_zeros(slices.shape[0], slices.shape[1] * slices.shape[2])
        for number, (subset, expert) in enumerate(zip(self.subsets, self.experts, strict=True)):
            mixed = mixed + share[:, number : number + 1] * expert(slices[:, list(subset)].flatten(1))
        return mixed


class WeightNormLinear(nn.Module):
    """A weight-normalised Linear (direction and one length), as in the released small model's classifier."""

    def __init__(self, given: int, width: int) -> None:
        super().__init__()
        plain = nn.Linear(given, width)
        self.direction = nn.Parameter(plain.weight.detach().clone())
        self.length = nn.Parameter(plain.weight.detach().norm().reshape(1))
        self.bias = nn.Parameter(plain.bias.detach().clone())

    def forward(self, values: Tensor) -> Tensor:
        """``(B, width)`` of ``(B, given)``."""
        return functional.linear(values, self.direction * (self.length / self.direction.norm()), self.bias)


class SharedHead(nn.Module):
    """The classifier of large and small features: weight-normalised layers of width 2·D and K."""

    def __init__(self, width: int, classes: int, dropout_probability: float) -> None:
        super().__init__()
        self.first = WeightNormLinear(width, 2 * width)
        self.second = WeightNormLinear(2 * width, classes)
        self.dropout_probability = dropout_probability

    def forward(self, features: Tensor, generator: Generator | None = None) -> Tensor:
        """Logits ``(B, K)`` of ``(B, D)``."""
        hidden = functional.relu(self.first(features))
        hidden = draw_dropout(hidden, self.dropout_probability, generator, training=self.training)
        logits: Tensor = self.second(hidden)
        return logits


class SmallModel(nn.Module):
    """Mean of one Linear per modality, ReLU, Linear to the width D of the shared head."""

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(given, SMALL_WIDTH) for given in widths)
        self.lift = nn.Linear(SMALL_WIDTH, width)

    def forward(self, parts: Sequence[Tensor], present: Tensor) -> Tensor:
        """Features ``(B, D)`` of finite ``(B, W_j)`` per modality."""
        each = torch.stack([layer(part) for layer, part in zip(self.layers, parts, strict=True)], dim=1)
        features: Tensor = self.lift(functional.relu(masked_mean(each, present)))
        return features
