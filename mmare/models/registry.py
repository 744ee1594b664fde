"""The models that a study can name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mmare.errors import StudyError
from mmare.models.base import MMARE, MultimodalModel
from mmare.models.baselines.adacomed import AdaCoMed
from mmare.models.baselines.drim import DRIM
from mmare.models.baselines.hypermm import HyperMM, HyperMMEmbedding
from mmare.models.baselines.late_mean import LateMean
from mmare.models.baselines.linear import Linear
from mmare.models.baselines.unilmmv import UniLMMV
from mmare.models.baselines.unimodal import Unimodal
from mmare.models.phases import last_phase_start
from mmare.randomness import global_draws
from mmare.study.choices import Scans
from mmare.study.tables import TableError, from_table
from mmare.tasks.registry import task_of

if TYPE_CHECKING:
    from mmare.study.study import Study

__all__ = ["MODELS", "build_model", "model_options"]

MODELS: dict[str, type[MultimodalModel]] = {
    "adacomed": AdaCoMed,
    "drim": DRIM,
    "hypermm": HyperMM,
    "hypermm-embedding": HyperMMEmbedding,
    "late-mean": LateMean,
    "linear": Linear,
    "mmare": MMARE,
    "unilmmv": UniLMMV,
    "unimodal": Unimodal,
}


def model_options(study: Study) -> Any:  # noqa: ANN401 - each model has its own
    """The options of the study's model with defaults filled in.

    Raises:
        StudyError: If the model or an option does not exist, or a value has the wrong type.
    """
    name = study.model.name
    if name not in MODELS:
        raise StudyError(f"[model] name must be one of {', '.join(sorted(MODELS))}, found {name!r}")
    try:
        return from_table(MODELS[name].Options, study.model.options, f"[model] of {name}")
    except TableError as error:
        raise StudyError(str(error)) from None


def build_model(study: Study) -> MultimodalModel:
    """Make the study's model; weights depend on the study's seed alone. Thread-safe.

    Raises:
        StudyError: If the model does not exist, or its options or the number of rounds are invalid.

    Example:
        >>> from mmare.study.choices import Kind
        >>> from mmare.study.specs import ModalitySpec
        >>> from mmare.study.study import Study
        >>> study = Study("s", ("a", "b"), (ModalitySpec("ct", Kind.FEATURES, 512),))
        >>> build_model(study).classes
        2
    """
    options = model_options(study)
    builder = MODELS[study.model.name]
    if study.privacy.dp is not None and not builder.SEPARATE:
        able = ", ".join(sorted(name for name, model in MODELS.items() if model.SEPARATE))
        raise StudyError(
            f"[privacy] dp clips the gradient of each patient, which {study.model.name} does not give: its "
            f"loss compares patients, or a layer is made for all of them at once; expected one of {able}"
        )
    weighed = next((each.name for each in study.modalities if each.scans is Scans.ATTENTION), None)
    if weighed is not None and builder is not MMARE:
        raise StudyError(
            f"[[modality]] {weighed} scans attention is of model mmare, found {study.model.name}"
        )
    task = task_of(study)
    with global_draws():
        torch.random.manual_seed(study.seed)
        try:
            model = builder(study.modalities, task.outputs, options)
        except ValueError as error:
            raise StudyError(f"[model] of {study.model.name}: {error}") from None
    model.task = task
    model.__dict__.pop("_names", None)  # of the parameters: the task may have some
    if study.start is not None and study.start.first:
        model.first, model.first_rounds = study.start.first, study.start.rounds
        if builder.phases is not MultimodalModel.phases or len(model.phases()) == 1:
            raise StudyError(
                f"[start] first trains the blocks of a modality alone, which {study.model.name} cannot"
            )
    early = last_phase_start(model.phases()) - 1
    if study.training.rounds <= early:
        raise StudyError(
            f"[training] rounds must be more than the {early} that {study.model.name} trains its first part "
            f"in, found {study.training.rounds}"
        )
    return model
