"""Scaled rows are kept as long as what they follow from stays."""

from dataclasses import replace

import torch

from client.training.scaled_rows import ScaledRows
from mmare.models.adapters import InputScaling
from mmare.study.choices import Kind, Scaling
from mmare.study.specs import ModalitySpec
from mmare.wire.messages import Split
from tests.federations import tiny_data, tiny_study


def test_rows_are_scaled_anew_when_moments_clip_or_data_change():
    data = tiny_data(tiny_study())
    rows = data.rows[Split.TRAIN]
    specs = [
        ModalitySpec(f"m{slot}", Kind.FEATURES, part.shape[1], scaling=Scaling.ZSCORE)
        for slot, part in enumerate(data.embedding)
    ]
    kept = ScaledRows(10**6)

    def expected(scaling, data):
        return scaling([part[rows] for part in data.embedding], data.present[rows])

    scaling = InputScaling(specs)
    first = kept.of(scaling, data, rows)
    assert torch.equal(first, expected(scaling, data))
    assert kept.of(scaling, data, rows) is first
    scaling.set_moments(0, torch.ones(specs[0].width), torch.full((specs[0].width,), 2.0))
    moved = kept.of(scaling, data, rows)
    assert torch.equal(moved, expected(scaling, data))
    assert not torch.equal(moved, first)
    clipped = InputScaling(specs, clip=0.1)
    clipped.load_state_dict(scaling.state_dict())
    assert torch.equal(kept.of(clipped, data, rows), expected(clipped, data))
    other = replace(data, embedding=tuple(part + 1 for part in data.embedding))
    assert torch.equal(kept.of(clipped, other, rows), expected(clipped, other))


def test_what_is_larger_than_the_limit_is_not_kept():
    data = tiny_data(tiny_study())
    rows = data.rows[Split.TRAIN]
    specs = [ModalitySpec(f"m{slot}", Kind.FEATURES, p.shape[1]) for slot, p in enumerate(data.embedding)]
    kept, scaling = ScaledRows(8), InputScaling(specs)
    assert kept.of(scaling, data, rows) is not kept.of(scaling, data, rows)
