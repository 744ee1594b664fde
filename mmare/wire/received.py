"""The tensors of the last message as one flat run, and their digest: made once, whoever asks for them."""

from __future__ import annotations

import hashlib
from threading import Lock
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["digest_of", "flat_of"]


class _Last:
    """What follows from the last payload. The sites of a simulation are handed the same one."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._payload = b""
        self._flat: Tensor | None = None
        self._digest: bytes | None = None

    def _take(self, payload: bytes) -> None:
        if payload is not self._payload:
            self._payload, self._flat, self._digest = payload, None, None

    def flat(self, payload: bytes) -> Tensor:
        with self._lock:
            self._take(payload)
            if self._flat is None:
                import torch  # noqa: PLC0415 - takes seconds, and a digest needs none

                self._flat = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
            return self._flat

    def digest(self, payload: bytes) -> bytes:
        with self._lock:
            self._take(payload)
            if self._digest is None:
                self._digest = hashlib.sha256(payload).digest()
            return self._digest


_LAST: Final = _Last()


def flat_of(payload: bytes) -> Tensor:
    """A payload, not empty, as ``(bytes,)`` uint8, which others share: it must not be changed."""
    return _LAST.flat(payload)


def digest_of(payload: bytes) -> bytes:
    """SHA-256 of a payload."""
    return _LAST.digest(payload)
