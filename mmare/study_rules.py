"""What the parts of a study must agree on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from mmare.errors import StudyError
from mmare.strategies import strategy_options

if TYPE_CHECKING:
    from mmare.study import ModalitySpec, Study

__all__ = ["PARTS", "SUBSET", "check_study"]

SUBSET: Final = "subset"  # of ``training.modality_dropout``: `mmare.subsets.keep_subset`

PARTS: Final = ("adapters", "head", "norms")  # of a model, that can stay at a site

AXES, ENDS = 3, 2  # of a volume, of a window
MAX_SEED: Final = 2**63  # torch takes no larger


def check_study(study: Study) -> None:
    """Refuse a study whose parts contradict each other.

    Raises:
        StudyError: With the table, the key, and what was found.
    """
    names = [modality.name for modality in study.modalities]
    training = study.training
    named = training.oversample if isinstance(training.oversample, Mapping) else {}
    dropout = training.modality_dropout
    hidden = dropout if isinstance(dropout, Mapping) else {}
    probabilities = [*hidden.values(), *([dropout] if isinstance(dropout, float | int) else [])]
    widths = [modality.width for modality in study.modalities]
    rules = [
        (bool(study.name), "[study] name is empty"),
        (len(study.classes) >= 2, f"[study] classes must name at least two, found {list(study.classes)}"),  # noqa: PLR2004 - two is what a choice needs
        (all(study.classes), "[study] classes holds an empty name"),
        (len(set(study.classes)) == len(study.classes), "[study] classes names one class twice"),
        (
            study.positive in (None, *study.classes),
            f"[study] positive {study.positive!r} is not one of the classes",
        ),
        (study.seed >= 0, f"[study] seed must not be negative, found {study.seed}"),
        (study.seed < MAX_SEED, f"[study] seed must be below 2**63, found {study.seed}"),
        (_is_plain(study.model.options), "[model] may hold texts, finite numbers, lists and tables only"),
        (bool(names), "no [[modality]]: a study needs at least one"),
        (len(set(names)) == len(names), "two [[modality]] tables have the same name"),
        (all(names), "a [[modality]] has an empty name"),
        (all(width > 0 for width in widths), f"[[modality]] width must be positive, found {widths}"),
        (training.rounds > 0, "[training] rounds must be at least 1"),
        (training.local_epochs > 0, "[training] local_epochs must be at least 1"),
        (training.batch_size > 0, "[training] batch_size must be at least 1"),
        (training.learning_rate > 0, "[training] learning_rate must be positive"),
        (training.weight_decay >= 0, "[training] weight_decay must not be negative"),
        (training.patience > 0, "[training] patience must be at least 1"),
        (0 <= training.noise_probability <= 1, "[training] noise_probability must be between 0 and 1"),
        (
            not isinstance(training.oversample, str) or training.oversample == "balanced",
            f"[training] oversample must be a table of weights or 'balanced', found {training.oversample!r}",
        ),
        (
            set(named) <= set(study.classes),
            f"[training] oversample names a class that is not one: {sorted(named)}",
        ),
        (all(weight > 0 for weight in named.values()), "[training] oversample weights must be positive"),
        (study.federation.max_norm >= 0, "[federation] max_norm must not be negative"),
        (training.clip_norm >= 0, "[training] clip_norm must not be negative"),
        (training.distillation >= 0, "[training] distillation must not be negative"),
        (
            set(hidden) <= set(names),
            f"[training] modality_dropout names a modality that is not one: {sorted(hidden)}",
        ),
        (
            all(0 <= probability < 1 for probability in probabilities),
            "[training] modality_dropout must be at least 0 and below 1",
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
        (study.federation.min_sites > 0, "[federation] min_sites must be at least 1"),
        (study.federation.deadline_s > 0, "[federation] deadline_s must be positive"),
        (study.privacy.min_count >= 0, "[privacy] min_count must not be negative"),
    ]
    for holds, sentence in rules:
        if not holds:
            raise StudyError(sentence)
    strategy_options(study.federation.strategy, study.federation.options)
    for modality in study.modalities:
        _check_volume(modality)
        if modality.kind == "text" and modality.encoder == "given":
            raise StudyError(
                f"[[modality]] {modality.name} is text and needs an encoder, such as 'hashing-text'"
            )


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
    """Whether JSON can hold it: TOML also has dates and NaN, which no message can carry."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(_is_plain(entry) for entry in value.values())
    if isinstance(value, list | tuple):
        return all(_is_plain(entry) for entry in value)
    return isinstance(value, str | int)
