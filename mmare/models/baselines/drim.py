"""DRIM: shared and modality-specific representations, disentangled by an adversary."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn import functional

from mmare.models.adapters import present_parts
from mmare.models.base import MultimodalModel
from mmare.models.baselines.drim_losses import (
    independence_discrimination,
    independence_fooling,
    same_patient_contrastive,
)
from mmare.models.baselines.drim_parts import (
    Discriminator,
    EmbeddingEncoder,
    MaskedAttentionFusion,
    SoftmaxOne,
)
from mmare.models.blocks import Block, all_samples, samples_with
from mmare.models.phases import Objective, Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Generator, Tensor

    from mmare.study.specs import ModalitySpec

__all__ = ["DRIM", "DRIMOptions", "Size", "samples_in_pairs"]

FEWEST: Final = 2  # patients with a modality, for a pair of different patients


class Size(StrEnum):
    """``published`` is the released one; ``table56`` comes nearest to the count in the thesis's table 5.6."""

    PUBLISHED = "published"
    TABLE56 = "table56"


_WIDTHS: Final = {Size.PUBLISHED: (128, 256), Size.TABLE56: (512, 512)}  # D and hidden width of encoders


@dataclass(frozen=True)
class DRIMOptions:
    """Options of DRIM; the defaults are the released values."""

    size: Size = Size.PUBLISHED  # gives ``width`` and ``hidden`` where they are not set
    width: int | None = None  # D
    hidden: int | None = None  # of the encoders
    heads: int = 16
    head_width: int = 64
    feedforward: int = 128  # hidden width of attention's feed-forward part
    dropout: float = 0.2  # in encoders, attention and discriminators
    softmax_one: SoftmaxOne = SoftmaxOne.RELEASED
    alpha: float = 1.0  # weight of the shared loss
    gamma: float = 0.8  # weight of the unique loss
    temperature: float = 0.07  # of the shared loss
    over_missing: bool = True  # `same_patient_contrastive`
    discriminator_rate: float = 1e-3  # learning rate
    discriminator_decay: float = 3e-4  # weight decay


def samples_in_pairs(slot: int) -> Callable[[Tensor], Tensor]:
    """Samples that have modality ``slot``; zero if only one has, which forms no pair.

    For one batch this is zero exactly when the discriminator gets no gradient. Over all draws of a round it
    may also be positive when every such sample was alone in its batch; then an unchanged discriminator
    travels, but no step is ever lost.
    """

    def count(present: Tensor) -> Tensor:
        having = present[:, slot].sum()
        return having * (having >= FEWEST)

    return count


class DRIM(MultimodalModel):
    """Shared and unique encoders, two masked attention fusions, one discriminator per modality.

    Robinet et al., 2024: "DRIM: Learning Disentangled Representations from Incomplete Multimodal Healthcare
    Data" (arXiv 2409.17055), in its supervised form; Lucas-rbnt/DRIM, commits 8b568821 and ce4580bd.

    The loss is cross entropy + alpha times the shared loss, which aligns the shared embeddings of a patient,
    + gamma times the unique loss, which makes shared and unique embedding of a modality look independent to
    its discriminator. The discriminators have an objective of their own.

    Differences from the released code:

    - Cross entropy of classes instead of a survival loss; patients with one modality are kept.
    - Every modality is one embedding and gets the released encoder of MRI embeddings, instead of the
      transformer over ten tiles (WSI), which has nothing to attend to in one vector, and the stacks of
      convolutions (RNA, DNA methylation), which are made for molecular profiles.
    - The discriminators' step embeds the batch again, with the updated encoders and new dropout; theirs uses
      the embeddings from before the step. So an objective is a function of its batch alone.
    - One AdamW for all discriminators, equivalent to one each: with fewer than two patients of a modality its
      discriminator gets no gradient, so no step.
    - The unique loss gives the discriminators no gradient; the released one does, and it is cleared.
    - Discriminators apply no dropout in evaluation; the released ones never enter that mode.
    - Options ``softmax_one`` and ``over_missing`` are as released and can be switched to the formulas of the
      papers: see `attention_weights` and `same_patient_contrastive`.
    """

    Options = DRIMOptions

    def __init__(
        self, modalities: Sequence[ModalitySpec], classes: int, options: DRIMOptions = DRIMOptions()
    ) -> None:
        super().__init__(modalities, classes, options)
        sized = _WIDTHS[options.size]
        width = sized[0] if options.width is None else options.width
        hidden = sized[1] if options.hidden is None else options.hidden
        _check(options, width, hidden)

        def encoders() -> nn.ModuleList:
            return nn.ModuleList(
                EmbeddingEncoder(given, hidden, width, options.dropout) for given in self.scaling.widths
            )

        def fusion() -> MaskedAttentionFusion:
            return MaskedAttentionFusion(
                width,
                options.heads,
                options.head_width,
                options.feedforward,
                options.dropout,
                options.softmax_one,
            )

        self.shared_encoders, self.unique_encoders = encoders(), encoders()
        self.shared_fusion, self.unique_fusion = fusion(), fusion()
        self.head = nn.Linear(width, classes)
        self.discriminators = nn.ModuleList(Discriminator(width, options.dropout) for _ in modalities)
        self.options = options

    def logits(self, scaled: Tensor, present: Tensor, generator: Generator | None = None) -> Tensor:
        """Classify scaled rows."""
        shared, unique = self._embed(scaled, present, generator)
        return self._classify(shared, unique, present, generator)

    def loss(self, scaled: Tensor, present: Tensor, label: Tensor, generator: Generator) -> Tensor:
        """Loss of everything but the discriminators."""
        options = self.options
        shared, unique = self._embed(scaled, present, generator)  # (B, M, D) each
        logits = self._classify(shared, unique, present, generator)  # (B, K)
        together = same_patient_contrastive(
            shared, present, options.temperature, over_missing=options.over_missing
        )
        apart = logits.new_zeros(())
        for slot, rows in self._paired(present):
            joint = self.discriminators[slot](
                shared[rows, slot].detach(), unique[rows, slot], generator, frozen=True
            )
            apart = apart + independence_fooling(joint)
        return self.task.loss(logits, label) + options.alpha * together + options.gamma * apart

    def discriminator_loss(
        self,
        scaled: Tensor,
        present: Tensor,
        label: Tensor,  # noqa: ARG002 - an objective's signature
        generator: Generator,
    ) -> Tensor:
        """Loss of the discriminators alone; a constant zero where no modality has two patients.

        Shuffled pairs take the shared half of the previous patient with the modality.
        """
        with torch.no_grad():
            shared, unique = self._embed(scaled, present, generator)  # (B, M, D) each
        losses = []
        for slot, rows in self._paired(present):
            discriminator = self.discriminators[slot]
            ours, theirs = shared[rows, slot], unique[rows, slot]  # (N, D) each
            joint = discriminator(ours, theirs, generator)
            shuffled = discriminator(ours.roll(1, dims=0), theirs, generator)
            losses.append(independence_discrimination(shuffled, joint))
        if not losses:
            return torch.zeros((), device=scaled.device, requires_grad=True)  # backward() must not fail
        return torch.stack(losses).sum()

    def blocks(self) -> tuple[Block, ...]:
        """Encoders by presence, discriminators by presence in pairs, fusions and head by all."""
        encoders = tuple(
            Block(
                f"encoder.{name}",
                self.parameters_under(f"shared_encoders.{slot}", f"unique_encoders.{slot}"),
                samples_with(slot),
            )
            for slot, name in enumerate(self.modality_names)
        )
        discriminators = tuple(
            Block(
                f"discriminator.{name}",
                self.parameters_under(f"discriminators.{slot}"),
                samples_in_pairs(slot),
            )
            for slot, name in enumerate(self.modality_names)
        )
        rest = self.parameters_under("shared_fusion", "unique_fusion", "head")
        return (*encoders, *discriminators, Block("fusion", rest, all_samples), *self.task_blocks())

    def phases(self) -> tuple[Phase, ...]:
        """One phase: a step of the model, then one of the discriminators with their own AdamW."""
        names = [block.name for block in self.blocks()]
        adversary = tuple(f"discriminator.{name}" for name in self.modality_names)
        model = tuple(name for name in names if name not in adversary)
        training = {
            "optimizer": "adamw",
            "learning_rate": self.options.discriminator_rate,
            "weight_decay": self.options.discriminator_decay,
        }
        return (
            Phase(
                "train",
                (Objective(self.loss, model), Objective(self.discriminator_loss, adversary, training)),
            ),
        )

    def _embed(self, scaled: Tensor, present: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Shared and unique embeddings, ``(B, M, D)`` each, of length 1 and zero where absent."""
        parts = present_parts(scaled, present, self.scaling.widths)
        there = present.unsqueeze(-1)  # (B, M, 1)
        shared, unique = (
            torch.stack(
                [encoder(part, generator) for encoder, part in zip(encoders, parts, strict=True)], dim=1
            )
            for encoders in (self.shared_encoders, self.unique_encoders)
        )
        nothing = shared.new_zeros(())
        return torch.where(there, shared, nothing), torch.where(there, unique, nothing)

    def _classify(
        self, shared: Tensor, unique: Tensor, present: Tensor, generator: Generator | None
    ) -> Tensor:
        """Logits ``(B, K)``: the fused shared embedding is one more token beside the unique ones."""
        common = self.shared_fusion(shared, present, generator)  # (B, D)
        tokens = torch.cat([unique, common.unsqueeze(1)], dim=1)  # (B, M + 1, D)
        fused = self.unique_fusion(tokens, functional.pad(present, (0, 1), value=True), generator)  # (B, D)
        logits: Tensor = self.head(fused)
        return logits

    def _paired(self, present: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Slots that at least two patients have, each with the rows of those patients ``(N,)``."""
        for slot in range(present.shape[1]):
            rows = present[:, slot].nonzero().squeeze(1)  # (N,)
            if len(rows) >= FEWEST:
                yield slot, rows


def _check(options: DRIMOptions, width: int, hidden: int) -> None:
    """Raise `ValueError` for options out of range."""
    sizes = {
        "width": width,
        "hidden": hidden,
        "heads": options.heads,
        "head_width": options.head_width,
        "feedforward": options.feedforward,
    }
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be positive, found {size}")
    if not 0 <= options.dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, found {options.dropout}")
    for name in ("temperature", "discriminator_rate"):
        if getattr(options, name) <= 0:
            raise ValueError(f"{name} must be positive, found {getattr(options, name)}")
    for name in ("alpha", "gamma", "discriminator_decay"):
        if getattr(options, name) < 0:
            raise ValueError(f"{name} must not be negative, found {getattr(options, name)}")
