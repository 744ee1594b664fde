"""Whether the line carries the model within the study's deadline."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from client.doctor.findings import fine, problem, warning
from client.doctor.route import Trace
from mmare.study.choices import Wire
from mmare.wire.line import WAYS

if TYPE_CHECKING:
    from pathlib import Path

    from client.doctor.findings import Finding
    from client.doctor.route import Answer, Route
    from mmare.study.study import Study

__all__ = ["judge_speed", "key_header", "measure_speed"]

SENT_BYTES: Final = 512 << 10  # four seconds at 1 Mbit/s; more would tell no more of a line that is too slow
LEAST_S: Final = 0.001
FLOAT_BYTES: Final = {Wire.FLOAT32: 4, Wire.FLOAT16: 2}


def key_header(public_key: Path) -> str:
    """A site's key as its SuperNode names it in every call; empty if it cannot be read."""
    try:
        key = load_ssh_public_key(public_key.read_bytes())
    except (OSError, ValueError):
        return ""
    return b64encode(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).decode()


def measure_speed(route: Route, path: str, empty: Answer) -> float:
    """Bytes per second of what the coordinator refuses as unsigned; ``empty`` is its answer to none.

    Raises:
        Obstacle: If there is no answer.
    """
    full = route.ask("POST", path, Trace(), bytes(SENT_BYTES))
    seconds = max((full.received - full.sent) - (empty.received - empty.sent), LEAST_S)
    return SENT_BYTES / seconds


def judge_speed(bytes_per_s: float, study: Study | None) -> Finding:
    """What a speed means for a study; the way down is taken to be as fast as the way up."""
    found = f"sends {8 * bytes_per_s / 1e6:.3g} Mbit/s to the coordinator"
    if study is None:
        return fine("speed", found)
    from client.privacy.release_rules import StudyRules  # noqa: PLC0415 - imports torch, which takes seconds

    numbers, deadline_s = StudyRules(study).most_numbers(), study.federation.deadline_s
    down, up = numbers * FLOAT_BYTES[Wire.FLOAT32], numbers * FLOAT_BYTES[study.federation.wire]
    seconds = (down + up) / bytes_per_s
    found = (
        f"{found}: the model of {down / 1e6:.1f} MB takes {seconds:.0f} s there and back, and a round of "
        f"{study.name} waits {deadline_s:.0f} s for that and the training"
    )
    advice = (
        f"tell the coordinator: federation.deadline_s should be {WAYS * seconds:.0f} s and the time of a "
        'training at least; federation.wire = "float16" halves the way up'
    )
    if seconds >= deadline_s:
        return problem("speed", found, advice)
    return warning("speed", found, advice) if WAYS * seconds > deadline_s else fine("speed", found)
