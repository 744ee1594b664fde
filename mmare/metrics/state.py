"""Classification metrics as sums that sites send and the server adds.

An average of site AUCs is not the AUC of all rows, so a site sends counts and sums, never ratios, and merged
states give the metrics of the pooled rows. Sums are per true class, because small groups of "split x class"
are withheld. Letters: B rows, K classes, N `N_BINS`, C `N_CALIBRATION_BINS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mmare.metrics.reading import fields, items, real, require, whole

__all__ = [
    "BINARY",
    "N_BINS",
    "N_CALIBRATION_BINS",
    "MetricState",
    "class_scores",
    "merge_all",
    "one_vs_rest",
    "ranked_auc",
]

BINARY = 2  # classes, for which one score and a positive class describe a row
N_BINS = 2048  # of a score over [0, 1]; a power of two, so that p * N_BINS is exact and 0.5 is an edge
N_CALIBRATION_BINS = 15  # of the top-class confidence over [0, 1], as in Guo et al. 2017
MAX_ROWS = 2**40  # per class of one state: sums of such counts stay far from 2**63
MAX_LOG_LOSS = 1e39  # nats per row: out of reach of float32 logits, and sums stay finite
_BINS = 3  # numbers under ``bins``: two kinds of bins, and `coarse` if it is not 0
_TOLERANCE = 1e-6  # relative, when a received float sum is checked: well above rounding


@dataclass(frozen=True, eq=False, repr=False)
class MetricState:
    """Sums over the predictions for a set of rows; states of disjoint sets can be merged.

    Immutable CPU tensors, whose first axis is the true class.

    Args:
        confusion: ``(K, K)`` int64, rows by true and predicted class.
        histogram: ``(K, K, N)`` int64. K = 2: rows by true class, predicted class and bin of the probability
            of class 1, so that accuracy and AUC can be resampled together. K > 2: rows by true class, scored
            class k and bin of the probability of k (each row counts once for every k).
        losses: ``(K, 2)`` float64 sums. The log-loss is the unclipped negative log-likelihood in nats. The
            Brier score is the squared error of the probability of class 1 for K = 2, else summed over all
            classes (Brier's definition, which for K = 2 would be twice as large).
        calibration: ``(K, 3, C)`` float64, by bin of the probability of the predicted class: rows, correctly
            predicted rows, sum of that probability. Counts below 2^53 are exact.
        withheld: Sorted indices of the classes that a site left out because they have too few rows.
        coarse: Rows that each bin holds, as neighbours were joined (`mmare.metrics.coarse`); 0: exact.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 3.0]])
        >>> first = MetricState.of(logits[:2], torch.tensor([0, 1]))
        >>> second = MetricState.of(logits[2:], torch.tensor([1, 0]))
        >>> pooled = first.merge(second)
        >>> pooled.counts, pooled.compute(positive=1)["accuracy"], pooled.compute(positive=1)["auc"]
        ((2, 2), 0.5, 0.5)
        >>> first.withhold(5).compute(positive=1)["accuracy"] is None
        True
    """

    confusion: Tensor
    histogram: Tensor
    losses: Tensor
    calibration: Tensor
    withheld: tuple[int, ...] = field(default=(), kw_only=True)
    coarse: int = field(default=0, kw_only=True)

    @classmethod
    def empty(cls, n_classes: int) -> MetricState:
        """The state of no rows."""
        return cls(
            confusion=torch.zeros(n_classes, n_classes, dtype=torch.int64),
            histogram=torch.zeros(n_classes, n_classes, N_BINS, dtype=torch.int64),
            losses=torch.zeros(n_classes, 2, dtype=torch.float64),
            calibration=torch.zeros(n_classes, 3, N_CALIBRATION_BINS, dtype=torch.float64),
        )

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> MetricState:
        """The state of logits ``(B, K)`` and labels ``(B,)`` int64; B = 0 is allowed.

        The predicted class is the first of the largest logits.

        Raises:
            ValueError: If a logit is not finite, or two float64 logits are further apart than float32 can be.
        """
        k = logits.shape[1]
        if not len(logits):
            return cls.empty(k)
        logits, labels = logits.detach().to("cpu", torch.float64), labels.detach().cpu()
        surprise = -logits.log_softmax(dim=1).gather(1, labels[:, None]).squeeze(1)  # (B,)
        if not (logits.isfinite().all() and (surprise <= MAX_LOG_LOSS).all()):
            raise ValueError("logits must be finite")
        probability = logits.softmax(dim=1)  # (B, K)
        predicted = logits.argmax(dim=1)  # (B,)
        pair = labels * k + predicted  # (B,)
        error = probability - functional.one_hot(labels, k)  # (B, K)
        if k == BINARY:
            score, cell, error = probability[:, 1], pair, error[:, 1:]  # (B,), (B,), (B, 1)
        else:
            score, cell = probability, labels[:, None] * k + torch.arange(k)  # (B, K), (B, K)
        place = cell * N_BINS + _bin(score, N_BINS)  # (B,) or (B, K)
        confidence = probability.gather(1, predicted[:, None]).squeeze(1)  # (B,)
        slot = labels * N_CALIBRATION_BINS + _bin(confidence, N_CALIBRATION_BINS)  # (B,)
        hit = (predicted == labels).double()  # (B,)
        size = k * N_CALIBRATION_BINS
        columns = [slot.bincount(weight, size) for weight in (torch.ones_like(hit), hit, confidence)]
        return cls(
            confusion=pair.bincount(minlength=k * k).view(k, k),
            histogram=place.flatten().bincount(minlength=k * k * N_BINS).view(k, k, N_BINS),
            losses=torch.stack([labels.bincount(loss, k) for loss in (surprise, error.square().sum(1))], 1),
            calibration=torch.stack(columns).view(3, k, -1).transpose(0, 1),
        )

    @property
    def n_classes(self) -> int:
        """K."""
        return len(self.confusion)

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows per true class."""
        return tuple(self.confusion.sum(dim=1).tolist())

    @property
    def n(self) -> int:
        """Rows of all classes."""
        return sum(self.counts)

    def merge(self, other: MetricState) -> MetricState:
        """The state of the rows of both: counts are exact, float sums agree within rounding.

        Raises:
            ValueError: If the numbers of classes differ.
        """
        if self.n_classes != other.n_classes:
            raise ValueError(f"cannot merge states of {self.n_classes} and {other.n_classes} classes")
        sums = (mine + theirs for mine, theirs in zip(self._tensors, other._tensors, strict=True))
        withheld = tuple(sorted({*self.withheld, *other.withheld}))
        return MetricState(*sums, withheld=withheld, coarse=max(self.coarse, other.coarse))

    def withhold(self, min_count: int) -> MetricState:
        """The state as it may leave a site: without classes of fewer than ``min_count`` rows."""
        return self.without(index for index, count in enumerate(self.counts) if 0 < count < min_count)

    def without(self, classes: Iterable[int]) -> MetricState:
        """The state without some classes, which are named as withheld."""
        hidden = sorted(classes)
        if not hidden:
            return self
        kept = (tensor.index_fill(0, torch.tensor(hidden), 0) for tensor in self._tensors)
        withheld = tuple(sorted({*self.withheld, *hidden}))
        return MetricState(*kept, withheld=withheld, coarse=self.coarse)

    def compute(self, positive: int | None) -> dict[str, float | int | None]:
        """The metrics of the rows, ``None`` (never NaN) where undefined.

        ``positive`` is the class of the binary f1, precision and recall. ``log_loss``, ``brier`` and ``ece``
        need a row, ``auc`` and ``balanced_log_loss`` (mean over classes of their log-loss) one of every
        class; for the others see `class_scores`. ``auc`` counts pairs that share a bin as half
        (`auc_error_bound`); for K > 2 it is the unweighted mean over one-vs-rest. ``ece`` is the expected
        calibration error (Guo et al. 2017, eq. 3), except that bins are closed on the left.
        """
        n = self.n
        scores = class_scores(self.confusion[None].double(), positive)
        _, hits, confidence = self.calibration.sum(dim=0)  # (C,) each
        log_loss, brier = self.losses.sum(dim=0).tolist()
        sums = {"log_loss": log_loss, "brier": brier, "ece": (hits - confidence).abs().sum().item()}
        return {
            "n": n,
            **{name: None if value is None else value.item() for name, value in scores.items()},
            "auc": ranked_auc(*one_vs_rest(self.histogram)).mean().item() if all(self.counts) else None,
            **{name: total / n if n else None for name, total in sums.items()},
            "balanced_log_loss": (self.losses[:, 0] / self.confusion.sum(dim=1)).mean().item()
            if all(self.counts)
            else None,
        }

    def auc_error_bound(self) -> float | None:
        """Largest difference between the AUC of `compute` and that of the unbinned scores.

        Only a positive and a negative in one bin can be counted wrongly, each such pair by one half. ``None``
        if bins were joined: which pairs they reorder is not known.
        """
        if self.coarse or not all(self.counts):
            return None
        positive, negative = (counts.double() for counts in one_vs_rest(self.histogram))  # (S, N) each
        shared = (positive * negative).sum(dim=1) / (positive.sum(dim=1) * negative.sum(dim=1))  # (S,)
        return shared.mean().item() / 2

    def to_dict(self) -> dict[str, Any]:
        """The state for JSON; a class without rows is ``None``, a bin without rows is absent."""
        return {
            "bins": [N_BINS, N_CALIBRATION_BINS, *([self.coarse] if self.coarse else [])],
            "classes": [self._entry(true) if count else None for true, count in enumerate(self.counts)],
            "withheld": list(self.withheld),
        }

    @classmethod
    def from_dict(cls, content: object, n_classes: int) -> MetricState:
        """Validate and read what `to_dict` wrote on another machine.

        Raises:
            ValueError: If anything differs from the format, or the sums contradict each other.
        """
        bins, classes, withheld = fields(content, ("bins", "classes", "withheld"), "the state")
        require(
            isinstance(bins, list) and bins[:2] == [N_BINS, N_CALIBRATION_BINS] and len(bins) <= _BINS,
            "the state has other bins",
        )
        coarse = [whole(limit, MAX_ROWS, "bins") for limit in bins[2:]]
        entries = enumerate(items(classes, n_classes, "classes"))
        rows = [_read_class(entry, true, n_classes) for true, entry in entries]
        left_out = [whole(true, n_classes - 1, "withheld") for true in items(withheld, None, "withheld")]
        require(left_out == sorted(set(left_out)), "withheld is not sorted")
        tensors = (torch.stack(parts) for parts in zip(*rows, strict=True))
        return cls(*tensors, withheld=tuple(left_out), coarse=max(coarse, default=0))

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        """All tensors, in the order of the constructor."""
        return self.confusion, self.histogram, self.losses, self.calibration

    def _entry(self, true: int) -> dict[str, Any]:
        """One class of `to_dict`; `_read_class` reverses it."""
        log_loss, brier = self.losses[true].tolist()
        rows, hits, confidence = self.calibration[true]
        return {
            "n": self.counts[true],
            "confusion": self.confusion[true].tolist(),
            "histogram": [_sparse(bins) for bins in self.histogram[true]],
            "log_loss": log_loss,
            "brier": brier,
            "calibration": _sparse(rows.long(), hits.long(), confidence),
        }


def merge_all(states: Iterable[MetricState], n_classes: int) -> MetricState:
    """Merge in the given order, which callers must fix: float addition is not associative."""
    return reduce(MetricState.merge, states, MetricState.empty(n_classes))


def class_scores(confusion: Tensor, positive: int | None) -> dict[str, Tensor | None]:
    """Metrics ``(R,)`` of predicted classes, ``None`` where undefined.

    As in scikit-learn with ``zero_division=0`` a class that is never predicted has precision and f1 zero. If
    a class has no rows, ``balanced_accuracy``, ``macro_*``, ``f1`` and ``precision`` are undefined
    (``recall`` needs rows of the positive class only, ``accuracy`` of any).

    Args:
        confusion: ``(R, K, K)`` float64, rows by true and predicted class; all with the same rows per class.
        positive: Class index of f1, precision and recall; without it, or with K > 2, they are ``None``.
    """
    hits = confusion.diagonal(dim1=1, dim2=2)  # (R, K)
    rows, predicted = confusion.sum(dim=2), confusion.sum(dim=1)  # (R, K), (R, K)
    recall = hits / rows.clamp(min=1)  # (R, K)
    precision = hits / predicted.clamp(min=1)  # (R, K)
    f1 = 2 * hits / (rows + predicted).clamp(min=1)  # (R, K)
    present = [count > 0 for count in rows[0].tolist()]
    complete = all(present)
    scores = {
        "accuracy": hits.sum(dim=1) / rows.sum(dim=1) if any(present) else None,
        "balanced_accuracy": recall.mean(dim=1) if complete else None,
        **dict.fromkeys(("f1", "precision", "recall")),
        "macro_f1": f1.mean(dim=1) if complete else None,
        "macro_precision": precision.mean(dim=1) if complete else None,
        "macro_recall": recall.mean(dim=1) if complete else None,
    }
    if positive is not None and len(present) == BINARY:
        scores["f1"] = f1[:, positive] if complete else None
        scores["precision"] = precision[:, positive] if complete else None
        scores["recall"] = recall[:, positive] if present[positive] else None
    return scores


def one_vs_rest(histogram: Tensor) -> tuple[Tensor, Tensor]:
    """Histograms ``(S, N)`` of the positives and the negatives of every score.

    S = 1 for two classes (class 1 is positive), else S = K (class s is positive).
    """
    if len(histogram) == BINARY:
        negative, positive = histogram.sum(dim=1, keepdim=True)  # (1, N) each
        return positive, negative
    positive = histogram.diagonal(dim1=0, dim2=1).T  # (K, N)
    return positive, histogram.sum(dim=0) - positive


def ranked_auc(positive: Tensor, negative: Tensor) -> Tensor:
    """Probability ``(...)`` that a positive scores higher than a negative, ties counting half.

    Both are ``(..., N)`` counts by bin of the score, not all zero.
    """
    positive, negative = positive.double(), negative.double()
    below = negative.cumsum(dim=-1) - negative / 2  # (..., N)
    return (positive * below).sum(dim=-1) / (positive.sum(dim=-1) * negative.sum(dim=-1))


def _bin(value: Tensor, n_bins: int) -> Tensor:
    """Index of the equal-width bin of [0, 1]; bins are closed on the left, the last on both sides."""
    return (value * n_bins).long().clamp(max=n_bins - 1)


def _sparse(*columns: Tensor) -> list[list[int | float]]:
    """``[bin, value of each column]`` for each bin whose first column is not zero; see `_read_sparse`."""
    occupied = columns[0].nonzero().squeeze(1)
    values = (column[occupied].tolist() for column in columns)
    return [list(entry) for entry in zip(occupied.tolist(), *values, strict=True)]


def _read_class(entry: object, true: int, k: int) -> tuple[Tensor, ...]:
    """Validate the received entry of one true class; its row of each tensor of a state."""
    if entry is None:
        return tuple(tensor[true] for tensor in MetricState.empty(k)._tensors)
    where, names = f"class {true}", ("n", "confusion", "histogram", "log_loss", "brier", "calibration")
    n_rows, confusion, histogram, log_loss, brier, calibration = fields(entry, names, where)
    n = whole(n_rows, MAX_ROWS, f"{where} n")
    row = [whole(count, n, f"{where} confusion") for count in items(confusion, k, f"{where} confusion")]
    require(0 < n == sum(row), f"{where} confusion does not sum to n > 0")
    scores = zip(items(histogram, k, f"{where} histogram"), row if k == BINARY else [n] * k, strict=True)
    most = n * (1 + _TOLERANCE)
    losses = [
        real(log_loss, 0, MAX_LOG_LOSS * most, f"{where} log_loss"),
        real(brier, 0, most if k == BINARY else 2 * most, f"{where} brier"),
    ]
    return (
        torch.tensor(row),
        torch.stack([_read_histogram(bins, total, f"{where} histogram") for bins, total in scores]),
        torch.tensor(losses, dtype=torch.float64),
        _read_calibration(calibration, n, row[true], f"{where} calibration"),
    )


def _read_histogram(content: object, n: int, where: str) -> Tensor:
    """``(N,)`` int64 that sums to ``n``, from ``[bin, rows]`` entries."""
    bins, entries = _read_sparse(content, 2, N_BINS, where)
    counts = [whole(rows, n, where) for _, rows in entries]
    require(sum(counts) == n, f"{where} does not agree with confusion")
    histogram = torch.zeros(N_BINS, dtype=torch.int64)
    histogram.numpy()[bins] = counts
    return histogram


def _read_calibration(content: object, n: int, hits: int, where: str) -> Tensor:
    """``(3, C)`` float64 of ``n`` rows and ``hits``, from ``[bin, rows, hits, confidence]`` entries."""
    columns = [[0.0] * N_CALIBRATION_BINS for _ in range(3)]
    for index, entry in zip(*_read_sparse(content, 4, N_CALIBRATION_BINS, where), strict=True):
        rows = whole(entry[1], n, where)
        low, high = rows * index / N_CALIBRATION_BINS, rows * (index + 1) / N_CALIBRATION_BINS
        confidence = real(entry[3], low * (1 - _TOLERANCE), high * (1 + _TOLERANCE), where)
        for column, value in zip(columns, (rows, whole(entry[2], rows, where), confidence), strict=True):
            column[index] = value
    require([sum(column) for column in columns[:2]] == [n, hits], f"{where} does not agree with confusion")
    return torch.tensor(columns, dtype=torch.float64)


def _read_sparse(content: object, width: int, n_bins: int, where: str) -> tuple[list[int], list[list[Any]]]:
    """Validated rising bins, and the entries of `_sparse` with values still to be validated."""
    entries = [items(entry, width, where) for entry in items(content, None, where)]
    bins = [whole(entry[0], n_bins - 1, where) for entry in entries]
    require(bins == sorted(set(bins)), f"{where} bins do not rise")
    return bins, entries
