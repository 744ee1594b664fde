"""The tables of ``study.toml``: modalities, model, training, federation, privacy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmare.study.choices import (
    ExtraAnswer,
    Kind,
    MaskUse,
    OptimizerName,
    OptimizerState,
    PromptMode,
    Scaling,
    Scans,
    Schedule,
    Select,
    Untouched,
    Wire,
)

__all__ = [
    "DifferentialPrivacySpec",
    "FederationSpec",
    "ModalitySpec",
    "ModelSpec",
    "PrivacySpec",
    "TrainingSpec",
]


@dataclass(frozen=True)
class ModalitySpec:
    """One slot of the missing vector; prompts are for text, size to crop_to_mask for volumes."""

    name: str  # unique in the study
    kind: Kind
    width: int  # of the embedding
    encoder: str = "given"  # key of the encoder registry; ``given``: features extracted beforehand
    scaling: Scaling = Scaling.ZSCORE
    prompt: str | None = None  # template over the columns of the site's manifest
    prompt_mode: PromptMode = PromptMode.OMIT
    size: tuple[int, ...] = ()  # slices, rows, columns to resize to; empty: the encoder's default
    window: tuple[float, ...] = ()  # lowest and highest intensity kept (CT: HU); empty: all
    mask: MaskUse = MaskUse.NONE
    crop_to_mask: bool = False  # crop to the bounding box of the mask first
    scans: Scans = Scans.ONE  # what becomes of several of a patient


@dataclass(frozen=True)
class ModelSpec:
    """Which model of the registry, and its own options."""

    name: str = "mmare"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingSpec:
    """Local training and when a run ends.

    Args:
        optimizer: ``adam`` adds weight decay to the gradient (L2), as the thesis does; ``adamw`` decouples
            it.
        oversample: Sampling weight per class name (others weigh 1), ``balanced``, or none.
        noise_probability: Share of train patients per step whose embeddings get Gaussian noise of 0.1 times
            each feature's standard deviation over the train rows.
        schedule: ``cosine`` decays the learning rate to nearly zero over ``rounds``; ``plateau`` multiplies
            it by 0.3 after three rounds without a lower validation loss.
        modality_dropout: Probability of hiding each modality of a train patient in a step; at least one
            stays. One number, a table by modality (others 0), or ``subset``: the size of the subset that is
            kept is uniform from one to all. Applies to the last phase of a model only.
        distillation: Weight of the agreement between the predictions with and without hidden modalities,
            beside both losses; 0 trains on the hidden patient alone.
    """

    rounds: int = 200  # at most: ``patience`` usually ends a run earlier
    local_epochs: int = 1  # per round
    optimizer: OptimizerName = OptimizerName.ADAM
    batch_size: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    optimizer_state: OptimizerState = OptimizerState.KEEP  # on the site's disk
    patience: int = 25  # rounds without a better validation score (``select``)
    oversample: Mapping[str, float] | str | None = None
    noise_probability: float = 0.0
    recipe: str = "thesis"  # named defaults: `mmare.study.recipes`
    schedule: Schedule = Schedule.CONSTANT
    clip_norm: float = 0.0  # largest L2 norm of a step's gradient; 0: no clipping
    select: Select = Select.BALANCED_ACCURACY  # ties by lower loss
    modality_dropout: Mapping[str, float] | float | str = 0.0
    distillation: float = 0.0


@dataclass(frozen=True)
class FederationSpec:
    """How the updates of sites are aggregated.

    Args:
        untouched: Parameters that none of a site's samples exercised either ``stay`` as the server sent them
            and are not returned, or ``drift`` with weight decay and moments, as in plain averaging.
    """

    strategy: str = "fedavg"  # key of `mmare.study.strategy_options.STRATEGY_OPTIONS`
    min_sites: int = 2  # fewest valid updates of a round
    deadline_s: float = 600.0  # longest wait for a site's reply
    options: Mapping[str, Any] = field(default_factory=dict)  # of the strategy
    local: tuple[str, ...] = ()  # parts that stay at each site: ``norms``, ``head``, ``adapters``
    wire: Wire = Wire.FLOAT32  # ``float16`` sends the change at half the bytes
    untouched: Untouched = Untouched.STAY
    max_norm: float = 0.0  # largest L2 norm of an update; 0: any finite one
    max_share: float = 1.0  # of a site in every weighted mean; sites that are too few for it weigh alike


@dataclass(frozen=True)
class DifferentialPrivacySpec:
    """What one run may tell of any one patient of a site, whatever else the reader knows.

    A site with and without the patient gives any set of answers with probabilities that differ by a factor of
    at most e**epsilon, but for delta (Dwork and Roth 2014, definition 2.4).
    """

    epsilon: float
    delta: float = 1e-5  # below one in the number of patients
    clip: float = 1.0  # largest L2 norm of a patient's gradient in a step


@dataclass(frozen=True)
class PrivacySpec:
    """Disclosure limits.

    Args:
        max_step: Largest L2 distance by which a round may move the global model; a site refuses a model that
            lies further from the last one that it saw. By default 100 steps of Adam an epoch.
    """

    min_count: int = 5  # smallest group whose size may leave a site
    extra: tuple[ExtraAnswer, ...] = ()  # answers beside those of every run
    max_step: float | None = None
    secure_sum: bool = False  # the coordinator learns the sum over sites only, of at least three
    dp: DifferentialPrivacySpec | None = None

    @property
    def hides_counts(self) -> bool:
        """Whether a site tells no numbers of its patients before a run."""
        return self.secure_sum or self.dp is not None
