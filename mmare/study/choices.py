"""The enumerated settings of a study and its runs; imports nothing, so that ``--help`` is quick."""

from __future__ import annotations

from enum import StrEnum

__all__ = [
    "Backend",
    "ExtraAnswer",
    "Hazard",
    "Kind",
    "MaskUse",
    "Mode",
    "OptimizerName",
    "OptimizerState",
    "PromptMode",
    "Scaling",
    "Scans",
    "Schedule",
    "Select",
    "TaskName",
    "Untouched",
    "Wire",
]


class Mode(StrEnum):
    """Where the rows that train a model lie."""

    FEDERATED = "federated"
    CENTRALISED = "centralised"
    LOCAL = "local"


class Backend(StrEnum):
    """Who carries the messages of a simulated run; results are the same."""

    INPROCESS = "inprocess"
    RAY = "ray"


class ExtraAnswer(StrEnum):
    """What a site answers only if its study names it."""

    SUBSETS = "subsets"  # metrics of every subset of modalities
    COMPARISON = "comparison"  # which test rows two models predict right
    TRAIN = "train"  # metrics on the train rows
    CALIBRATION = "calibration"  # losses on a grid of temperatures and shifts
    SHAPLEY = "shapley"  # how far each modality moves predictions


class TaskName(StrEnum):
    """What is learned."""

    CLASSIFICATION = "classification"
    SURVIVAL = "survival"
    REGRESSION = "regression"


class Hazard(StrEnum):
    """What a model of times predicts: the hazard of each interval, or one factor of all of them."""

    INTERVALS = "intervals"
    COX = "cox"


class Kind(StrEnum):
    """What a site holds for a modality."""

    VOLUME = "volume"
    TEXT = "text"
    FEATURES = "features"


class Scaling(StrEnum):
    """Scaling of an embedding before the model."""

    ZSCORE = "zscore"  # by moments pooled over the sites
    SITE = "site"  # z-scores by each site's own moments, which stay there
    COMBAT = "combat"  # the same, shrunk: `mmare.models.site_scaling`
    L2 = "l2"
    NONE = "none"

    @property
    def standardises(self) -> bool:
        """Whether it makes z-scores."""
        return self in {Scaling.ZSCORE, Scaling.SITE, Scaling.COMBAT}

    @property
    def is_own(self) -> bool:
        """Whether each site has its own, without which the model cannot be used."""
        return self in {Scaling.SITE, Scaling.COMBAT}


class Scans(StrEnum):
    """What becomes of several scans, or vectors, that a patient has of one modality."""

    ONE = "one"  # the first by the site's rule
    MEAN = "mean"  # the mean of their embeddings; one that is there twice counts once
    SAMPLE = "sample"  # one is drawn per step while training; the mean at evaluation
    ATTENTION = "attention"  # a mean with learned weights


class PromptMode(StrEnum):
    """How a prompt renders a missing field."""

    OMIT = "omit"
    EXPLICIT = "explicit"


class MaskUse(StrEnum):
    """What happens to voxels outside the mask; ``strip`` sets them to background."""

    NONE = "none"
    STRIP = "strip"


class OptimizerName(StrEnum):
    """Local optimisers."""

    ADAM = "adam"
    ADAMW = "adamw"
    SGD = "sgd"


class Schedule(StrEnum):
    """Learning-rate schedule over rounds."""

    CONSTANT = "constant"
    COSINE = "cosine"
    PLATEAU = "plateau"


class Select(StrEnum):
    """Validation score that selects the best round."""

    BALANCED_ACCURACY = "balanced_accuracy"
    WORST_SITE = "worst_site"
    AUC = "auc"
    LOSS = "loss"
    BALANCED_LOSS = "balanced_loss"
    CONCORDANCE = "concordance"
    R2 = "r2"


class Untouched(StrEnum):
    """What a site does with parameters that none of its samples exercised."""

    STAY = "stay"
    DRIFT = "drift"


class Wire(StrEnum):
    """Number format of updates in transit."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


class OptimizerState(StrEnum):
    """Whether a site keeps its optimiser moments between rounds."""

    KEEP = "keep"
    RESET = "reset"
