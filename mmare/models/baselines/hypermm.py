"""HyperMM: a feature extractor whose last layer a hypernetwork generates per modality, and a set classifier.

Chaptoukaev et al., "HyperMM: Robust Multimodal Learning with Varying-sized Inputs", MICCAI workshop 2024;
hyperMM at 7a05f31f. Thesis 4.1, equations 4.3 to 4.6.

::

    modality j ─► row j ─► hypernetwork ─► weights of a 1 x 1 convolution
                                                  │
    maps z of modality j ─────────────────────────┴─► phi(z | j) ─┬─► decoder ─► z again    phase "universal"
                                                                  ├─► classifier ─► label
                                                                  └─► mean over the set ─► rho ─► label
                                                                                            phase "fusion"

`HyperMM` is the published network on maps of VGG11, `HyperMMEmbedding` our small form for studies without
images. Differences of both from the repository:

- A batch holds several patients, and a loss is the mean over the present (patient, modality) pairs. There a
  batch is one patient, and gradients are cleared once per patient but stepped once per modality, so those of
  the first modality act again in every later step.
- The modalities of a patient come from one row. There the patients of each modality are listed separately and
  paired by position, so that with missing modalities a pair mixes different people.
- The generated weights are used directly. There a parameter is deleted and replaced in each forward, and Adam
  keeps a block that nothing reads.
- Cross entropy over K classes; there one logit serves two classes.
- The table always has 20 rows, as there, so that the universal phase has the published 18,625,246 parameters
  (K = 2). Rows of no modality are a block without exposure, which stays unchanged; there weight decay moves
  them.
- The universal phase lasts ``phase_rounds`` rounds. There it ends after 10 epochs without a better loss on
  the training rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Final

import torch
from torch import nn
from torch.nn import functional

from mmare.models.adapters import WidthAdapters
from mmare.models.base import MultimodalModel
from mmare.models.blocks import Block, all_samples, samples_with
from mmare.models.head import draw_dropout
from mmare.models.phases import Objective, Phase
from mmare.study.choices import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Generator, Tensor

    from mmare.study.specs import ModalitySpec

__all__ = [
    "HyperMM",
    "HyperMMEmbedding",
    "HyperMMEmbeddingOptions",
    "HyperMMOptions",
    "HyperNetwork",
    "Pooling",
]

IDENTIFIERS: Final = 20  # rows of the published table, so at most 20 modalities
ROW_WIDTH: Final = 5
HYPER_HIDDEN: Final = 20


class Pooling(StrEnum):
    """Pooling of a patient's features: equation 4.5 sums, the repository takes the mean."""

    MEAN = "mean"
    SUM = "sum"


@dataclass(frozen=True)
class HyperMMOptions:
    """Options of HyperMM."""

    pooling: Pooling = Pooling.MEAN  # as in the thesis's ablation
    phase_rounds: int = 50  # of the universal phase
    dropout: float = 0.5  # in rho


@dataclass(frozen=True)
class HyperMMEmbeddingOptions(HyperMMOptions):
    """Options of the embedding form."""

    width: int = 512  # of adapters, generated layer and classifiers


class HyperNetwork(nn.Module):
    """Generates the weights of a 1 x 1 convolution of C channels from a learned row per modality."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rows = nn.ParameterList(nn.Parameter(torch.randn(ROW_WIDTH)) for _ in range(IDENTIFIERS))
        self.hidden = nn.Linear(ROW_WIDTH, HYPER_HIDDEN)
        self.out = nn.Linear(HYPER_HIDDEN, channels * channels + channels)
        self.channels = channels

    def forward(self, slot: int) -> tuple[Tensor, Tensor]:
        """Weight ``(C, C, 1, 1)`` and bias ``(C,)`` of modality ``slot``."""
        made = self.out(functional.relu(self.hidden(self.rows[slot])))  # (C * C + C,)
        return made[: -self.channels].view(self.channels, self.channels, 1, 1), made[-self.channels :]


class _Classifier(nn.Module):
    """A hidden layer, ReLU, dropout, logits."""

    def __init__(self, width: int, hidden: int, classes: int, dropout_probability: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, classes)
        self.dropout_probability = dropout_probability

    def forward(self, features: Tensor, generator: Generator | None = None) -> Tensor:
        """Logits ``(N, K)`` of ``(N, D)``."""
        hidden = functional.relu(self.hidden(features))
        hidden = draw_dropout(hidden, self.dropout_probability, generator, training=self.training)
        logits: Tensor = self.out(hidden)
        return logits


def _nothing(present: Tensor) -> Tensor:
    """No sample exercises the rows of no modality."""
    return present.new_zeros(()).sum()


def _pairs(present: Tensor) -> Tensor:
    """(Patient, modality) pairs."""
    return present.sum()


class _SetModel(MultimodalModel):
    """Both forms, which differ in the shape of the maps and in the modalities that they accept.

    Args:
        maps: Channels, rows and columns of the generated layer's input; modalities of another size get an
            adapter.
        hidden: Width of the hidden layers of classifier and rho.
    """

    def __init__(
        self,
        modalities: Sequence[ModalitySpec],
        classes: int,
        options: HyperMMOptions,
        *,
        maps: tuple[int, int, int],
        hidden: int,
    ) -> None:
        super().__init__(modalities, classes, options)
        if options.phase_rounds < 1:
            raise ValueError(f"phase_rounds must be at least 1, found {options.phase_rounds}")
        if not 0 <= options.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, found {options.dropout}")
        if len(modalities) > IDENTIFIERS:
            raise ValueError(f"HyperMM takes at most {IDENTIFIERS} modalities, found {len(modalities)}")
        channels, width = maps[0], math.prod(maps)
        self.adapters = WidthAdapters(self.scaling.widths, width)
        self.hypernetwork = HyperNetwork(channels)
        self.decoder = nn.ConvTranspose2d(channels, channels, kernel_size=1)
        self.classifier = _Classifier(width, hidden, classes, dropout_probability=0.0)
        self.head = _Classifier(width, hidden, classes, options.dropout)  # rho
        self.pooling = options.pooling
        self.phase_rounds = options.phase_rounds
        self._maps = maps

    def logits(self, scaled: Tensor, present: Tensor, generator: Generator | None = None) -> Tensor:
        """Logits of rho for the pooled set; in training the feature extractor gets no gradient."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training):
            pooled = scaled.new_zeros(len(scaled), math.prod(self._maps))  # (B, D)
            for slot, rows, maps in self._each(scaled, present):
                pooled = pooled.index_add(0, rows, self._features(slot, maps).flatten(1))
            if self.pooling is Pooling.MEAN:
                pooled = pooled / present.sum(dim=1, keepdim=True)
        logits: Tensor = self.head(pooled, generator)
        return logits

    def universal_loss(self, scaled: Tensor, present: Tensor, label: Tensor, generator: Generator) -> Tensor:
        """Equation 4.3: reconstruct the maps and classify from each modality alone, mean over the pairs.

        The reconstruction target is a constant, as in the paper: else adapters could shrink it.
        """
        del generator  # no dropout in this phase
        total = scaled.new_zeros(())
        for slot, rows, maps in self._each(scaled, present):
            features = self._features(slot, maps)  # (n, C, H, W)
            restored = functional.mse_loss(self.decoder(features), maps.detach())
            classified = self.task.loss(self.classifier(features.flatten(1)), label[rows])
            total = total + len(rows) * (restored + classified)
        return total / present.sum()

    def phases(self) -> tuple[Phase, ...]:
        """First the universal feature extractor; then rho on the frozen one until the run ends."""
        universal = tuple(block.name for block in self.blocks() if block.name != "rho")
        return (
            Phase("universal", (Objective(self.universal_loss, universal),), rounds=self.phase_rounds),
            Phase("fusion", (Objective(self.loss, ("rho",)),)),
        )

    def blocks(self) -> tuple[Block, ...]:
        """Rows and adapters by presence, what all modalities share by pairs, rho by samples."""
        most = len(self.modality_names)
        found = [
            Block(f"identifier.{name}", (f"hypernetwork.rows.{slot}",), samples_with(slot))
            for slot, name in enumerate(self.modality_names)
        ]
        spare = tuple(f"hypernetwork.rows.{slot}" for slot in range(most, IDENTIFIERS))
        if spare:
            found.append(Block("identifier.spare", spare, _nothing, most=0))
        found += [
            Block(
                f"adapter.{self.modality_names[int(slot)]}",
                self.parameters_under(f"adapters.adapters.{slot}"),
                samples_with(int(slot)),
            )
            for slot in self.adapters.adapters
        ]
        layers = self.parameters_under("hypernetwork.hidden", "hypernetwork.out")
        return (
            *found,
            Block("hypernetwork", layers, _pairs, most=most),
            Block("decoder", self.parameters_under("decoder"), _pairs, most=most),
            Block("classifier", self.parameters_under("classifier"), _pairs, most=most),
            Block("rho", self.parameters_under("head"), all_samples),
            *self.task_blocks(),
        )

    def _each(self, scaled: Tensor, present: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Slots that a patient has, each with those rows ``(n,)`` and their maps ``(n, C, H, W)``."""
        adapted = self.adapters(scaled)  # (B, M, D)
        for slot in range(present.shape[1]):
            rows = present[:, slot].nonzero().flatten()  # (n,)
            if len(rows):
                yield slot, rows, adapted[rows, slot].unflatten(1, self._maps)

    def _features(self, slot: int, maps: Tensor) -> Tensor:
        """The maps of one modality through its generated layer."""
        return functional.conv2d(maps, *self.hypernetwork(slot))


class HyperMM(_SetModel):
    """The published network on maps of a frozen VGG11 (encoder ``hypermm-vgg11``, or given).

    Every modality is images: the maximum over slices of the 512 x 7 x 7 maps of VGG11, 25,088 numbers. They
    should enter unscaled (``scaling = "none"``), since the decoder reconstructs them. Texts and other widths
    are refused: an adapter to 25,088 numbers would be larger than the model.

    Table 5.6 of the thesis reports 12.9 M parameters: those of rho alone, 12,846,594 for two classes.
    """

    Options = HyperMMOptions
    MAPS: ClassVar[tuple[int, int, int]] = (512, 7, 7)  # of VGG11 at 224 x 224
    HIDDEN: ClassVar[int] = 512

    def __init__(
        self, modalities: Sequence[ModalitySpec], classes: int, options: HyperMMOptions = HyperMMOptions()
    ) -> None:
        width = math.prod(self.MAPS)
        for modality in modalities:
            if modality.kind is Kind.TEXT or modality.width != width:
                raise ValueError(
                    f"hypermm takes VGG11 features of images (encoder hypermm-vgg11, width {width}), found "
                    f"modality {modality.name} of {modality.kind} with width {modality.width}; "
                    "hypermm-embedding takes any study"
                )
        super().__init__(modalities, classes, options, maps=self.MAPS, hidden=self.HIDDEN)


class HyperMMEmbedding(_SetModel):
    """Our form of HyperMM on one vector per modality, for studies without images.

    An adapter brings modalities of another width to ``width`` numbers; the generated layer and the decoder
    are Linear(width, width), classifier and rho width-width-K. Adapters belong to the feature extractor:
    trained in the universal phase, frozen in the fusion phase. Rho has 0.26 M parameters instead of 12.8 M,
    so Table 5.6 does not apply.
    """

    Options = HyperMMEmbeddingOptions
    NOTE = (
        "hypermm-embedding stands for HyperMM, which needs images: a small network of the same idea on "
        "embeddings, whose figures are not those of the published one"
    )

    def __init__(
        self,
        modalities: Sequence[ModalitySpec],
        classes: int,
        options: HyperMMEmbeddingOptions = HyperMMEmbeddingOptions(),
    ) -> None:
        if options.width < 1:
            raise ValueError(f"width must be positive, found {options.width}")
        super().__init__(modalities, classes, options, maps=(options.width, 1, 1), hidden=options.width)
