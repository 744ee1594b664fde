"""Gaussian noise that nobody can compute who lacks the site's secret, and the site can compute again.

The key stream is AES-256 in counter mode. Its key is a digest, keyed with the secret, of everything that the
answer follows from: the same answer is drawn again with the same noise, and no other answer with it. The
generator of PyTorch would not do: on a processor it has 32 bits of seed, few enough to try all of them.

Numbers are floats of finite precision, so the guarantee is that of real numbers up to what their last bits
tell (Mironov 2012).
"""

from __future__ import annotations

import hmac
import json
import math
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from mmare.wire.tensors import tensor_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from mmare.study.study import Study
    from mmare.wire.messages import Request

__all__ = ["Noise", "noise_source"]

_HALF: Final = 2.0**-31  # of a whole number of 32 bits, to the open interval from -1 to 1
_TAIL: Final = 0.99  # beyond, 32 bits tell too few values apart


class Noise:
    """A stream of draws.

    Args:
        secret: Of the site.
        what: Whatever the answer follows from, as texts and numbers.

    Example:
        >>> one, again = (Noise(b"secret", "run", 3).normal(4) for _ in range(2))
        >>> torch.equal(one, again), torch.equal(one, Noise(b"secret", "run", 4).normal(4))
        (True, False)
    """

    def __init__(self, secret: bytes, *what: str | int) -> None:
        key = hmac.digest(secret, json.dumps(["noise", *what]).encode(), "sha256")
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def uniform(self, length: int) -> Tensor:
        """Numbers ``(length,)`` float64 in the open interval from 0 to 1."""
        words = self._words(length, torch.int64)
        return (words.bitwise_right_shift_(11).double() + 0.5) * 2.0**-53 + 0.5  # 53 bits, of either sign

    def normal(self, length: int) -> Tensor:
        """Standard normal numbers ``(length,)`` float32."""
        share = self._words(length, torch.int32).float().add_(0.5).mul_(_HALF)  # of the probability, signed
        tail = torch.from_numpy(np.flatnonzero(np.abs(share.numpy()) > _TAIL))  # thrice as fast as torch's
        found = share.erfinv().mul_(math.sqrt(2))
        beyond = torch.special.ndtri(self.uniform(len(tail)) * ((1 - _TAIL) / 2))  # to below -8
        found[tail] = -beyond.float() * share[tail].sign()
        return found

    def generator(self) -> torch.Generator:
        """For draws that nobody needs to be unable to guess: dropout, the order of merging."""
        return torch.Generator().manual_seed(int(self._words(1, torch.int64)) >> 1)

    def _words(self, length: int, dtype: torch.dtype) -> Tensor:
        """``(length,)`` of whole numbers of this type, all equally likely."""
        stream = self._stream.update(bytes(length * dtype.itemsize))
        return torch.frombuffer(bytearray(stream), dtype=dtype) if length else torch.zeros(0, dtype=dtype)


def noise_source(
    secret: Callable[[], bytes],
    site: str,
    request: Request,
    study: Study,
    tensors: Sequence[Mapping[str, Tensor]],
) -> Callable[[str], Noise]:
    """The draws of each part of an answer, by its name.

    Args:
        secret: Of the site.
        site: Id.
        request: To be answered. Runs have noise of their own; not so without a secret, in a simulation, where
            the study's seed alone decides.
        study: Of the request.
        tensors: The model, the state and the data that the answer is made of.
    """

    def draw(what: str) -> Noise:
        key = secret()
        asked = study.hash, study.seed, site, request.task, request.round, int(request.final), what
        return Noise(key, request.run if key else "", *asked, *map(tensor_digest, tensors))

    return draw
