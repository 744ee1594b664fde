"""AdaCoMed: a mixture of modality experts on frozen embeddings, with a small model trained first."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from mmare.models.adapters import present_parts
from mmare.models.base import MultimodalModel
from mmare.models.baselines.adacomed_parts import (
    LogitScheme,
    SharedHead,
    SmallModel,
    StreamAttention,
    StreamProjection,
    SubsetExperts,
    agreement,
    info_nce,
    large_share,
)
from mmare.models.blocks import Block, all_samples, samples_with
from mmare.models.head import draw_dropout
from mmare.models.phases import Objective, Phase
from mmare.study.choices import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Generator, Tensor

    from mmare.study.specs import ModalitySpec

__all__ = ["AdaCoMed", "AdaCoMedOptions", "Form"]

MOST_MODALITIES: Final = 6  # 63 experts


class Form(StrEnum):
    """Streams of the large model: each modality; or text, and all else side by side, as released."""

    GENERIC = "generic"
    TWO_STREAM = "two-stream"


_SIZES: Final = {Form.GENERIC: (320, 512), Form.TWO_STREAM: (512, 2048)}  # hidden, in_dim


@dataclass(frozen=True)
class AdaCoMedOptions:
    """Options of AdaCoMed."""

    form: Form = Form.GENERIC
    hidden: int | None = None  # H of a stream; default 320, two-stream 512
    in_dim: int | None = None  # D of the shared head's features; default 512, two-stream 2048
    scheme: LogitScheme = LogitScheme.LEARNABLE
    contrastive_weight: float = 0.5  # lambda; effectively 0 in the repository
    temperature: float = 0.07  # of the contrast
    small_rounds: int = 30  # of the small model, before the large one
    heads: int = 8
    dropout: float = 0.1  # of attention weights, and of what attention and experts add
    head_dropout: float = 0.5


class AdaCoMed(MultimodalModel):
    r"""AdaCoMed (CVPR 2025; repository Zoew420/AdaCoMed at 3f85d6ca) for frozen embeddings.

    Large model: one token of width H per stream; attention; LayerNorm; a mixture with one expert per
    non-empty subset of streams; LayerNorm; Linear to D. Small model: mean of one Linear per modality, ReLU,
    Linear to D. One head classifies both features. The small model is trained first (phase ``small``, cross
    entropy of its own logits), then frozen but for the head; phase ``large`` trains the rest with

    .. math:: \mathrm{CE}(w_L z_L + w_S z_S, y) + \lambda\,\mathrm{InfoNCE}(f_L, f_S)

    with logits z, features f and weights that sum to one.

    Parameters that phase ``large`` trains, for MMIST (512, 512, 1024, 512) and two classes:

    ===================================  ============  ============
    part                                 two-stream    generic
    ===================================  ============  ============
    token Linears                        1,311,744     820,480
    attention                            4,198,400     6,558,720
    experts and gate                     2,629,123     9,464,015
    two LayerNorms                       4,096         5,120
    Linear to D                          2,099,200     655,872
    shared head                          8,400,900     527,364
    weights of the logits                2             2
    total                                18,643,465    18,031,573
    ===================================  ============  ============

    The thesis reports 18.7 M. The frozen part of the small model, which the repository does not count either,
    has 1,182,720 (two-stream) and 787,968 (generic) more.

    Differences from the repository, which is for visual question answering without missing modalities:

    - Its attention runs over the patients of a batch, so a prediction depends on batch mates. Here it runs
      over the streams of one patient and ignores absent ones (`StreamAttention`; same parameters).
    - Generic form: experts over all subsets of M modalities instead of two. In both forms the gate's softmax
      runs over the experts whose streams are all present. An absent modality is zero before the LayerNorm, so
      the gate sees what is missing.
    - Two-stream form: the imaging stream concatenates all modalities but text, absent ones as zeros; it is
      present if one of them is. Text is every modality of kind text, or else the last modality.
    - Its contrastive loss is computed and discarded; here it counts, with the weight of its command line.
    - Its small model is a visual question answering network whose features enter the head directly. Here a
      Linear to D lifts the 256 features to the width of the head.
    - Its schemes except ``learnable`` use the agreement of the two models in the current batch, also for
      predictions. Here it is a running mean over training batches: a parameter that minimises half its
      squared distance to a batch's agreement, by SGD with rate 0.1. So it is averaged like any other, and
      training and prediction use the same weight. It gives the large model no gradient, and batches of one
      patient leave it unchanged.

    Blocks: what a modality or stream exercises counts the patients who have it; queries, keys and gate those
    who have two streams (with one, attention and gate have no choice); an expert those who have its streams.

    Raises:
        ValueError: If an option is out of range, the generic form has too many modalities, or the two-stream
            form has one stream only.
    """

    Options = AdaCoMedOptions

    def __init__(
        self, modalities: Sequence[ModalitySpec], classes: int, options: AdaCoMedOptions = AdaCoMedOptions()
    ) -> None:
        super().__init__(modalities, classes, options)
        self.stream_names, self.streams = _streams(modalities, options.form)
        sizes = _SIZES[options.form]
        hidden = sizes[0] if options.hidden is None else options.hidden
        in_dim = sizes[1] if options.in_dim is None else options.in_dim
        _check(options, hidden, in_dim, len(self.streams))
        widths = self.scaling.widths
        width = len(self.streams) * hidden
        self.small = SmallModel(widths, in_dim)
        self.head = SharedHead(in_dim, classes, options.head_dropout)
        self.adapters = nn.ModuleList(
            StreamProjection([widths[slot] for slot in slots], hidden) for slots in self.streams
        )
        self.attention = StreamAttention(len(self.streams), hidden, options.heads, options.dropout)
        self.experts = SubsetExperts(len(self.streams), hidden)
        self.norm_attention, self.norm_experts = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projection = nn.Linear(width, in_dim)
        learned = options.scheme is LogitScheme.LEARNABLE
        self.weighing = nn.Parameter(torch.ones(2) if learned else torch.full((1,), 0.5))
        self.options = options

    def logits(self, scaled: Tensor, present: Tensor, generator: Generator | None = None) -> Tensor:
        """Weighted sum of the logits of the large and the small model."""
        large, small = self._features(scaled, present, generator)
        return self._fused(large, small, generator)

    def loss(self, scaled: Tensor, present: Tensor, label: Tensor, generator: Generator) -> Tensor:
        """Cross entropy of the fused logits plus the contrast of large and frozen small features."""
        large, small = self._features(scaled, present, generator)
        total = self.task.loss(self._fused(large, small, generator), label)
        if self.options.contrastive_weight > 0:
            total = total + self.options.contrastive_weight * info_nce(large, small, self.options.temperature)
        return total

    def small_loss(self, scaled: Tensor, present: Tensor, label: Tensor, generator: Generator) -> Tensor:
        """Cross entropy of the small model's own logits."""
        features = self.small(present_parts(scaled, present, self.scaling.widths), present)
        return self.task.loss(self.head(features, generator), label)

    def agreement_loss(self, scaled: Tensor, present: Tensor, label: Tensor, generator: Generator) -> Tensor:  # noqa: ARG002 - an objective's signature
        """Half the squared distance of the running agreement to the batch's; not for ``learnable``."""
        with torch.no_grad():
            large, small = self._features(scaled, present, generator)
            found = agreement(large, small, self.options.temperature)
        target = found if len(scaled) > 1 else self.weighing.detach()
        return 0.5 * (self.weighing - target).square().sum()

    def _features(
        self, scaled: Tensor, present: Tensor, generator: Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Features of the large and the frozen small model, ``(B, D)`` each."""
        parts = present_parts(scaled, present, self.scaling.widths)
        with torch.no_grad():
            small: Tensor = self.small(parts, present)
        there = _stream_presence(present, self.streams)  # (B, S)
        each = [
            project([parts[slot] for slot in slots])
            for project, slots in zip(self.adapters, self.streams, strict=True)
        ]
        tokens = torch.stack(each, dim=1)  # (B, S, H)
        tokens = torch.where(there.unsqueeze(-1), tokens, tokens.new_zeros(()))
        gained = self._drop(self.attention(tokens, there, generator), generator)
        joined = self.norm_attention((tokens + gained).flatten(1))  # (B, S·H)
        mixed = self._drop(self.experts(joined.view_as(tokens), there), generator)
        large: Tensor = self.projection(self.norm_experts(joined + mixed))
        return large, small

    def _drop(self, values: Tensor, generator: Generator | None) -> Tensor:
        return draw_dropout(values, self.options.dropout, generator, training=self.training)

    def _fused(self, large: Tensor, small: Tensor, generator: Generator | None) -> Tensor:
        share = large_share(self.options.scheme, self.weighing)
        fused: Tensor = share * self.head(large, generator) + (1 - share) * self.head(small, generator)
        return fused

    def phases(self) -> tuple[Phase, ...]:
        """The small model with the head, then everything but the small model."""
        names = [block.name for block in self.blocks()]
        first = tuple(name for name in names if name.startswith("small") or name == "head")
        rest = tuple(name for name in names if not name.startswith("small") and name != "agreement")
        main = [Objective(self.loss, rest)]
        if self.options.scheme is not LogitScheme.LEARNABLE:
            running_mean = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.0}
            main.append(Objective(self.agreement_loss, ("agreement",), running_mean))
        return (
            Phase("small", (Objective(self.small_loss, first),), rounds=self.options.small_rounds),
            Phase("large", tuple(main)),
        )

    def blocks(self) -> tuple[Block, ...]:
        """Blocks per modality, stream and expert, the head, and what all samples share."""
        found = [
            *self._modality_blocks(),
            *self._stream_blocks(),
            Block("small", self.parameters_under("small.lift"), all_samples),
            Block("head", self.parameters_under("head"), all_samples),
            Block("attention", ("attention.query_bias", "attention.key_bias"), self._samples_with((), 2)),
            Block("gate", self.parameters_under("experts.gate"), self._samples_with((), 2)),
        ]
        found += [
            Block(
                "expert." + "+".join(self.stream_names[stream] for stream in subset),
                self.parameters_under(f"experts.experts.{number}"),
                self._samples_with(subset),
            )
            for number, subset in enumerate(self.experts.subsets)
        ]
        if self.options.scheme is not LogitScheme.LEARNABLE:
            found.append(Block("agreement", ("weighing",), all_samples))
        return self.with_shared_block(found)

    def _modality_blocks(self) -> list[Block]:
        """Per modality: its layer of the small model, its part of its stream's token."""
        found = []
        for stream, slots in enumerate(self.streams):
            for place, slot in enumerate(slots):
                name = self.modality_names[slot]
                small = self.parameters_under(f"small.layers.{slot}")
                found.append(Block(f"small.{name}", small, samples_with(slot)))
                token = f"adapters.{stream}.weights.{place}"
                found.append(Block(f"modality.{name}", (token,), samples_with(slot)))
        return found

    def _stream_blocks(self) -> list[Block]:
        """Per stream: what it exercises alone, and beside another."""
        found = []
        for stream, name in enumerate(self.stream_names):
            alone = (
                f"adapters.{stream}.bias",
                *(f"attention.{part}.{stream}" for part in ("value", "out", "out_bias")),
            )
            beside = (f"attention.query.{stream}", f"attention.key.{stream}")
            found.append(Block(f"stream.{name}", alone, self._samples_with((stream,))))
            found.append(Block(f"attention.{name}", beside, self._samples_with((stream,), 2)))
        return found

    def _samples_with(self, needed: tuple[int, ...], least: int = 1) -> Callable[[Tensor], Tensor]:
        """Exposure: samples that have the needed streams and at least ``least`` streams."""
        streams = self.streams

        def exposure(present: Tensor) -> Tensor:
            there = _stream_presence(present, streams)  # (B, S)
            return (there[:, list(needed)].all(dim=1) & (there.sum(dim=1) >= least)).sum()

        return exposure


def _stream_presence(present: Tensor, streams: Sequence[tuple[int, ...]]) -> Tensor:
    """``(B, S)`` bool: a stream is present if one of its modalities is."""
    return torch.stack([present[:, list(slots)].any(dim=1) for slots in streams], dim=1)


def _streams(
    modalities: Sequence[ModalitySpec], form: Form
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Names and slots of the streams."""
    if form is Form.GENERIC:
        if len(modalities) > MOST_MODALITIES:
            raise ValueError(
                f"the generic form has one expert per subset, so it takes at most {MOST_MODALITIES} "
                f"modalities, found {len(modalities)}"
            )
        return tuple(spec.name for spec in modalities), tuple((slot,) for slot in range(len(modalities)))
    text = tuple(slot for slot, spec in enumerate(modalities) if spec.kind is Kind.TEXT)
    text = text or (len(modalities) - 1,)
    imaging = tuple(slot for slot in range(len(modalities)) if slot not in text)
    if not imaging:
        raise ValueError("the two-stream form needs a modality beside text")
    return ("imaging", "text"), (imaging, text)


def _check(options: AdaCoMedOptions, hidden: int, in_dim: int, streams: int) -> None:
    """Raise `ValueError` for options out of range."""
    counts = {
        "hidden": hidden,
        "in_dim": in_dim,
        "small_rounds": options.small_rounds,
        "heads": options.heads,
    }
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be positive, found {count}")
    if streams * hidden % options.heads:
        raise ValueError(
            f"hidden times {streams} streams must divide by heads, found {hidden}, {options.heads}"
        )
    if options.temperature <= 0 or options.contrastive_weight < 0:
        raise ValueError("temperature must be positive and contrastive_weight not negative")
    for name in ("dropout", "head_dropout"):
        if not 0 <= getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, found {getattr(options, name)}")
