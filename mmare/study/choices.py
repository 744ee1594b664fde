"""The closed sets that a study chooses from."""

from __future__ import annotations

from enum import StrEnum

__all__ = [
    "Kind",
    "MaskUse",
    "OptimizerName",
    "OptimizerState",
    "PromptMode",
    "Scaling",
    "Schedule",
    "Select",
    "Untouched",
    "Wire",
]


class Kind(StrEnum):
    """What a site holds of a modality."""

    VOLUME = "volume"
    TEXT = "text"
    FEATURES = "features"


class Scaling(StrEnum):
    """How an embedding is scaled before the model sees it."""

    ZSCORE = "zscore"
    L2 = "l2"
    NONE = "none"


class PromptMode(StrEnum):
    """What a prompt says of a missing field."""

    OMIT = "omit"
    EXPLICIT = "explicit"


class MaskUse(StrEnum):
    """What becomes of the voxels outside a mask."""

    NONE = "none"
    STRIP = "strip"


class OptimizerName(StrEnum):
    """The optimisers that a site can run."""

    ADAM = "adam"
    ADAMW = "adamw"
    SGD = "sgd"


class Schedule(StrEnum):
    """How the step size changes over rounds."""

    CONSTANT = "constant"
    COSINE = "cosine"
    PLATEAU = "plateau"


class Select(StrEnum):
    """What the best round is best in, on the validation rows."""

    BALANCED_ACCURACY = "balanced_accuracy"
    WORST_SITE = "worst_site"
    AUC = "auc"
    LOSS = "loss"
    BALANCED_LOSS = "balanced_loss"


class Untouched(StrEnum):
    """What becomes of parameters that no sample of a site exercised."""

    STAY = "stay"
    DRIFT = "drift"


class Wire(StrEnum):
    """Numbers that updates travel in."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


class OptimizerState(StrEnum):
    """What becomes of a site's optimiser moments between rounds."""

    KEEP = "keep"
    RESET = "reset"
