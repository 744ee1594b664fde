"""The encoders that a study can name. A new encoder is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.encoders import hashing_text

__all__ = ["GIVEN", "TEXT_ENCODERS", "fingerprint"]

GIVEN: Final = "given"  # features that were extracted before

TextEncoder = Callable[[Sequence[str], int], NDArray[np.float32]]

TEXT_ENCODERS: Final[dict[str, tuple[str, TextEncoder]]] = {
    "hashing-text": (hashing_text.FINGERPRINT, hashing_text.encode_texts),
}


def fingerprint(encoder: str) -> str:
    """What names an encoder's architecture, weights and preprocessing: equal at all sites of a federation."""
    return encoder if encoder == GIVEN else TEXT_ENCODERS[encoder][0]
