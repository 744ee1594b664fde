"""A study whose model grows by modalities, while every patient who lacks them is predicted as before."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import torch

from mmare.errors import InputError
from mmare.models.batch import Batch
from mmare.models.registry import build_model
from mmare.package.graft import graft
from mmare.package.start import StartModel
from mmare.package.weights import read_weights
from mmare.study.choices import Scaling
from mmare.study.start import StartSpec
from mmare.wire.tensors import copy_tensors, global_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mmare.package.graft import Graft
    from mmare.study.specs import ModalitySpec
    from mmare.study.study import Study

__all__ = ["grow", "joining_scaling"]

ROWS, MOST = 4, 6  # of each pattern; modalities of which every pattern is compared


def joining_scaling(study: Study) -> Scaling:
    """Of a new modality: under differential privacy moments are not released."""
    return Scaling.ZSCORE if study.privacy.dp is None else Scaling.L2


def grow(
    start: StartModel, joining: Sequence[ModalitySpec], rounds: int, settings: Sequence[str] = ()
) -> tuple[Study, Graft]:
    """The study of a start model with more slots, and what of the model it has.

    Args:
        start: Trained without the modalities.
        joining: Their slots come last.
        rounds: In which only their blocks train.
        settings: ``section.key=value`` over the study.

    Raises:
        InputError: If one has the name of an old one, or the model would predict old patients otherwise.
        StudyError: If the study cannot have them.
    """
    old = start.study
    names = [each.name for each in joining]
    for name in names:
        if name in {each.name for each in old.modalities} or names.count(name) > 1:
            raise InputError(f"--modality {name}: the study has a modality of this name; expected a new name")
    study = replace(
        old,
        name="-".join([old.name, *names]),
        modalities=(*old.modalities, *joining),
        start=StartSpec(start.digest, tuple(names), rounds),
    ).override(settings)
    model, before = build_model(study), build_model(old)
    found = graft(model, study, start)
    copy_tensors(global_tensors(before), read_weights(start.weights, start.source)[0])
    embedding, present = _old_patients(old)
    absent = len(joining)
    more = tuple(torch.full((len(present), each.width), torch.nan) for each in joining)
    grown = torch.cat([present, torch.zeros(len(present), absent, dtype=torch.bool)], dim=1)
    with torch.inference_mode():
        was, now = before.eval()(Batch(embedding, present)), model.eval()(Batch((*embedding, *more), grown))
    if was.numpy().tobytes() != now.numpy().tobytes():
        raise InputError(
            f"{start.source}: a {old.model.name} that grows predicts patients without {', '.join(names)} "
            f"otherwise than before, by up to {(was - now).abs().max():.3g}; it cannot be extended"
        )
    return study, found


def _old_patients(study: Study) -> tuple[tuple[Tensor, ...], Tensor]:
    """Random patients with every pattern of the old modalities."""
    width = len(study.modalities)
    patterns = [pattern for pattern in product((True, False), repeat=min(width, MOST)) if any(pattern)]
    present = torch.tensor(patterns).repeat(ROWS, 1)  # (B, M)
    present = torch.cat([present, present[:, :1].expand(-1, width - present.shape[1])], dim=1)
    generator = torch.Generator().manual_seed(0)
    embedding = tuple(torch.randn(len(present), each.width, generator=generator) for each in study.modalities)
    return embedding, present
