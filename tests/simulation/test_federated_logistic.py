"""Logistic regression by sums over sites against scikit-learn's on the pooled rows."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from simulation.federated_logistic import FederatedLogisticRegression

ROWS = 160


def drawn(classes, seed=0):
    """Columns of several scales with blanks, an indicator, labels, and sites of 5 to 95 rows."""
    random = np.random.default_rng(seed)
    values = random.normal([140, 4, 0, 1e4], [4, 0.5, 1, 3e3], (ROWS, 4))
    score = (values - values.mean(axis=0)) / values.std(axis=0) @ [1.0, -0.8, 0.5, 0.7]
    label = np.digitize(score + random.normal(size=ROWS), [-0.5, 0.6][: classes - 1])
    values[random.random(values.shape) < 0.2] = np.nan
    inputs = np.column_stack([values, np.isnan(values[:, 0])])
    sites = np.repeat([0, 1, 2, 3], [5, 20, 40, 95])
    return inputs, label, random.permutation(sites)


@pytest.mark.parametrize("strength", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("classes", [2, 3])
def test_sums_over_sites_give_the_pooled_fit(classes, strength):
    inputs, label, sites = drawn(classes)
    found = FederatedLogisticRegression(strength, sites, plain=1).fit(inputs, label)
    scaled = np.column_stack([np.nan_to_num(StandardScaler().fit_transform(inputs[:, :4])), inputs[:, 4]])
    pooled = LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit(scaled, label)
    np.testing.assert_allclose(found.weights[:, :-1], pooled.coef_, atol=2e-4)
    np.testing.assert_allclose(found.predict_proba(inputs), pooled.predict_proba(scaled), atol=1e-4)
    assert list(found.classes_) == list(range(classes))


def test_how_rows_lie_at_sites_does_not_matter():
    inputs, label, sites = drawn(2)
    one = FederatedLogisticRegression(0.1, np.zeros(ROWS, dtype=np.int64)).fit(inputs, label)
    many = FederatedLogisticRegression(0.1, sites).fit(inputs, label)
    alone = FederatedLogisticRegression(0.1, np.arange(ROWS)).fit(inputs, label)  # a row each, of one class
    np.testing.assert_allclose(many.weights, one.weights, atol=1e-4)
    np.testing.assert_allclose(alone.weights, one.weights, atol=1e-4)


def test_a_column_that_no_row_has_or_that_is_constant_says_nothing():
    inputs, label, sites = drawn(2)
    odd = np.column_stack([np.full(ROWS, np.nan), np.full(ROWS, 7.3), inputs])
    found = FederatedLogisticRegression(1.0, sites).fit(odd, label)
    without = FederatedLogisticRegression(1.0, sites).fit(inputs, label)
    assert found.weights[0, :2] == pytest.approx([0, 0], abs=1e-4)
    np.testing.assert_allclose(found.predict_proba(odd), without.predict_proba(inputs), atol=1e-4)
