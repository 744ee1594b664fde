"""Sums of absolute Shapley values against a loop over patients."""

import json
import math

import pytest
import torch

from mmare.metrics.attribution import AttributionState, merge_attributions

NAMES = ("ct", "wsi", "genes")


def drawn(patients=40, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(patients, len(NAMES), generator=generator) < 0.7
    shares = torch.randn(patients, len(NAMES), classes, generator=generator, dtype=torch.float64) * 0.1
    shares -= shares.mean(dim=2, keepdim=True)  # probabilities sum to one, so shares to nothing
    return torch.where(present[..., None], shares, 0), present


@pytest.mark.parametrize("classes", [2, 3])
def test_sums_are_those_of_a_loop_over_patients(classes):
    shares, present = drawn(classes=classes)
    found = AttributionState.of(shares, present).compute(NAMES)
    moved = {name: [] for name in NAMES}
    for row, there in zip(shares.tolist(), present.tolist(), strict=True):
        for name, each, is_there in zip(NAMES, row, there, strict=True):
            if is_there:
                moved[name].append(sum(map(abs, each)) / 2)
    total = sum(map(sum, moved.values()))
    for name, values in moved.items():
        assert found[name]["n"] == len(values)
        assert found[name]["mean"] == pytest.approx(sum(values) / len(values), abs=1e-5)
        assert found[name]["share"] == pytest.approx(sum(values) / total, abs=1e-4)


def test_sites_together_are_all_patients():
    shares, present = drawn()
    sites = [AttributionState.of(shares[k::3], present[k::3]) for k in range(3)]
    sent = [AttributionState.from_dict(json.loads(json.dumps(each.to_dict())), len(NAMES)) for each in sites]
    merged, pooled = merge_attributions(sent, len(NAMES)), AttributionState.of(shares, present)
    assert torch.equal(merged.rows, pooled.rows)
    torch.testing.assert_close(merged.moved, pooled.moved, atol=3e-4, rtol=0)


def test_nobody_moves_nothing():
    found = AttributionState.empty(len(NAMES)).compute(NAMES)
    assert found["ct"] == {"n": 0, "share": None, "mean": None}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ([], "a table of rows and moved"),
        ({"rows": [1, 1, 1]}, "a table of rows and moved"),
        ({"rows": [1, 1], "moved": [0.1, 0.1]}, "of 3 modalities"),
        ({"rows": [1, True, 1], "moved": [0.1, 0.1, 0.1]}, "whole numbers"),
        ({"rows": [1, -1, 1], "moved": [0.1, 0.1, 0.1]}, "whole numbers"),
        ({"rows": [1, 1, 1], "moved": [0.1, "patient-17", 0.1]}, "must be numbers"),
        ({"rows": [1, 1, 1], "moved": [0.1, 1.5, 0.1]}, "more probability"),
        ({"rows": [1, 1, 1], "moved": [0.1, -0.1, 0.1]}, "more probability"),
        ({"rows": [1, 1, 1], "moved": [0.1, math.nan, 0.1]}, "more probability"),
    ],
)
def test_what_no_patients_can_have_is_refused(content, why):
    with pytest.raises(ValueError, match=why):
        AttributionState.from_dict(content, len(NAMES))
