"""Studies and batches that the tests of the model library share."""

import itertools
from contextlib import contextmanager
from dataclasses import fields

import pytest
import torch

from mmare.models.baselines.hypermm import HyperMM
from mmare.models.batch import Batch
from mmare.models.registry import MODELS
from mmare.study.choices import Kind, Scaling
from mmare.study.specs import ModalitySpec, ModelSpec
from mmare.study.study import Study

__all__ = [
    "SMALL",
    "a_batch",
    "a_study",
    "generator",
    "patterns",
    "random_presence",
    "small_maps",
    "small_options",
]

SMALL = {  # of whatever options a model has
    "width": 32,
    "hidden": 32,
    "in_dim": 32,
    "heads": 2,
    "head_width": 8,
    "feedforward": 16,
    "depth": 2,
}


@contextmanager
def small_maps():
    """HyperMM's width is that of maps: within, 2 x 2 of two channels instead of 25,088 numbers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HyperMM, "MAPS", (2, 2, 2))
        patch.setattr(HyperMM, "HIDDEN", 32)
        yield


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


FORMULAS = (Scaling.ZSCORE, Scaling.L2, Scaling.NONE)  # the others are z-scores by other moments


def a_study(widths, *, classes=2, seed=0, scalings=(), model="mmare", **options: object):
    """One features modality per width, scaled in turn by ``scalings``."""
    scaling = itertools.cycle(scalings or [Scaling.ZSCORE])
    modalities = [
        ModalitySpec(f"m{slot}", Kind.FEATURES, width, scaling=next(scaling))
        for slot, width in enumerate(widths)
    ]
    names = tuple(f"class{label}" for label in range(classes))
    return Study("example", names, tuple(modalities), seed=seed, model=ModelSpec(model, options))


def small_options(model, **wanted: object):
    """Of ``wanted``, what this model of the registry can set."""
    known = {part.name for part in fields(MODELS[model].Options)}
    return {key: value for key, value in wanted.items() if key in known}


def patterns(modalities):
    """Every non-empty presence pattern, ``(2^M - 1, M)`` bool."""
    rows = [row for row in itertools.product([True, False], repeat=modalities) if any(row)]
    return torch.tensor(rows)


def random_presence(patients, modalities, seed=0):
    """Patterns drawn evenly, ``(B, M)`` bool."""
    every = patterns(modalities)
    return every[torch.randint(len(every), (patients,), generator=generator(seed))]


def a_batch(widths, present, *, classes=2, seed=0):
    """Random features, NaN where absent, and random labels."""
    source = generator(seed)
    embedding = tuple(torch.randn(len(present), width, generator=source) for width in widths)
    label = torch.randint(classes, (len(present),), generator=source)
    for slot, part in enumerate(embedding):
        part[~present[:, slot]] = torch.nan
    return Batch(embedding, present, label)
