"""Logistic regression over sites that tell nothing but sums: what hospitals can have without this project."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from mmare.metrics.state import BINARY

__all__ = ["FederatedLogisticRegression"]

_EXCHANGES: Final = 2000  # at most; tens are the rule
_FLAT: Final = 1e-6  # largest gradient of the mean loss at the end

Rows = NDArray[np.float64]
Labels = NDArray[np.int64]


class FederatedLogisticRegression:
    """Multinomial regression with an L2 penalty: the fit on the pooled rows, by sums over sites alone.

    First the sites' rows, sums and sums of squares of each column give the scaling. Then every exchange
    brings the coefficients to the sites and the sums of their losses and gradients back; between exchanges
    the coordinator takes a step of L-BFGS. Loss and penalty are those of scikit-learn's
    ``LogisticRegression(C=strength)``.

    Args:
        strength: Inverse of the penalty.
        sites: ``(N,)``, at which site each row of `fit` lies.
        plain: Number of last columns that are not scaled: indicators.
    """

    def __init__(self, strength: float, sites: NDArray[np.int64], plain: int = 0) -> None:
        self.strength = strength
        self.sites = sites
        self.plain = plain
        self.exchanges = 0

    def fit(self, inputs: Rows, label: Labels) -> FederatedLogisticRegression:
        """Fit rows ``(N, F)``, NaN where blank, and labels ``(N,)``."""
        parts = [(inputs[self.sites == site], label[self.sites == site]) for site in np.unique(self.sites)]
        n, total, squares = (sum(each) for each in zip(*(_moments(rows) for rows, _ in parts), strict=True))
        n = np.maximum(n, 1)
        self._mean = total / n
        variance = np.maximum(squares / n - self._mean**2, 0)
        self._deviation = np.sqrt(np.where(variance > 1e-12 * (squares / n), variance, 1.0))
        if self.plain:
            self._mean[-self.plain :], self._deviation[-self.plain :] = 0.0, 1.0
        self.classes_ = np.unique(np.concatenate([np.unique(own) for _, own in parts]))
        k = len(self.classes_)
        rows_of = [(self._scaled(rows), np.searchsorted(self.classes_, own)) for rows, own in parts]
        shape = (1 if k == BINARY else k, inputs.shape[1] + 1)
        n_rows = len(label)

        def summed(flat: Rows) -> tuple[float, Rows]:
            weights = flat.reshape(shape)
            loss, gradient = (
                sum(each) for each in zip(*(_sums(weights, *own) for own in rows_of), strict=True)
            )
            penalised = weights.copy()
            penalised[:, -1] = 0.0  # not the intercept
            loss += (penalised**2).sum() / (2 * self.strength)
            return loss / n_rows, (gradient + penalised / self.strength).ravel() / n_rows

        found = minimize(
            summed,
            np.zeros(shape).ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": _EXCHANGES, "maxfun": 2 * _EXCHANGES, "gtol": _FLAT, "ftol": 1e-14},
        )
        self.weights = found.x.reshape(shape)  # the last column is the intercept
        self.exchanges = int(found.nfev)
        return self

    def predict_proba(self, inputs: Rows) -> Rows:
        """Probabilities ``(N, K)``."""
        probability: Rows = softmax(_logits(self.weights, self._scaled(inputs)), axis=1)
        return probability

    def _scaled(self, inputs: Rows) -> Rows:
        """Z-scores and a one, zero where blank, ``(N, F + 1)``."""
        rows = np.nan_to_num((inputs - self._mean) / self._deviation)
        return np.column_stack([rows, np.ones(len(rows))])


def _moments(rows: Rows) -> tuple[Rows, Rows, Rows]:
    """What a site tells first: per column rows that have it, their sum, the sum of their squares."""
    there = ~np.isnan(rows)
    return there.sum(axis=0).astype(np.float64), np.nansum(rows, axis=0), np.nansum(rows**2, axis=0)


def _sums(weights: Rows, rows: Rows, label: Labels) -> tuple[float, Rows]:
    """What a site tells in an exchange: its loss and gradient, summed over its rows."""
    logits = _logits(weights, rows)
    loss = -log_softmax(logits, axis=1)[np.arange(len(label)), label].sum()
    residual = softmax(logits, axis=1)
    residual[np.arange(len(label)), label] -= 1
    return float(loss), residual[:, -len(weights) :].T @ rows


def _logits(weights: Rows, rows: Rows) -> Rows:
    """``(N, K)``; of two classes the first has the logit zero."""
    logits: Rows = rows @ weights.T
    return np.column_stack([np.zeros(len(rows)), logits]) if len(weights) == 1 else logits
