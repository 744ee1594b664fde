"""What every model of the registry is, and MMARE itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from torch import nn
from torch.nn import functional

from mmare.models.adapters import InputScaling, WidthAdapters
from mmare.models.blocks import Block, all_samples, merges, samples_with, samples_without
from mmare.models.conditioning import MissingAwareConditioning
from mmare.models.fusion import Merge, MergeOrder, PairwiseFusion, masked_mean, merge_order
from mmare.models.head import TaskHead, dropout
from mmare.models.phases import Objective, Phase

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Generator, Tensor

    from mmare.models.batch import Batch
    from mmare.study.specs import ModalitySpec

__all__ = ["MMARE", "MultimodalModel"]

_PARTS: Final = {"head": ("head", "heads"), "adapters": ("adapters",)}  # a part, and modules that make it up


class MultimodalModel(nn.Module, ABC):
    """A classifier over whichever modalities a patient has.

    Scaling is a step of its own: it is frozen once pooled, so that a trainer scales its rows once and not in
    every step.

    Args:
        modalities: In slot order.
        classes: K.
        options: An instance of the model's own ``Options``, which says what ``[model]`` may set.
    """

    Options: ClassVar[type[Any]]
    NOTE: ClassVar[str] = ""  # what a reader of its results must know, a sentence: reports show it

    def __init__(self, modalities: Sequence[ModalitySpec], classes: int, options: Any) -> None:  # noqa: ANN401, ARG002 - the subclass's Options
        super().__init__()
        self.scaling = InputScaling(modalities)
        self.modality_names = tuple(modality.name for modality in modalities)
        self.classes = classes

    @abstractmethod
    def logits(self, scaled: Tensor, present: Tensor, generator: Generator | None = None) -> Tensor:
        """Classify scaled rows.

        Args:
            scaled: ``(B, W)`` from ``self.scaling``.
            present: ``(B, M)`` bool.
            generator: Source of a model's own draws while training.

        Returns:
            ``(B, K)``.
        """

    @abstractmethod
    def blocks(self) -> tuple[Block, ...]:
        """The model's parameters, each element in exactly one block."""

    def phases(self) -> tuple[Phase, ...]:
        """What is trained in which rounds: everything in all of them, unless a model says otherwise."""
        every = tuple(block.name for block in self.blocks())
        return (Phase("train", (Objective(self.loss, every),)),)

    def part(self, name: str) -> frozenset[str]:
        """Names of the parameters of a part that can stay at a site: ``norms``, ``head`` or ``adapters``.

        The head and the adapters are the modules of those names, the norms all layer normalisations.
        """
        if name == "norms":
            owners = [path for path, module in self.named_modules() if isinstance(module, nn.LayerNorm)]
        else:
            owners = [path for path, _ in self.named_children() if path in _PARTS[name]]
        return frozenset(
            parameter
            for parameter, _ in self.named_parameters()
            if any(parameter.startswith(f"{owner}.") for owner in owners)
        )

    def loss(self, scaled: Tensor, present: Tensor, label: Tensor, generator: Generator) -> Tensor:
        """Training loss of a batch: cross entropy unless a model says otherwise; label ``(B,)`` int64."""
        return functional.cross_entropy(self.logits(scaled, present, generator), label)

    def forward(self, batch: Batch) -> Tensor:
        """Logits ``(B, K)`` of embeddings as sites hold them."""
        scaled: Tensor = self.scaling(batch.embedding, batch.present)
        return self.logits(scaled, batch.present)

    def predict(self, batch: Batch) -> Tensor:
        """Class probabilities ``(B, K)``, in evaluation mode and without gradients."""
        training = self.training
        self.eval()
        with torch.inference_mode():
            probabilities: Tensor = self(batch).softmax(dim=1)
        self.train(training)
        return probabilities


class Fusion(StrEnum):
    """How conditioned embeddings become one."""

    PAIRWISE = "pairwise"
    MEAN = "mean"


@dataclass(frozen=True)
class MMAREOptions:
    """What a study may set of MMARE.

    Args:
        width: D.
        conditioning: Off for the thesis's ablation.
        fusion: ``pairwise``, or ``mean`` for the ablation.
        order: Of merging while training.
        dropout: In the head.
        merge: Of pairwise fusion: ``thesis``, or ``symmetric`` (see `PairwiseFusion`).
        embedding_dropout: Of conditioned embeddings, element by element, while training; 0 in the thesis.
    """

    width: int = 512
    conditioning: bool = True
    fusion: Fusion = Fusion.PAIRWISE
    order: MergeOrder = MergeOrder.BATCH
    dropout: float = 0.3
    merge: Merge = Merge.THESIS
    embedding_dropout: float = 0.0


class MMARE(MultimodalModel):
    """Adapters, missing-aware conditioning, fusion, head (thesis, chapter 4).

    Raises:
        ValueError: If an option is out of its range.
    """

    Options = MMAREOptions

    def __init__(
        self, modalities: Sequence[ModalitySpec], classes: int, options: MMAREOptions = MMAREOptions()
    ) -> None:
        super().__init__(modalities, classes, options)
        width = options.width
        self.adapters = WidthAdapters(self.scaling.widths, width)
        self.conditioning = MissingAwareConditioning(len(modalities), width, enabled=options.conditioning)
        if not 0 <= options.embedding_dropout < 1:
            raise ValueError(
                f"embedding_dropout must be at least 0 and below 1, found {options.embedding_dropout}"
            )
        self.embedding_dropout = options.embedding_dropout
        self.fusion = PairwiseFusion(width, options.merge) if options.fusion is Fusion.PAIRWISE else None
        self.head = TaskHead(width, classes, options.dropout)
        self.order = options.order

    def logits(self, scaled: Tensor, present: Tensor, generator: Generator | None = None) -> Tensor:
        """Classify scaled rows; order of merging is drawn while training and that of the slots otherwise."""
        conditioned = self.conditioning(self.adapters(scaled), present)  # (B, M, D)
        if self.training and self.embedding_dropout > 0:
            if generator is None:
                raise ValueError("training draws from a generator: pass one")
            conditioned = dropout(conditioned, self.embedding_dropout, generator)
        if self.fusion is None:
            fused = masked_mean(conditioned, present)  # (B, D)
        else:
            order = self.order if self.training else MergeOrder.FIXED
            fused = self.fusion(conditioned, present, merge_order(present, order, generator))  # (B, D)
        logits: Tensor = self.head(fused, generator)
        return logits

    def blocks(self) -> tuple[Block, ...]:
        """Conditioning columns by who misses, adapters by who has, merging by merges, the rest by all."""
        conditioned = self.conditioning.gamma is not None
        names = self.modality_names
        found = [
            Block(
                f"conditioning.{name}",
                ("conditioning.gamma.weight", "conditioning.beta.weight"),
                samples_without(slot),
                column=slot,
            )
            for slot, name in enumerate(names)
            if conditioned
        ]
        found += [
            Block(
                f"adapter.{names[int(slot)]}",
                (f"adapters.adapters.{slot}.weight", f"adapters.adapters.{slot}.bias"),
                samples_with(int(slot)),
            )
            for slot in self.adapters.adapters
        ]
        if self.fusion is not None:
            merging = tuple(f"fusion.{name}" for name, _ in self.fusion.named_parameters())
            found.append(Block("merge", merging, merges, most=max(len(names) - 1, 1)))
        taken = {name for block in found for name in block.parameters}
        rest = tuple(name for name, _ in self.named_parameters() if name not in taken)
        return (*found, Block("shared", rest, all_samples))
