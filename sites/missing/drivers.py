"""Scores that drive missingness: a table column, or the first principal component of embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmare.study.choices import Scaling
from sites.tabular import finite_number

__all__ = ["column_scores", "first_component"]

_FLOOR = 1e-6  # least standard deviation of a feature, as in the study's scaling


def column_scores(cells: Sequence[object]) -> NDArray[np.float64]:
    """One column as ``(N,)`` scores: numbers as they are, words by sorted order, NaN where unknown.

    Example:
        >>> column_scores(["G2", None, "G1", "G4"])
        array([ 1., nan,  0.,  2.])
        >>> column_scores(["61", "8", None])
        array([61.,  8., nan])
    """
    known = {row: cell for row, cell in enumerate(cells) if cell is not None and cell == cell}  # noqa: PLR0124 - NaN
    numbers = {row: finite_number(cell) for row, cell in known.items()}
    scores = np.full(len(cells), np.nan)
    if any(number is None for number in numbers.values()):
        places = {word: place for place, word in enumerate(sorted({str(cell) for cell in known.values()}))}
        numbers = {row: float(places[str(cell)]) for row, cell in known.items()}
    for row, number in numbers.items():
        scores[row] = number
    return scores


def first_component(
    vectors: NDArray[np.float32], train: NDArray[np.bool_], scaling: Scaling
) -> NDArray[np.float64]:
    """The first principal component of one modality, fitted on the train rows.

    Vectors are scaled as in the study, with moments of the train rows, so that the component is one that a
    model sees. The loading with the largest absolute value is positive.

    Args:
        vectors: ``(n, W)``, the patients of all sites who have the modality.
        train: ``(n,)``, true for train rows.
        scaling: Of the modality in the study.

    Returns:
        ``(n,)`` scores; all zero with fewer than two train rows.
    """
    rows = vectors.astype(np.float64)
    if int(train.sum()) < 2:  # noqa: PLR2004 - one point has no direction
        return np.zeros(len(rows))
    if scaling is Scaling.L2:
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _FLOOR)
    rows -= rows[train].mean(axis=0)
    if scaling.standardises:
        rows /= np.maximum(rows[train].std(axis=0), _FLOOR)
    direction = _first_direction(rows[train])
    return np.asarray(rows @ (direction * np.sign(direction[np.abs(direction).argmax()])), dtype=np.float64)


def _first_direction(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The first right singular vector of ``(n, W)`` rows, ``(W,)``; zero if all rows are zero.

    Eigenvectors of the smaller Gram matrix take a twentieth of the time of an SVD.
    """
    n_rows, width = rows.shape
    product = rows @ rows.T if n_rows < width else rows.T @ rows
    largest = np.linalg.eigh(product)[1][:, -1]  # eigenvalues come in ascending order
    direction = rows.T @ largest if n_rows < width else largest
    length = float(np.linalg.norm(direction))
    # For a zero matrix eigh returns an arbitrary direction.
    return direction / length if length > 0 and product.any() else np.zeros(width)
