"""Metric states of noisy histograms."""

import pytest
import torch

from client.privacy.noise import Noise
from client.training.private_scores import BINS, noisy_rows
from mmare.metrics.state import MetricState


def scores(rows, classes, seed=0):
    source = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (rows,), generator=source)
    logits = torch.randn(rows, classes, generator=source) + 1.5 * torch.eye(classes)[label]
    return logits, label


@pytest.mark.parametrize("classes", [2, 3])
def test_without_noise_metrics_are_those_of_the_patients_to_the_width_of_a_bin(classes):
    logits, label = scores(3000, classes)
    made = MetricState.of(*noisy_rows(logits, label, 0.0, Noise(b"")))
    real = MetricState.of(logits, label)
    assert torch.equal(made.confusion, real.confusion)
    found, wanted = made.compute(1), real.compute(1)
    assert found["auc"] == pytest.approx(wanted["auc"], abs=0.03 if classes > 2 else 0.01)
    assert found["log_loss"] == pytest.approx(wanted["log_loss"], abs=0.12 if classes > 2 else 0.02)


@pytest.mark.parametrize("classes", [2, 3])
def test_one_patient_changes_one_cell_by_one(classes):
    """So the noise that the accountant asks for a sum of norm one is enough."""
    logits, label = scores(40, classes)

    def cells(rows):
        made, true = noisy_rows(logits[rows], label[rows], 0.0, Noise(b""))
        keys = torch.cat([true.unsqueeze(1).double(), made.double()], dim=1)
        found, counts = keys.unique(dim=0, return_counts=True)
        return {tuple(key): count for key, count in zip(found.tolist(), counts.tolist(), strict=True)}

    whole = cells(range(40))
    for left_out in range(40):
        fewer = cells([row for row in range(40) if row != left_out])
        assert sum(abs(whole[key] - fewer.get(key, 0)) for key in whole) == 1
        assert fewer.keys() <= whole.keys()


def test_noise_adds_no_patients_on_average():
    logits, label = scores(200, 2)
    sizes = [len(noisy_rows(logits, label, 2.0, Noise(b"", run))[1]) for run in range(200)]
    deviation = 2.0 * (2 * BINS) ** 0.5
    assert abs(sum(sizes) / len(sizes) - 200) < 4 * deviation / len(sizes) ** 0.5
    assert max(abs(size - 200) for size in sizes) < 5 * deviation


def test_nobody_is_a_state_too():
    made, true = noisy_rows(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 0.0, Noise(b""))
    assert MetricState.of(made, true).n == 0
    assert len(noisy_rows(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 3.0, Noise(b""))[1]) > 0
