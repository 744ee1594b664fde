"""What must hold of a study, each rule with the sentence for where it does not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from mmare.errors import StudyError
from mmare.study.outcome import outcome_rules
from mmare.study.patient_privacy import check_patient_privacy
from mmare.study.start import start_rules
from mmare.study.strategy_options import FedAvgOptions, FedSGDOptions, strategy_options
from mmare.study.sums_only import check_gradients, check_secure_sum

if TYPE_CHECKING:
    from mmare.study.specs import ModalitySpec
    from mmare.study.study import Study

__all__ = ["PARTS", "SUBSET", "check_study"]

SUBSET: Final = "subset"  # of ``training.modality_dropout``: `mmare.models.hiding.subsets.keep_subset`
PARTS: Final = ("adapters", "head", "norms")  # of a model, that can stay at a site
AXES, ENDS, MAX_SEED = 3, 2, 2**63  # of a volume, of a window; torch takes no larger seed


def check_study(study: Study) -> None:
    """Raise `StudyError` if a value is out of range or the parts contradict each other."""
    names = [modality.name for modality in study.modalities]
    training = study.training
    weights = training.oversample if isinstance(training.oversample, Mapping) else {}
    dropout = training.modality_dropout
    hidden = dropout if isinstance(dropout, Mapping) else {}
    probabilities = [*hidden.values(), *([dropout] if isinstance(dropout, float | int) else [])]
    widths = [modality.width for modality in study.modalities]
    at_least_one = {
        "[training] rounds": training.rounds,
        "[training] local_epochs": training.local_epochs,
        "[training] batch_size": training.batch_size,
        "[training] patience": training.patience,
        "[federation] min_sites": study.federation.min_sites,
    }
    positive = {
        "[training] learning_rate": training.learning_rate,
        "[federation] deadline_s": study.federation.deadline_s,
        "[privacy] max_step": 1 if study.privacy.max_step is None else study.privacy.max_step,
    }
    not_negative = {
        "[study] seed": study.seed,
        "[training] weight_decay": training.weight_decay,
        "[training] clip_norm": training.clip_norm,
        "[training] distillation": training.distillation,
        "[federation] max_norm": study.federation.max_norm,
        "[privacy] min_count": study.privacy.min_count,
    }
    rules = [
        (bool(study.name), "[study] name is empty"),
        *outcome_rules(study),
        *start_rules(study),
        *((value >= 1, f"{key} must be at least 1, found {value}") for key, value in at_least_one.items()),
        *((value > 0, f"{key} must be positive, found {value}") for key, value in positive.items()),
        *((value >= 0, f"{key} must not be negative, found {value}") for key, value in not_negative.items()),
        (
            0 < study.federation.max_share <= 1,
            f"[federation] max_share must be above 0 and at most 1, found {study.federation.max_share}",
        ),
        (study.seed < MAX_SEED, f"[study] seed must be below 2**63, found {study.seed}"),
        (_is_plain(study.model.options), "[model] may hold texts, finite numbers, lists and tables only"),
        (bool(names), "no [[modality]]: a study needs at least one"),
        (len(set(names)) == len(names), f"two [[modality]] tables have the same name: {names}"),
        (all(names), "a [[modality]] has an empty name"),
        (all(width > 0 for width in widths), f"[[modality]] width must be positive, found {widths}"),
        (
            0 <= training.noise_probability <= 1,
            f"[training] noise_probability must be between 0 and 1, found {training.noise_probability}",
        ),
        (
            not isinstance(training.oversample, str) or training.oversample == "balanced",
            f"[training] oversample must be a table of weights or 'balanced', found {training.oversample!r}",
        ),
        (
            set(weights) <= set(study.classes),
            f"[training] oversample names a class that is not one: {sorted(weights)}",
        ),
        (
            all(weight > 0 for weight in weights.values()),
            f"[training] oversample weights must be positive, found {weights}",
        ),
        (
            set(hidden) <= set(names),
            f"[training] modality_dropout names a modality that is not one: {sorted(hidden)}",
        ),
        (
            all(0 <= probability < 1 for probability in probabilities),
            f"[training] modality_dropout must be at least 0 and below 1, found {dropout}",
        ),
        (
            not isinstance(dropout, str) or dropout == SUBSET,
            f"[training] modality_dropout must be a number, a table or 'subset', found {dropout!r}",
        ),
        (
            training.distillation == 0 or any(probabilities) or dropout == SUBSET,
            "[training] distillation needs modality_dropout: nothing is hidden",
        ),
        (
            set(study.federation.local) <= set(PARTS),
            f"[federation] local may name {', '.join(PARTS)}, found {list(study.federation.local)}",
        ),
    ]
    for holds, sentence in rules:
        if not holds:
            raise StudyError(sentence)
    options = strategy_options(study.federation.strategy, study.federation.options)
    if study.federation.max_share < 1 and not isinstance(options, FedAvgOptions):
        raise StudyError(
            f"[federation] max_share has no effect: strategy {study.federation.strategy} weighs no site"
        )
    if isinstance(options, FedSGDOptions):
        check_gradients(study, options)
    if study.privacy.secure_sum:
        check_secure_sum(study, options)
    if study.privacy.dp is not None:
        check_patient_privacy(study, options)
    for modality in study.modalities:
        _check_volume(modality)
        where = f"[[modality]] {modality.name} is text"
        if modality.kind == "text" and modality.encoder == "given":
            raise StudyError(f"{where} and needs an encoder, such as 'hashing-text'")
        if modality.kind == "text" and modality.scans != "one":
            raise StudyError(f"{where}, of which scans must be one")


def _check_volume(modality: ModalitySpec) -> None:
    where = f"[[modality]] {modality.name}"
    of_volumes = (modality.size, modality.window, modality.mask != "none", modality.crop_to_mask)
    if modality.kind != "volume" and any(of_volumes):
        raise StudyError(f"{where} is {modality.kind}; size, window, mask and crop_to_mask are for volumes")
    if modality.size and (len(modality.size) != AXES or min(modality.size) < 1):
        raise StudyError(f"{where} size must be three positive numbers, found {list(modality.size)}")
    if modality.window and not (len(modality.window) == ENDS and modality.window[0] < modality.window[1]):
        raise StudyError(f"{where} window must be a lower and a higher number, found {list(modality.window)}")


def _is_plain(value: object) -> bool:
    """Whether JSON can hold it: TOML also has dates and NaN."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping | list | tuple):
        return all(map(_is_plain, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, str | int)
