"""A site worker that is real but for what it lets through.

``python -m tests.system.odd_worker SITE.toml FAULT:ROUND…``, or the name of a fault of the roll call, or
``slow``: rounds that wait for a site cost no processor time.

The faults sit behind the gate, where a hospital that means harm, or whose machine is broken, would put them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

import client.worker
from client.worker import make_service, run_worker
from mmare.wire.messages import Request, RollCall, Task, decode, encode
from sites.config import load_site

Answer = tuple[str, bytes]
Fault = Callable[[Request, Answer], Answer]

LATE_S = 1.0  # after the deadline
SLOW_S = 2.0  # longer than the others train


def not_a_number(_request: Request, answer: Answer) -> Answer:
    values = np.frombuffer(answer[1], dtype=np.float32).copy()
    values[len(values) // 2] = np.nan
    return answer[0], values.tobytes()


def huge(_request: Request, answer: Answer) -> Answer:
    return answer[0], (np.frombuffer(answer[1], dtype=np.float32) * np.float32(1e6)).tobytes()


def late(request: Request, answer: Answer) -> Answer:
    time.sleep(float(request.study["federation"]["deadline_s"]) + LATE_S)
    return answer


class Stale:
    """Gives the answer of the round before again."""

    def __init__(self) -> None:
        self._before: Answer | None = None

    def keep(self, answer: Answer) -> Answer:
        self._before = answer
        return answer

    def __call__(self, _request: Request, answer: Answer) -> Answer:
        return self._before or answer


def other_encoder(_request: Request, answer: Answer) -> Answer:
    call = decode(RollCall, answer[0])
    return encode(replace(call, encoders=dict.fromkeys(call.encoders, "another"))), answer[1]


def other_site(_request: Request, answer: Answer) -> Answer:
    return encode(replace(decode(RollCall, answer[0]), site="ash")), answer[1]


TRAINING: dict[str, Fault] = {"nan": not_a_number, "huge": huge, "late": late}
ROLL_CALL: dict[str, Fault] = {"other-encoder": other_encoder, "other-site": other_site}


def main(site: str, *faults: str) -> None:
    named = [fault.partition(":") for fault in faults]
    of_round = {int(number): name for name, _, number in named if number}
    of_roll_call = [name for name, _, number in named if name in ROLL_CALL and not number]
    stale = Stale()

    def odd_service(*arguments: object) -> Callable[[str, bytes], Answer]:
        service = make_service(*arguments)  # type: ignore[arg-type] # as the worker calls it

        def answer(header: str, payload: bytes) -> Answer:
            request = decode(Request, header)
            found = service(header, payload)
            if request.task is Task.TRAIN and "slow" in faults:
                time.sleep(SLOW_S)
            if request.task is Task.DESCRIBE:
                for name in of_roll_call:
                    found = ROLL_CALL[name](request, found)
            if request.task is not Task.TRAIN:
                return found
            if request.round not in of_round:
                return stale.keep(found)
            name = of_round[request.round]
            return stale(request, found) if name == "stale" else TRAINING[name](request, found)

        answer.prepare = service.prepare  # type: ignore[attr-defined] # the worker warms up with it
        return answer

    client.worker.make_service = odd_service  # type: ignore[assignment] # this process is odd on purpose
    run_worker(load_site(Path(site)))


if __name__ == "__main__":
    main(*sys.argv[1:])
