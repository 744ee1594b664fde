"""The base class of all models, and MMARE."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from torch import nn

from mmare.models.adapters import InputScaling, WidthAdapters
from mmare.models.blocks import Block, all_samples, merges, samples_with, samples_without
from mmare.models.conditioning import MissingAwareConditioning
from mmare.models.fusion import Merge, MergeOrder, PairwiseFusion, masked_mean, merge_order
from mmare.models.head import TaskHead, draw_dropout
from mmare.models.linear import LinearTerm
from mmare.models.numeric import Numeric, is_numeric
from mmare.models.phases import Objective, Phase
from mmare.models.scans import GatedAttention, group_softmax, weighted_mean
from mmare.study.choices import Scans
from mmare.tasks.classification import Classification

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Generator, Tensor

    from mmare.models.batch import Batch
    from mmare.models.scans import Bag
    from mmare.study.specs import ModalitySpec
    from mmare.tasks.base import Task

__all__ = ["MMARE", "MultimodalModel"]

_PARTS: Final = {"head": ("head", "heads"), "adapters": ("adapters",)}  # modules of each part


class MultimodalModel(nn.Module, ABC):
    """A predictor over whichever modalities a patient has; what its K outputs mean is its ``task``.

    Scaling is separate: its moments are fixed once pooled, so a trainer scales its rows only once.
    """

    Options: ClassVar[type[Any]]  # the keys that ``[model]`` may set
    NOTE: ClassVar[str] = ""  # caveat about its results, a sentence for reports
    SEPARATE: ClassVar[bool] = False  # a patient's loss is the cross entropy of logits that no other changes

    def __init__(self, modalities: Sequence[ModalitySpec], classes: int, options: Any) -> None:  # noqa: ANN401 - the subclass's Options
        super().__init__()
        self.scaling = InputScaling(modalities, getattr(options, "clip", 0.0))
        self.modality_names = tuple(modality.name for modality in modalities)
        self.classes = classes  # K
        self.task: Task[Any] = Classification(classes)
        self.first: tuple[str, ...] = ()  # modalities that joined later, whose blocks train alone at first
        self.first_rounds = 0
        self.weighing_scans = nn.ModuleDict()  # by slot, of modalities whose scans are weighed

    @abstractmethod
    def logits(self, scaled: Tensor, present: Tensor, generator: Generator | None = None) -> Tensor:
        """Logits ``(B, K)`` of rows ``(B, W)`` from ``self.scaling``; training draws from ``generator``."""

    @abstractmethod
    def blocks(self) -> tuple[Block, ...]:
        """Partition of the parameters: each element is in exactly one block."""

    def phases(self) -> tuple[Phase, ...]:
        """What is trained in which rounds; by default everything in all of them, what joined later first."""
        every = tuple(block.name for block in self.blocks())
        whole = Phase("train", (Objective(self.loss, every),))
        new = tuple(name for name in every if name.partition(".")[2] in self.first)
        return (Phase("join", (Objective(self.loss, new),), self.first_rounds), whole) if new else (whole,)

    def part(self, name: str) -> frozenset[str]:
        """Parameter names of a part that can stay at a site: ``norms``, ``head`` or ``adapters``."""
        if name == "norms":
            owners = [path for path, module in self.named_modules() if isinstance(module, nn.LayerNorm)]
        else:
            owners = [path for path, _ in self.named_children() if path in _PARTS[name]]
        return frozenset(self.parameters_under(*owners))

    def parameters_under(self, *modules: str) -> tuple[str, ...]:
        """Names of the parameters of some modules, in the model's order."""
        prefixes = tuple(f"{module}." for module in modules)
        return tuple(name for name in self._names if name.startswith(prefixes))

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """Of all parameters: walking through the modules takes long for every block of every round."""
        return tuple(name for name, _ in self.named_parameters())

    def linear_inputs(
        self, scaled: Tensor, present: Tensor, *, even: bool = False
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Inputs of a `LinearTerm`, centred if the task asks for it, presence, and lengths.

        Those of centred rows are never ``even``: their noise is told by it (`signal_share`).
        """
        centred = self.task.CENTRES
        inputs = self.scaling.centred(scaled) if centred else scaled
        return inputs, present, self.scaling.lengths(centred=centred, even=even and not centred)

    def task_blocks(self) -> tuple[Block, ...]:
        """A block of the task's own parameters, if any; part of `blocks`."""
        names = self.parameters_under("task")
        return (Block("baseline", names, all_samples, descent=self.task.descent),) if names else ()

    def with_shared_block(self, blocks: Sequence[Block]) -> tuple[Block, ...]:
        """The blocks and one of all other parameters, which every sample exercises."""
        own = self.task_blocks()
        taken = {name for block in (*blocks, *own) for name in block.parameters}
        rest = tuple(name for name in self._names if name not in taken)
        return (*blocks, Block("shared", rest, all_samples), *own)

    def loss(self, scaled: Tensor, present: Tensor, label: Tensor, generator: Generator) -> Tensor:
        """Training loss of a batch, by default that of the task; label ``(B,)``."""
        return self.task.loss(self.logits(scaled, present, generator), label)

    def forward(self, batch: Batch) -> Tensor:
        """Logits ``(B, K)`` of unscaled embeddings; modalities that no train row has are hidden."""
        scaled: Tensor = self.scaling(batch.embedding, batch.present)
        return self.of_scaled(scaled, batch.present)

    def of_scaled(self, scaled: Tensor, present: Tensor) -> Tensor:
        """As `forward`, of rows ``(B, W)`` from ``self.scaling`` and their presence ``(B, M)``."""
        seen = self.scaling.visible(present)
        return torch.where(seen.any(dim=1, keepdim=True), self.logits(scaled, seen), self.of_nothing(seen))

    def fuse_scans(self, slot: int, bag: Bag, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Patients of ``rows`` ``(B,)``, unique, with several scans, whose weights in the mean are learned.

        Returns:
            Unscaled ``(B, W_j)``, and who they are, ``(B,)``; other rows hold nothing of use.
        """
        device = next(self.parameters()).device
        vectors, group, has = (part.to(device) for part in bag.of(rows.cpu()))
        scaled = self.scaling.of_slot(slot, vectors, torch.ones(1, 1, dtype=torch.bool, device=device))
        weights = group_softmax(self.weighing_scans[str(slot)](scaled), group, len(rows))
        return weighted_mean(vectors, weights, group, len(rows)), has

    def of_nothing(self, present: Tensor) -> Tensor:
        """Logits of patients of whom nothing is seen; ``present`` ``(B, M)`` is False."""
        return torch.zeros(present.shape[0], self.classes, device=present.device)

    def predict(self, batch: Batch) -> Tensor:
        """What the task predicts (`Task.prediction`) in evaluation mode, without gradients."""
        training = self.training
        self.eval()
        with torch.inference_mode():
            prediction = self.task.prediction(self(batch))
        self.train(training)
        return prediction


class Fusion(StrEnum):
    """Fusion of the conditioned embeddings; ``mean`` is the ablation."""

    PAIRWISE = "pairwise"
    MEAN = "mean"


@dataclass(frozen=True)
class MMAREOptions:
    """Options of MMARE."""

    width: int = 512  # D
    conditioning: bool = True  # off: the thesis's ablation
    fusion: Fusion = Fusion.PAIRWISE
    order: MergeOrder = MergeOrder.BATCH  # while training
    dropout: float = 0.3  # in the head
    merge: Merge = Merge.THESIS
    embedding_dropout: float = 0.0  # element-wise, of conditioned embeddings; 0 in the thesis
    clip: float = 0.0  # largest size of a z-score; 0 in the thesis: any
    numeric: Numeric = Numeric.LINEAR  # of tables of few columns (`is_numeric`)
    # Add a (with ``piecewise`` bent) linear term, of which the rest, zero at first, is the residual.
    linear: bool = False
    even: bool = False  # columns of all tables count alike in the linear term, else all modalities


class MMARE(MultimodalModel):
    """Adapters, missing-aware conditioning, fusion, head (thesis, chapter 4).

    Raises:
        ValueError: If an option is out of its range.
    """

    Options = MMAREOptions
    SEPARATE = True

    def __init__(
        self, modalities: Sequence[ModalitySpec], classes: int, options: MMAREOptions = MMAREOptions()
    ) -> None:
        super().__init__(modalities, classes, options)
        width = options.width
        piecewise = options.numeric is Numeric.PIECEWISE
        bent = [slot for slot, each in enumerate(modalities) if piecewise and is_numeric(each)]
        self.adapters = WidthAdapters(self.scaling.widths, width, bent)
        self.conditioning = MissingAwareConditioning(len(modalities), width, enabled=options.conditioning)
        if not 0 <= options.embedding_dropout < 1:
            raise ValueError(
                f"embedding_dropout must be at least 0 and below 1, found {options.embedding_dropout}"
            )
        self.embedding_dropout = options.embedding_dropout
        self.fusion = PairwiseFusion(width, options.merge) if options.fusion is Fusion.PAIRWISE else None
        self.head = TaskHead(width, classes, options.dropout)
        self.order, self.even = options.order, options.even
        self.linear = LinearTerm(self.scaling.widths, classes, bent) if options.linear else None
        if self.linear is not None:
            nn.init.zeros_(self.head.out.weight)
            nn.init.zeros_(self.head.out.bias)
        for slot, each in enumerate(modalities):
            if each.scans is Scans.ATTENTION:
                self.weighing_scans[str(slot)] = GatedAttention(each.width)

    def logits(self, scaled: Tensor, present: Tensor, generator: Generator | None = None) -> Tensor:
        """Classify scaled rows; evaluation merges in slot order."""
        conditioned = self.conditioning(self.adapters(scaled), present)  # (B, M, D)
        conditioned = draw_dropout(conditioned, self.embedding_dropout, generator, training=self.training)
        if self.fusion is None:
            fused = masked_mean(conditioned, present)  # (B, D)
        else:
            order = self.order if self.training else MergeOrder.FIXED
            fused = self.fusion(conditioned, present, merge_order(present, order, generator))  # (B, D)
        logits: Tensor = self.head(fused, generator)
        if self.linear is not None:
            logits = logits + self.linear(*self.linear_inputs(scaled, present, even=self.even))
        return logits

    def of_nothing(self, present: Tensor) -> Tensor:
        """What the linear term says of absence."""
        if self.linear is None:
            return super().of_nothing(present)
        absent: Tensor = self.linear.of_absence(present)
        return absent

    def blocks(self) -> tuple[Block, ...]:
        """Conditioning columns by absence, adapters by presence, merging by merges, the rest by all."""
        return self._blocks

    @cached_property
    def _blocks(self) -> tuple[Block, ...]:
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
                self.parameters_under(f"adapters.adapters.{slot}", f"adapters.bends.{slot}"),
                samples_with(int(slot)),
            )
            for slot in self.adapters.adapters
        ]
        found += [
            Block(
                f"attention.{names[int(slot)]}",
                self.parameters_under(f"weighing_scans.{slot}"),
                samples_with(int(slot)),
            )
            for slot in self.weighing_scans
        ]
        if self.fusion is not None:
            merging = self.parameters_under("fusion")
            found.append(Block("merge", merging, merges, most=max(len(names) - 1, 1)))
        if self.linear is not None:
            found += self.linear.blocks(names, "linear")
        return self.with_shared_block(found)
