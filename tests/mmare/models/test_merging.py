"""The fused merges against the same layers called one by one."""

import pytest
import torch

from mmare.models.fusion import Merge, MergeOrder, PairwiseFusion, merge_order
from mmare.models.patient_gradients import recording


@pytest.mark.parametrize("merge", list(Merge))
@pytest.mark.parametrize("seed", range(6))
def test_results_and_gradients_are_those_of_single_layers_bit_for_bit(merge, seed, monkeypatch):
    generator = torch.Generator().manual_seed(seed)
    fusion = PairwiseFusion(16, merge)
    with torch.no_grad():
        for value in fusion.parameters():
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    patients, modalities = ((1, 4), (33, 4), (17, 3))[seed % 3]
    embedding = torch.randn(patients, modalities, 16, generator=generator)
    present = torch.rand(patients, modalities, generator=generator) < (0.0 if seed == 5 else 0.5)
    present[~present.any(dim=1), 0] = True  # seed 5: nobody merges, and no layer gets a gradient
    slots = merge_order(present, MergeOrder.SAMPLE, generator)
    weight = torch.randn(patients, 16, generator=generator)

    def found(recorded):
        monkeypatch.setattr("mmare.models.fusion.recording", lambda: recorded)
        rows = embedding.clone().requires_grad_()
        fusion.zero_grad()
        fused = fusion(rows, present, slots)
        (fused * weight).sum().backward()
        return [fused.detach(), rows.grad, *(value.grad for value in fusion.parameters())]

    for one, other in zip(found(recorded=False), found(recorded=True), strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    assert not recording()
