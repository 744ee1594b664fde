"""Gaussian noise that nobody can compute who lacks the site's secret, and the site can compute again.

The key stream is AES-256 in counter mode. Its key is a digest, keyed with the secret, of everything that the
answer follows from: the same answer is drawn again with the same noise, and no other answer with it. The
generator of PyTorch would not do: on a processor it has 32 bits of seed, few enough to try all of them.

Numbers are floats of finite precision, so the guarantee is that of real numbers up to what their last bits
tell (Mironov 2012).
"""

from __future__ import annotations

import functools
import hmac
import json
import math
from typing import TYPE_CHECKING, Final

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from mmare.wire.tensors import tensor_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from mmare.study.study import Study
    from mmare.wire.messages import Request

__all__ = ["Noise", "noise_source"]

_BLOCK: Final = 16  # bytes that the cipher may write besides
_BODY: Final = 0.99  # of the normal distribution: beyond, 32 bits tell too few values apart


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
        self._zeros, self._room = (
            b"",
            bytearray(),
        )  # what is encrypted, and where to: of the longest draw so far

    def uniform(self, length: int) -> Tensor:
        """Numbers ``(length,)`` float64 in the open interval from 0 to 1."""
        words = self._words(length, torch.int64)
        return (words.bitwise_right_shift(11).double() + 0.5) * 2.0**-53 + 0.5  # 53 bits, of either sign

    def normal(self, length: int) -> Tensor:
        """Standard normal numbers ``(length,)`` float32.

        Those of the middle are made of 32 bits. Where the rare others stand is drawn apart, by the gaps
        between them, and they are made of 53 bits.
        """
        body = self._words(length, torch.int32).float().mul_(_BODY * 2.0**-31)  # of the probability, signed
        found = body.erfinv_().mul_(math.sqrt(2))
        places = self._places(length, 1 - _BODY)
        beyond = -torch.special.ndtri(self.uniform(len(places)) * ((1 - _BODY) / 2))  # to above 8
        found[places] = torch.where(self.uniform(len(places)) < 1 / 2, beyond, -beyond).float()
        return found

    def generator(self) -> torch.Generator:
        """For draws that nobody needs to be unable to guess: dropout, the order of merging."""
        return torch.Generator().manual_seed(int(self._words(1, torch.int64)) >> 1)

    def _places(self, length: int, probability: float) -> Tensor:
        """Places ``(n,)`` below ``length``, of which each is drawn with this probability."""
        last, found = -1, [torch.zeros(0, dtype=torch.int64)]
        likely = int(1.1 * probability * length) + 32
        while last < length:
            gaps = (self.uniform(likely).log() / math.log1p(-probability)).long() + 1
            found.append(last + gaps.cumsum(dim=0))
            last = int(found[-1][-1])
        places = torch.cat(found)
        return places[places < length]

    def _words(self, length: int, dtype: torch.dtype) -> Tensor:
        """``(length,)`` of whole numbers of this type, all equally likely; valid until the next draw."""
        size = length * dtype.itemsize
        if size > len(self._zeros):
            self._zeros, self._room = bytes(size), bytearray(size + _BLOCK)
        self._stream.update_into(memoryview(self._zeros)[:size], self._room)
        return (
            torch.frombuffer(self._room, dtype=dtype, count=length) if length else torch.zeros(0, dtype=dtype)
        )


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

    @functools.cache  # all parts of an answer follow from the same tensors
    def digests() -> tuple[str, ...]:
        return tuple(map(tensor_digest, tensors))

    def draw(what: str) -> Noise:
        key = secret()
        asked = study.hash, study.seed, site, request.task, request.round, int(request.final), what
        return Noise(key, request.run if key else "", *asked, *digests())

    return draw
