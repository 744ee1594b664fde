"""The longest header that a site's answer can have, from the study and the request alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from mmare.metrics.calibration import grid_shape
from mmare.metrics.paired import N_SUMS
from mmare.study.outcome import N_TIMES
from mmare.tasks.registry import task_of
from mmare.wire.limits import MOST_HEADER
from mmare.wire.messages import Split, Task

if TYPE_CHECKING:
    from collections.abc import Collection

    from mmare.study.study import Study
    from mmare.wire.messages import Request

__all__ = ["most_header"]

BASE: Final = 64 << 10  # characters of keys, ids, hashes and a few numbers
NUMBER: Final = 32  # characters of a number with its separators
CELL: Final = 24  # of a bin and its count
NAME: Final = 8  # per character of a name, escaped
MODALITY: Final = 4 << 10  # of an encoder's fingerprint and its notes


def most_header(study: Study, request: Request, blocks: Collection[str] = ()) -> int:
    """Characters of the longest header that answers a request, at most `MOST_HEADER`.

    Args:
        study: Its classes, patterns of modalities and widths bound what a site can say.
        request: To be answered.
        blocks: Names of the blocks that a round trains.
    """
    patterns = (1 << len(study.modalities)) - 1
    pattern = len(study.modalities) + NUMBER
    classes = sum(NAME * len(name) + NUMBER for name in study.classes)
    if request.task is Task.DESCRIBE:
        wanted = len(Split) * (classes + patterns * pattern) + MODALITY * len(study.modalities)
    elif request.task is Task.STATISTICS:
        wanted = sum(NAME * len(each.name) + 2 * each.width * NUMBER for each in study.modalities)
        wanted += 2 * N_TIMES * NUMBER if study.survival is not None else 0
    elif request.task is Task.COMPARE:
        wanted = 4 * classes + N_SUMS * NUMBER
    else:
        groups = 1 + patterns * (request.patterns + request.subsets)
        states = len(request.splits) * groups + request.gap
        wanted = states * (task_of(study).most_characters(CELL, NUMBER) + pattern)
        if request.calibration:
            points = math.prod(grid_shape(len(study.classes)))
            wanted += len(request.splits) * len(study.classes) * 2 * points * NUMBER
        if request.shapley:
            wanted += len(request.splits) * len(study.modalities) * 2 * NUMBER
        wanted += sum(2 * NAME * len(name) + NUMBER for name in blocks)
    return min(BASE + wanted, MOST_HEADER)
