"""What the tables of ``study.toml`` say: modalities, model, training, federation, privacy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmare.study.choices import (
    Kind,
    MaskUse,
    OptimizerName,
    OptimizerState,
    PromptMode,
    Scaling,
    Schedule,
    Select,
    Untouched,
    Wire,
)

__all__ = ["FederationSpec", "ModalitySpec", "ModelSpec", "PrivacySpec", "TrainingSpec"]


@dataclass(frozen=True)
class ModalitySpec:
    """One slot of the missing vector.

    Args:
        name: Unique in the study; sites refer to it.
        kind: What a site holds.
        width: Of the embedding that the encoder gives.
        encoder: Key of the encoder registry; ``given`` for features that were extracted before.
        scaling: Applied to the embedding, with moments pooled over sites for ``zscore``.
        prompt: For text: template over the columns of the site's manifest.
        prompt_mode: For text: what is said of missing fields.
        size: For volumes: slices, rows and columns to resize to; empty for the encoder's default.
        mask: For volumes: what becomes of voxels outside the site's mask; ``strip`` makes them background.
        crop_to_mask: For volumes: whether they are cut to the box around the mask first, as around an organ.
        window: For volumes: lowest and highest intensity that is kept (CT, in HU); empty for all.
    """

    name: str
    kind: Kind
    width: int
    encoder: str = "given"
    scaling: Scaling = Scaling.ZSCORE
    prompt: str | None = None
    prompt_mode: PromptMode = PromptMode.OMIT
    size: tuple[int, ...] = ()
    window: tuple[float, ...] = ()
    mask: MaskUse = MaskUse.NONE
    crop_to_mask: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """Which model of the registry, and its own options."""

    name: str = "mmare"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingSpec:
    """What a site does in a round, and when rounds end.

    Args:
        rounds: Upper bound; ``patience`` usually ends a run before.
        local_epochs: Passes over the site's train rows in one round.
        optimizer: ``adam`` adds weight decay to the gradient (L2), as the thesis does; ``adamw`` decouples
            it.
        batch_size: Patients per step.
        learning_rate: Step size.
        weight_decay: L2 factor.
        optimizer_state: ``keep`` leaves the moments on the site's disk between rounds.
        patience: Rounds without a better validation score (``select``) after which a run ends.
        oversample: Sampling weight per class name (absent classes weigh 1), ``balanced``, or nothing.
        noise_probability: Share of train patients per step whose embeddings get Gaussian noise, of 0.1
            times each feature's standard deviation over the train rows.
        recipe: Named settings of the model that stand where the study says nothing (`mmare.study.recipes`).
        schedule: ``cosine`` brings the step size to nearly nothing over ``rounds``; ``plateau`` multiplies it
            by 0.3 after three rounds without a lower validation loss.
        clip_norm: Largest L2 norm of a step's gradient; 0 leaves it as it is.
        select: What the selected round is best in; ties by lower loss.
        modality_dropout: Probability that a modality which a train patient has is hidden in a step, at least
            one stays: one number, a table by modality (absent ones 0), or ``subset``: a patient keeps a
            subset whose size is drawn evenly from one to all. In the last phase of a model only.
        distillation: Weight of what the hidden patient must agree on with the whole one, beside both losses;
            0 trains on the hidden patient alone.
    """

    rounds: int = 200
    local_epochs: int = 1
    optimizer: OptimizerName = OptimizerName.ADAM
    batch_size: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    optimizer_state: OptimizerState = OptimizerState.KEEP
    patience: int = 25
    oversample: Mapping[str, float] | str | None = None
    noise_probability: float = 0.0
    recipe: str = "thesis"
    schedule: Schedule = Schedule.CONSTANT
    clip_norm: float = 0.0
    select: Select = Select.BALANCED_ACCURACY
    modality_dropout: Mapping[str, float] | float | str = 0.0
    distillation: float = 0.0


@dataclass(frozen=True)
class FederationSpec:
    """How sites are brought together.

    Args:
        strategy: How updates are brought together: a key of `mmare.study.strategy_options.STRATEGY_OPTIONS`.
        min_sites: Fewest good updates that a round may go on with.
        deadline_s: Longest that the server waits for a site, in seconds.
        options: Of the strategy.
        local: Parts of the model that stay at each site: ``norms``, ``head``, ``adapters``.
        wire: Numbers that updates travel in; ``float16`` sends the change at half the bytes.
        untouched: Whether parameters that none of a site's samples exercised ``stay`` what the server sent
            and do not travel back, or ``drift`` with weight decay and moments, as in plain averaging.
        max_norm: Longest update (L2 norm of a round's change) that a site may send; 0 for any finite one.
    """

    strategy: str = "fedavg"
    min_sites: int = 2
    deadline_s: float = 600.0
    options: Mapping[str, Any] = field(default_factory=dict)
    local: tuple[str, ...] = ()
    wire: Wire = Wire.FLOAT32
    untouched: Untouched = Untouched.STAY
    max_norm: float = 0.0


@dataclass(frozen=True)
class PrivacySpec:
    """What may be said of small groups: ``min_count`` is the smallest whose size leaves a site."""

    min_count: int = 5
