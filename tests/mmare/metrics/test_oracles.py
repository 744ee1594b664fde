"""Calibration and decision curves from counts and sums, against the programs of others on rows."""

import numpy as np
import pandas as pd
import pytest
import torch

from mmare.metrics.calibration import CalibrationState
from mmare.metrics.operating import decision_curve
from mmare.metrics.state import MetricState
from tests.mmare.metrics.test_operating import rows
from tests.mmare.metrics.test_state import random_rows

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("n_classes", [2, 3])
def test_calibration_error_is_that_of_netcal(n_classes):
    from netcal.metrics import ECE

    logits, labels = random_rows(n_classes, 500)
    probability = logits.double().softmax(dim=1).numpy()
    truth = labels.numpy()
    if n_classes == 2:  # netcal then bins the probability of one class; ours is that of the predicted one
        truth = (probability.argmax(axis=1) == truth).astype(int)
        probability = probability.max(axis=1, keepdims=True)
    expected = ECE(bins=15).measure(probability, truth)
    assert MetricState.of(logits, labels).compute(None)["ece"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.filterwarnings("ignore:independent is deprecated:DeprecationWarning")  # in netcal
def test_the_temperature_is_that_of_netcal():
    """On so many rows that the prior, which netcal lacks, says nothing."""
    from netcal.scaling import TemperatureScaling

    generator = np.random.default_rng(0)
    true = generator.normal(size=(20_000, 2)) * 1.5
    odds = np.exp(true[:, 1] - true[:, 0])
    labels = (generator.random(20_000) < odds / (1 + odds)).astype(int)
    logits = torch.from_numpy(true * 2.3)
    found = CalibrationState.of(logits, torch.from_numpy(labels)).fit()
    scaling = TemperatureScaling()
    scaling.fit(logits.softmax(dim=1)[:, 1].numpy(), labels)
    assert found.bias == pytest.approx((0, 0), abs=0.02)
    assert found.temperature == pytest.approx(1 / float(scaling.weights[0]), rel=0.01)


@pytest.mark.parametrize("positive", [0, 1])
def test_net_benefit_is_that_of_dcurves(positive):
    dcurves = pytest.importorskip("dcurves", reason="dcurves is not for this Python")

    logits, labels, score = rows(300)
    frame = pd.DataFrame(
        {"true": (labels == positive).int().numpy(), "model": score if positive else 1 - score}
    )
    curve = decision_curve(MetricState.of(logits, labels), positive, None)
    theirs = dcurves.dca(frame, "true", ["model"], thresholds=[each["threshold"] for each in curve])
    for name in ("model", "all"):
        expected = theirs[theirs["model"] == name].sort_values("threshold")["net_benefit"]
        np.testing.assert_allclose([each[name] for each in curve], expected, atol=1e-9)
