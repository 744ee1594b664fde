"""Losses on the calibration grid against scikit-learn, row by row."""

import copy
import json

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import brier_score_loss, log_loss

from mmare.metrics.calibration import (
    SHIFTS,
    TEMPERATURES,
    CalibrationState,
    merge_calibration,
)
from mmare.metrics.decisions import Calibration
from tests.mmare.metrics.test_state import random_rows


@pytest.mark.parametrize(
    ("n_classes", "bias"),
    [(2, (0.0, -1.2)), (2, (0.0, 0.0)), (3, (0.0, 2.4, 0.0)), (4, (-3.0, 0.0, 0.0, 0.0)), (2, (0.0, 0.17))],
)
@pytest.mark.parametrize("temperature", [TEMPERATURES[17], 1.337])
def test_losses_on_and_between_points_of_the_grid_are_means_of_rows(n_classes, bias, temperature):
    near = 1e-5 if temperature in TEMPERATURES and bias != (0.0, 0.17) else 1e-3  # parabolas between
    logits, labels = random_rows(n_classes, 70, spread=3.0)
    calibration = Calibration(temperature, bias)
    found = CalibrationState.of(logits, labels).means_at(calibration)
    probability = calibration.probabilities(logits).numpy()
    assert found["log_loss"] == pytest.approx(
        log_loss(labels, probability, labels=range(n_classes)), abs=near
    )
    if n_classes == 2:
        expected = brier_score_loss(labels, probability[:, 1])
    else:
        expected = np.square(probability - np.eye(n_classes)[labels]).sum(axis=1).mean()
    assert found["brier"] == pytest.approx(expected, abs=near)


def posterior(calibration, logits, labels):
    """Minus its logarithm: of the rows, and of a normal prior with deviation one half."""
    losses = log_loss(labels, calibration.probabilities(logits).numpy(), normalize=False)
    return losses - norm.logpdf([np.log(calibration.temperature), sum(calibration.bias)], 0, 0.5).sum()


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_most_probable_point_is_taken(n_classes):
    logits, _ = random_rows(n_classes, 200, spread=3.0)
    drawn = torch.rand((200, n_classes), generator=torch.Generator().manual_seed(1)).log().neg().log()
    labels = (logits / 1.9 - drawn).argmax(dim=1)  # a Gumbel's maximum: a draw from softmax(logits / 1.9)
    found = CalibrationState.of(logits, labels).fit()
    best = posterior(found, logits, labels)
    for temperature in TEMPERATURES[::6]:
        for shift in SHIFTS[::10]:
            other = Calibration(temperature, (0.0,) * (n_classes - 1) + (shift,))
            assert best <= posterior(other, logits, labels) + 1e-3
    for factor in (0.97, 1.03):  # it lies between the points
        beside = Calibration(found.temperature * factor, tuple(each * factor for each in found.bias))
        assert best < posterior(beside, logits, labels)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_sites_together_are_all_rows(n_classes):
    logits, labels = random_rows(n_classes, 90)
    parts = [CalibrationState.of(logits[site::3], labels[site::3]) for site in range(3)]
    merged, pooled = merge_calibration(parts, n_classes), CalibrationState.of(logits, labels)
    assert torch.equal(merged.counts, pooled.counts)
    torch.testing.assert_close(merged.losses, pooled.losses, atol=3e-4, rtol=0)
    sent = json.loads(json.dumps(merged.to_dict()))
    assert torch.equal(CalibrationState.from_dict(sent, n_classes).losses, merged.losses)


def test_a_dozen_rows_do_not_overrule_a_model_that_is_calibrated():
    """They happen to be told apart perfectly, so that the steepest logits would have the smallest loss."""
    logits = torch.tensor([[0.0, -1.0], [0.0, 1.0]]).repeat(6, 1)
    labels = torch.tensor([0, 1]).repeat(6)
    few = CalibrationState.of(logits, labels).fit()
    many = CalibrationState.of(logits.repeat(50, 1), labels.repeat(50)).fit()
    assert few.temperature == pytest.approx(2 * TEMPERATURES[0], rel=0.06)
    assert many.temperature == pytest.approx(TEMPERATURES[0])


def test_a_class_without_rows_cannot_be_calibrated():
    logits, labels = random_rows(2, 30)
    assert CalibrationState.of(logits, torch.zeros_like(labels)).fit() is None
    assert CalibrationState.of(logits, labels).without([1]).fit() is None
    assert CalibrationState.empty(2).fit() is None


def test_a_group_of_rows_counts_by_its_mean_and_spread_alone():
    """Rows that differ but for both give the same sums: they cannot be told apart."""
    shapes = torch.tensor([[-2.0, -1.0, 0.0, 1.0, 2.0], [-1.0, -1.0, -1.0, 1.5, 1.5]])
    shapes = (shapes - shapes.mean(1, keepdim=True)) / shapes.std(1, keepdim=True, correction=0)
    labels = torch.ones(10, dtype=torch.int64)
    logits = [torch.cat([each - 2, each + 3]) for each in shapes]
    logits = [torch.stack([-each / 2, each / 2], dim=1) for each in logits]
    grouped = [CalibrationState.of(each, labels, 5).losses for each in logits]
    torch.testing.assert_close(*grouped, atol=2e-4, rtol=0)
    exact = [CalibrationState.of(each, labels).losses for each in logits]
    assert (exact[0] - exact[1]).abs().max() > 0.05
    torch.testing.assert_close(grouped[0], exact[0], atol=0.6, rtol=0.03)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_microaggregation_hardly_moves_the_fit(n_classes):
    logits, labels = random_rows(n_classes, 400, spread=3.0)
    exact, grouped = (CalibrationState.of(logits, labels, limit) for limit in (0, 5))
    assert torch.equal(exact.counts, grouped.counts)
    found = exact.means_at(grouped.fit())["log_loss"]
    assert found == pytest.approx(exact.means_at(exact.fit())["log_loss"], abs=0.005)


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda content: content.update(odd=1), id="odd-key"),
        pytest.param(lambda content: content.update(grid=[1, 1, 1]), id="grid"),
        pytest.param(lambda content: content["classes"].pop(), id="classes"),
        pytest.param(lambda content: content.update(withheld=[7]), id="withheld"),
        pytest.param(lambda content: content["classes"][0].update(n=0), id="no-rows"),
        pytest.param(lambda content: content["classes"][0].update(n=True), id="bool"),
        pytest.param(lambda content: content["classes"][0]["log_loss"].pop(), id="short"),
        pytest.param(lambda content: content["classes"][0]["log_loss"].__setitem__(3, "x"), id="text"),
        pytest.param(lambda content: content["classes"][0]["log_loss"].__setitem__(3, -1.0), id="negative"),
        pytest.param(lambda content: content["classes"][0]["log_loss"].__setitem__(3, 1e999), id="infinite"),
        pytest.param(lambda content: content["classes"][0]["brier"].__setitem__(3, 1e6), id="brier"),
        pytest.param(lambda content: content["classes"].__setitem__(0, 5), id="no-table"),
    ],
)
def test_what_no_site_can_have_computed_is_refused(harm):
    content = copy.deepcopy(CalibrationState.of(*random_rows(2, 20)).to_dict())
    harm(content)
    with pytest.raises(ValueError, match=r"."):
        CalibrationState.from_dict(content, 2)


@pytest.mark.parametrize("content", [None, [], {}, "x"])
def test_what_is_no_state_is_refused(content):
    with pytest.raises(ValueError, match="calibration state"):
        CalibrationState.from_dict(content, 2)
