"""Operating points, curves, reliability and sets from counts, against scikit-learn and rows.

Scores are drawn on the middles of bins, so that counts say all that rows do.
"""

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, recall_score, roc_curve

from mmare.metrics.decisions import Calibration, OperatingPoint, PredictionSets, judge
from mmare.metrics.operating import (
    Rule,
    choose_threshold,
    counts_at,
    decision_curve,
    positive_scores,
    prediction_thresholds,
    rates,
    reliability,
    set_coverage,
    wilson,
)
from mmare.metrics.state import N_BINS, MetricState
from tests.mmare.metrics.test_state import random_rows


def rows(n=150, seed=0, spread=1.5):
    """Logits of two classes whose probability of class 1 is the middle of a bin, and labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, n)
    score = 1 / (1 + np.exp(-(generator.normal(size=n) * spread + labels - 0.3)))
    score = (np.floor(score * N_BINS) + 0.5) / N_BINS
    logits = torch.from_numpy(np.stack([np.log(1 - score), np.log(score)], axis=1))
    return logits, torch.from_numpy(labels), score


@pytest.mark.parametrize("positive", [0, 1])
@pytest.mark.parametrize(
    ("rule", "least"), [(Rule.SENSITIVITY, 0.9), (Rule.SPECIFICITY, 0.8), (Rule.YOUDEN, 0)]
)
def test_the_operating_point_is_the_best_of_the_roc_curve(positive, rule, least):
    logits, labels, score = rows()
    score = score if positive == 1 else 1 - score
    truth = (labels == positive).numpy()
    threshold = choose_threshold(*positive_scores(MetricState.of(logits, labels), positive), rule, least)
    called = score >= threshold
    found = recall_score(truth, called), recall_score(~truth, ~called)
    fpr, tpr, _ = roc_curve(truth, score, drop_intermediate=False)
    if rule is Rule.YOUDEN:
        assert sum(found) == pytest.approx((tpr - fpr).max() + 1)
    else:
        side, other = (tpr, 1 - fpr) if rule is Rule.SENSITIVITY else (1 - fpr, tpr)
        at = 0 if rule is Rule.SENSITIVITY else 1
        assert found[at] >= least
        assert found[1 - at] == pytest.approx(other[side >= least].max())


@pytest.mark.parametrize("positive", [0, 1])
def test_counts_at_a_threshold_are_those_of_calls(positive):
    logits, labels, _ = rows()
    counts = positive_scores(MetricState.of(logits, labels), positive)
    point = OperatingPoint("", choose_threshold(*counts, Rule.SENSITIVITY, 0.8), 0.5)
    call = judge(logits, positive, point=point).call
    found = counts_at(*counts, point.threshold)
    tn, fp, fn, tp = confusion_matrix(labels == positive, call == positive).ravel()
    assert found == {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
    assert rates(found)["sensitivity"][0] == tp / (tp + fn)
    assert rates(found)["ppv"][0] == tp / (tp + fp)


def test_nobody_is_counted_where_there_is_nobody():
    assert rates({"tp": 0, "fp": 0, "fn": 0, "tn": 3})["sensitivity"] is None
    assert wilson(0, 4)[0] == wilson(0, 4)[1] == 0
    assert wilson(4, 4)[2] == 1


@pytest.mark.parametrize("calibration", [None, Calibration(1.7, (0.0, -0.6))])
@pytest.mark.parametrize("positive", [0, 1])
def test_reliability_is_that_of_rows(positive, calibration):
    logits, labels, _ = rows(400)
    probability = (calibration or Calibration(1.0, (0.0, 0.0))).probabilities(logits).numpy()
    found = reliability(MetricState.of(logits, labels), positive, calibration)
    observed, mean = calibration_curve(labels == positive, probability[:, positive], n_bins=10)
    np.testing.assert_allclose([each["observed"] for each in found["bins"]], observed)
    np.testing.assert_allclose([each["mean"] for each in found["bins"]], mean, atol=1e-9)
    top, right = probability.max(axis=1), probability.argmax(axis=1) == labels.numpy()
    place = np.minimum((top * 15).astype(int), 14)
    gaps = [abs((right[place == each]).sum() - top[place == each].sum()) for each in range(15)]
    assert found["ece"] == pytest.approx(sum(gaps) / len(labels))


def test_of_three_classes_reliability_is_of_the_predicted_one():
    logits, labels = random_rows(3, 200)
    state = MetricState.of(logits, labels)
    found = reliability(state, None, None)
    assert found["ece"] == pytest.approx(state.compute(None)["ece"])
    assert sum(each["n"] for each in found["bins"]) == 200


@pytest.mark.parametrize("calibration", [None, Calibration(0.8, (0.0, 0.4))])
@pytest.mark.parametrize("positive", [0, 1])
def test_net_benefit_is_that_of_rows(positive, calibration):
    logits, labels, _ = rows(300)
    score = (calibration or Calibration(1.0, (0.0, 0.0))).probabilities(logits)[:, positive].numpy()
    truth = (labels == positive).numpy()
    for each in decision_curve(MetricState.of(logits, labels), positive, calibration):
        at = each["threshold"]
        treated = score >= at
        weight = at / (1 - at)
        assert each["model"] == pytest.approx((treated & truth).mean() - (treated & ~truth).mean() * weight)
        assert each["all"] == pytest.approx(truth.mean() - (~truth).mean() * weight)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_sets_hold_the_class_of_nine_in_ten_patients(n_classes):
    """The quantile is split conformal prediction's, and other patients of each class are covered."""
    logits, labels = random_rows(n_classes, 6000)
    fitted, other = (MetricState.of(logits[part], labels[part]) for part in (slice(3000), slice(3000, None)))
    thresholds = prediction_thresholds(fitted, 0.9)
    probability = logits.double().softmax(dim=1).numpy()
    for true, threshold in enumerate(thresholds):
        own = np.sort(probability[:3000][labels[:3000].numpy() == true, true])
        k = int((len(own) + 1) * 0.1)
        assert own[k - 1] - 1 / N_BINS <= threshold <= own[k - 1]
    told = set_coverage(other, thresholds)
    in_set = judge(logits[3000:], sets=PredictionSets(0.9, thresholds)).in_set
    for true, (share, low, high) in enumerate(told["coverage"]):
        assert share == pytest.approx(in_set[labels[3000:] == true, true].double().mean().item(), abs=0.002)
        assert low <= share <= high
        assert 0.87 < share < 0.93
    assert told["mean_size"] == pytest.approx(in_set.sum(dim=1).double().mean().item(), abs=0.005)


@pytest.mark.parametrize(("n", "possible"), [(8, False), (9, True)])
def test_a_class_of_fewer_than_nine_is_in_every_set(n, possible):
    logits, labels, _ = rows(200)
    keep = torch.cat([(labels == 0).nonzero()[:, 0], (labels == 1).nonzero()[:n, 0]])
    thresholds = prediction_thresholds(MetricState.of(logits[keep], labels[keep]), 0.9)
    assert thresholds[0] is not None
    assert (thresholds[1] is not None) is possible
    assert possible or bool(judge(logits, sets=PredictionSets(0.9, thresholds)).in_set[:, 1].all())
