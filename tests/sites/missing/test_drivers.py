"""Drivers: columns as numbers, and the first principal component."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler, normalize

from mmare.study.choices import Scaling
from sites.missing.drivers import column_scores, first_component


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        pytest.param(["61", None, "7.5"], [61, np.nan, 7.5], id="text-of-numbers"),
        pytest.param([3, float("nan"), 1.5], [3, np.nan, 1.5], id="numbers"),
        pytest.param(["II", "I", None, "IV", "II"], [1, 0, np.nan, 2, 1], id="words"),
        pytest.param(["20-29", "70-79", "30-39"], [0, 2, 1], id="decades"),
        pytest.param(["1", "x", "10"], [0, 2, 1], id="one-word-makes-all-words"),
        pytest.param(["1", "inf"], [0, 1], id="infinity-is-a-word"),
        pytest.param([None, None], [np.nan, np.nan], id="nothing"),
    ],
)
def test_a_column_as_scores(cells, expected):
    assert column_scores(cells) == pytest.approx(expected, nan_ok=True)


def drawn(n_patients=60, width=7, seed=0):
    generator = np.random.default_rng(seed)
    hidden = generator.standard_normal((n_patients, 1))
    vectors = hidden @ generator.standard_normal((1, width)) + 0.3 * generator.standard_normal(
        (n_patients, width)
    )
    return vectors.astype(np.float32), generator.random(n_patients) < 0.6, hidden[:, 0]


@pytest.mark.parametrize("n_patients", [60, 8])  # more train rows than numbers in a vector, and fewer
@pytest.mark.parametrize("scaling", Scaling)
def test_the_component_is_that_of_scikit_learn(scaling, n_patients):
    vectors, train, _ = drawn(n_patients)
    assert (train.sum() < 7) == (n_patients == 8)
    rows = vectors.astype(float) * np.array([1, 50, 1, 1, 1, 1, 0.01])
    given = rows.astype(np.float32)
    rows = given.astype(float)
    if scaling.standardises:
        rows = StandardScaler().fit(rows[train]).transform(rows)
    if scaling is Scaling.L2:
        rows = normalize(rows)
    expected = PCA(1, svd_solver="full").fit(rows[train]).transform(rows)[:, 0]
    found = first_component(given, train, scaling)
    assert np.abs(np.corrcoef(found, expected)[0, 1]) == pytest.approx(1, abs=1e-9)
    assert found.std() == pytest.approx(expected.std(), rel=1e-6)


def test_only_train_rows_are_fitted_and_the_sign_is_fixed():
    vectors, train, hidden = drawn()
    scores = first_component(vectors, train, Scaling.NONE)
    assert abs(np.corrcoef(scores, hidden)[0, 1]) > 0.95
    poisoned = vectors.copy()
    poisoned[~train] *= -40
    assert first_component(poisoned, train, Scaling.NONE)[train] == pytest.approx(scores[train])
    centred = vectors[train] - vectors[train].mean(axis=0)
    loadings = centred.T @ scores[train]
    assert loadings[np.abs(loadings).argmax()] > 0


def test_without_two_train_rows_there_is_no_component():
    vectors, _, _ = drawn(5)
    one = np.array([True, False, False, False, False])
    assert (first_component(vectors, one, Scaling.ZSCORE) == 0).all()


@pytest.mark.parametrize("n_patients", [3, 30])
def test_identical_rows_have_no_component(n_patients):
    vectors = np.full((n_patients, 7), 2.5, dtype=np.float32)
    assert (first_component(vectors, np.ones(n_patients, dtype=bool), Scaling.ZSCORE) == 0).all()
