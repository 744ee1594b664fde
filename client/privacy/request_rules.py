"""What an approved study may be asked: only what its own settings call for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mmare.study.choices import ExtraAnswer
from mmare.study.schedule import is_rate_factor
from mmare.study.strategy_options import strategy_options
from mmare.wire.messages import Request, SecureSum, Split, Task

if TYPE_CHECKING:
    from collections.abc import Collection

    from mmare.study.study import Study

__all__ = ["RequestError", "check_request"]

_TRAINING_SPLITS: Final = ((), (Split.VAL,))


_SUMS: Final = {
    Task.STATISTICS: (SecureSum.MOMENTS,),
    Task.TRAIN: (SecureSum.ROUND,),
    Task.EVALUATE: (SecureSum.ROUND, SecureSum.VALIDATION, SecureSum.TEST),
    Task.UNMASK: tuple(SecureSum),
}


class RequestError(ValueError):
    """A request that the approved study does not call for; the message is for the site's own log."""


def check_request(request: Request, study: Study, extra: Collection[ExtraAnswer]) -> None:
    """Check every field that changes what leaves; ``extra`` are the answers beside those of every run.

    Raises:
        RequestError: Naming the first field that does not follow from the study.
    """
    trains, task = request.task is Task.TRAIN, request.task.value
    if study.privacy.dp is not None:
        extra = ()  # more about the same patients
    sums = _SUMS.get(request.task, ()) if study.privacy.secure_sum else (None,)
    _require(request.sum in sums or request.task is Task.DESCRIBE, f"{task} in the secure sum {request.sum}")
    _require(not request.shares or request.task is Task.UNMASK, f"{task} with shares")
    if request.task is Task.UNMASK:
        return
    _require(
        (request.sum is SecureSum.TEST) == (request.final and study.privacy.secure_sum),
        "another sum at the end",
    )
    rounds = study.training.rounds
    _require(request.train == trains, f"{task} with train = {request.train}")
    if request.task in (Task.TRAIN, Task.EVALUATE):
        first = 0 if request.final else 1  # without validation no round is selected
        last = rounds if trains or request.final else rounds + 1  # the last round's model is validated, too
        _require(first <= request.round <= last, f"round {request.round}, expected {first} to {last}")
    else:
        _require(request == _bare(request), f"{task} with settings of a round")
    _require(
        request.task is not Task.COMPARE or ExtraAnswer.COMPARISON in extra,
        "a comparison, which the study does not name",
    )
    _splits(request, extra)
    if study.privacy.dp is not None:
        last = request.final or (not trains and request.round == rounds + 1)
        _require(
            last or not request.splits, "metrics of a round, which a study with dp tells at its end only"
        )
    _require(not request.patterns or request.final, "patterns before the end of the run")
    _require(not request.subsets or request.final, "subsets before the end of the run")
    _require(not request.subsets or ExtraAnswer.SUBSETS in extra, "subsets, which the study does not name")
    _require(not request.calibration or request.final, "calibration before the end of the run")
    _require(
        not request.calibration or ExtraAnswer.CALIBRATION in extra,
        "calibration, which the study does not name",
    )
    _require(not request.shapley or request.final, "Shapley values before the end of the run")
    _require(not request.shapley or request.patterns, "Shapley values without patterns, whose rows they sum")
    _require(
        not request.shapley or ExtraAnswer.SHAPLEY in extra, "Shapley values, which the study does not name"
    )
    options = strategy_options(study.federation.strategy, study.federation.options)
    gap = trains and getattr(options, "gap_step", 0.0) > 0
    _require(gap or not request.gap, "the trained model's metrics, which its strategy does not use")
    factor = request.rate_factor
    _require(
        not trains or is_rate_factor(study.training, request.round, factor),
        f"rate factor {factor:g}, which the schedule cannot give in round {request.round}",
    )


def _splits(request: Request, extra: Collection[ExtraAnswer]) -> None:
    splits = tuple(split for split in request.splits if split is not Split.TRAIN)
    if splits != request.splits:
        _require(ExtraAnswer.TRAIN in extra, "metrics on train rows, which the study does not name")
    _require(len(set(request.splits)) == len(request.splits), "a split named twice")
    _require(not request.final or request.task is Task.EVALUATE, "a final request that evaluates nothing")
    _require(request.final or splits in _TRAINING_SPLITS, "metrics on test rows before the end of the run")


def _bare(request: Request) -> Request:
    return Request(
        request.task,
        request.run,
        request.study,
        layout=request.layout,
        sum=request.sum,
        roster=request.roster,
    )


def _require(fine: object, sentence: str) -> None:
    if not fine:
        raise RequestError(sentence)
