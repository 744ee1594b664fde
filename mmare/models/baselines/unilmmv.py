"""UniLMMV: masked attention over the present modalities, summarised by a learned token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn import functional

from mmare.models.base import MultimodalModel
from mmare.models.blocks import Block, samples_with
from mmare.models.head import draw_dropout
from mmare.models.hiding.subsets import hide_modalities

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Generator, Tensor

    from mmare.study.specs import ModalitySpec

__all__ = ["UniLMMV", "UniLMMVOptions"]

DEVIATION: Final = 0.02  # of initial weights, as in GPT-2


class MaskedBlock(nn.Module):
    """Pre-norm attention and MLP with residuals and no biases.

    Dropout is on attention weights and on both residual branches.
    """

    def __init__(self, width: int, heads: int, dropout_probability: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width, bias=False)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.norm_mlp = nn.LayerNorm(width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)
        self.heads = heads
        self.dropout_probability = dropout_probability

    def forward(self, tokens: Tensor, visible: Tensor, generator: Generator | None) -> Tensor:
        """Transform ``(B, T, D)``; others attend only to tokens that are ``visible`` ``(B, T)``.

        At least one per patient must be. Invisible tokens hold finite but meaningless values.
        """
        patients, count, width = tokens.shape
        split = self.query_key_value(self.norm_attention(tokens)).view(patients, count, 3, self.heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # (B, heads, T, D / heads) each
        score = query @ key.transpose(2, 3) / math.sqrt(width // self.heads)  # (B, heads, T, T)
        weight = score.masked_fill(~visible[:, None, None, :], -math.inf).softmax(dim=3)
        mixed = (self._drop(weight, generator) @ value).transpose(1, 2).flatten(2)  # (B, T, D)
        tokens = tokens + self._drop(self.attention_out(mixed), generator)
        hidden = functional.gelu(self.mlp_in(self.norm_mlp(tokens)))
        return tokens + self._drop(self.mlp_out(hidden), generator)

    def _drop(self, values: Tensor, generator: Generator | None) -> Tensor:
        return draw_dropout(values, self.dropout_probability, generator, training=self.training)


@dataclass(frozen=True)
class UniLMMVOptions:
    """Options of UniLMMV."""

    width: int = 512  # D
    depth: int = 6  # blocks
    heads: int = 8
    dropout: float = 0.1  # in the blocks
    modality_dropout: float = 0.5  # probability that a modality is hidden while training
    per_column: bool = False  # hide a modality of the whole batch, as the repository does


class UniLMMV(MultimodalModel):
    """The masked attention of UniLMMV at one point in time (UniLMMV, repository uncbiag/UniLMMV at 97645e56).

    A learned token and one token per modality, each plus the positional row of its slot, pass through blocks
    of masked attention; the learned token is classified. For MMIST (512, 512, 1024, 512) and two classes it
    has 20,985,856 trainable parameters: three MLPs (1,575,936) and one Linear (524,800) as adapters, six
    blocks (18,880,512), the token and five positional rows (3,072), the last LayerNorm (512) and the
    classifier (1,024). The thesis reports 21.0 M.

    Differences from the repository:

    - No decoder over months: a study has one point in time, where the decoder would be one more MLP per
      patient, and the thesis's 21.0 M leaves no room for it. Nor the row for a whole month without an image
      (512 parameters), which the classified token never reads.
    - Embeddings come from frozen encoders, so an adapter replaces each trained encoder: Linear, GELU, Linear
      where the width is D, else one Linear. This reading gives the thesis's size. Adapters start
      Kaiming-normal, so that their tokens have the scale of the embeddings, as those of the published
      encoders; all else starts as in GPT-2.
    - Absent tokens are masked as keys with minus infinity. The repository also masks them as queries and
      fills with -1e9; the classified token sees the same.
    - Modality dropout is drawn per patient and leaves one modality. The repository draws once per modality
      for the whole batch and can hide all of them (``per_column``).

    Blocks: adapter and positional row of a modality count the patients who have it. Modality dropout can hide
    a modality from a whole batch: with draws per patient the probability is at most ``modality_dropout ** n``
    for n patients who have it, 2e-10 for 32 (zero if one of them has nothing else). With ``per_column`` it is
    ``modality_dropout`` in each batch, so exposures then count patients whose modality was hidden.
    """

    Options = UniLMMVOptions
    SEPARATE = True

    def __init__(
        self, modalities: Sequence[ModalitySpec], classes: int, options: UniLMMVOptions = UniLMMVOptions()
    ) -> None:
        super().__init__(modalities, classes, options)
        _check(options)
        width = options.width
        self.adapters = nn.ModuleList(_adapter(given, width) for given in self.scaling.widths)
        self.summary = nn.Parameter(torch.empty(width))
        self.positions = nn.ParameterList(torch.empty(width) for _ in range(len(modalities) + 1))
        self.attention = nn.ModuleList(
            MaskedBlock(width, options.heads, options.dropout) for _ in range(options.depth)
        )
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, classes, bias=False)
        self.modality_dropout = options.modality_dropout
        self.per_column = options.per_column
        self._start(options.depth)

    def _start(self, depth: int) -> None:
        """Initialise all but the adapters as GPT-2 does: residual branches start smaller with depth."""
        for value in (self.summary, *self.positions, self.head.weight):
            nn.init.normal_(value, std=DEVIATION)
        for name, value in self.attention.named_parameters():
            if "norm" not in name:
                added = name.endswith("_out.weight")
                nn.init.normal_(value, std=DEVIATION / math.sqrt(2 * depth) if added else DEVIATION)

    def logits(self, scaled: Tensor, present: Tensor, generator: Generator | None = None) -> Tensor:
        """Classify by the learned token; training hides some modalities."""
        visible = self._visible(present, generator)  # (B, M)
        parts = torch.split(scaled, list(self.scaling.widths), dim=1)
        shape = scaled.shape[0], len(self.summary)
        tokens = [self.summary.expand(shape) + self.positions[0].expand(shape)]  # (B, D) each
        for slot, adapter in enumerate(self.adapters):
            there = visible[:, slot : slot + 1]
            rows = torch.where(there, parts[slot], parts[slot].new_zeros(()))
            token = adapter(rows) + self.positions[slot + 1].expand(shape)
            tokens.append(torch.where(there, token, token.new_zeros(())))
        stacked = torch.stack(tokens, dim=1)  # (B, 1 + M, D)
        seen = functional.pad(visible, (1, 0), value=True)  # (B, 1 + M)
        for block in self.attention:
            stacked = block(stacked, seen, generator)
        logits: Tensor = self.head(self.norm(stacked[:, 0]))
        return logits

    def _visible(self, present: Tensor, generator: Generator | None) -> Tensor:
        """The present modalities, less those that modality dropout hides while training."""
        if not self.training or self.modality_dropout == 0:
            return present
        if generator is None:
            raise ValueError("training draws from a generator: pass one")
        modalities = present.shape[1]
        if self.per_column:
            kept = torch.rand(modalities, generator=generator) >= self.modality_dropout
            return present & kept.to(present.device)
        return hide_modalities(present, torch.full((modalities,), self.modality_dropout), generator)

    def blocks(self) -> tuple[Block, ...]:
        """Adapter and positional row of each modality by presence, the rest by all."""
        return self.with_shared_block(
            [
                Block(
                    f"modality.{modality}",
                    (*self.parameters_under(f"adapters.{slot}"), f"positions.{slot + 1}"),
                    samples_with(slot),
                )
                for slot, modality in enumerate(self.modality_names)
            ]
        )


def _check(options: UniLMMVOptions) -> None:
    """Raise `ValueError` for options out of range."""
    for name in ("width", "depth", "heads"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be positive, found {getattr(options, name)}")
    if options.width % options.heads:
        raise ValueError(f"width must divide by heads, found {options.width} and {options.heads}")
    for name in ("dropout", "modality_dropout"):
        if not 0 <= getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, found {getattr(options, name)}")


def _adapter(given: int, width: int) -> nn.Module:
    """An MLP where the width is D, else one Linear; Kaiming-normal, biases zero."""
    last = nn.Linear(given, width)
    nn.init.kaiming_normal_(last.weight, nonlinearity="linear")
    nn.init.zeros_(last.bias)
    if given != width:
        return last
    first = nn.Linear(given, width)
    nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
    nn.init.zeros_(first.bias)
    return nn.Sequential(first, nn.GELU(), last)
