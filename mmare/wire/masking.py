"""Numbers that only their sum over sites can tell: fixed point, masks that cancel, shares of a seed.

Every pair of sites adds and subtracts one mask, drawn from a key that only the two can compute; each site
adds one more, whose seed the others hold in shares (Bonawitz et al., CCS 2017, https://doi.org/10.1145/3133956.3133982).
Arithmetic is modulo 2**64, so a masked sum is the plain sum of the same fixed-point numbers, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import TYPE_CHECKING, Final

import torch
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = [
    "LARGEST",
    "MaskError",
    "context_of",
    "expand",
    "from_fixed",
    "join_shares",
    "majority",
    "mask",
    "open_share",
    "own_seed",
    "public_key",
    "seal_share",
    "split_seed",
    "to_fixed",
    "unmask",
]

SCALE: Final = 2**24  # steps per unit
LARGEST: Final = 2.0**28  # of a number: the sum of 1,024 sites stays below 2**62 steps
MOST_SITES: Final = 1024

_SEED_BYTES: Final = 16  # what Shamir's scheme over GF(2**128) shares
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_WORD_BYTES: Final = 8


class MaskError(ValueError):
    """A key, a share or a number that cannot be used; the message tells no secret."""


def to_fixed(values: Tensor) -> Tensor:
    """Round float64 numbers to int64 steps of 2**-24.

    Raises:
        MaskError: If a number is not finite or larger than `LARGEST`.

    Example:
        >>> from_fixed(to_fixed(torch.tensor([0.5, -3.0])) + to_fixed(torch.tensor([1.0, 1.0]))).tolist()
        [1.5, -2.0]
    """
    numbers = values.double()
    if not bool((numbers.abs() <= LARGEST).all()):  # NaN compares as false
        raise MaskError(f"a number that is not finite, or beyond {LARGEST:g}")
    return (numbers * SCALE).round().long()


def from_fixed(steps: Tensor) -> Tensor:
    """Float64 numbers of int64 steps."""
    return steps.double() / SCALE


def majority(sites: int) -> int:
    """Shares that open a seed: two groups of so many sites always have one in common."""
    return sites // 2 + 1


def public_key(private: bytes) -> str:
    """The public half of an X25519 key of 32 bytes, as hex digits."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()


def context_of(study_hash: str, run: str, what: str, roster: Mapping[str, str]) -> bytes:
    """Digest of everything that a mask is for; ``roster`` holds the public keys of the sites in the sum."""
    content = json.dumps([study_hash, run, what, sorted(roster.items())])
    return hashlib.sha256(content.encode()).digest()


def own_seed(private: bytes, context: bytes) -> bytes:
    """The seed of a site's own mask, 16 bytes."""
    return _derive(private, b"own" + context, _SEED_BYTES)


def mask(private: bytes, site: str, roster: Mapping[str, str], context: bytes, steps: Tensor) -> Tensor:
    """Add to a site's int64 steps ``(n,)`` the masks that it shares with each other site, and its own.

    Raises:
        MaskError: If a public key of the roster cannot be used.
    """
    masked = steps + expand(own_seed(private, context), len(steps))
    for other, key in roster.items():
        if other != site:
            common = expand(_shared(private, key, b"pair" + context), len(steps))
            masked = masked + common if site < other else masked - common
    return masked


def unmask(total: Tensor, seeds: Mapping[str, bytes]) -> Tensor:
    """Take the sites' own masks from the sum of what all sites of the roster sent."""
    for seed in seeds.values():
        total = total - expand(seed, len(total))
    return total


def expand(seed: bytes, length: int) -> Tensor:
    """Pseudorandom int64 ``(length,)``: the key stream of AES-256 in counter mode."""
    cipher = Cipher(algorithms.AES(hashlib.sha256(seed).digest()), modes.CTR(bytes(16)))
    stream = cipher.encryptor().update(bytes(length * _WORD_BYTES))
    return (
        torch.frombuffer(bytearray(stream), dtype=torch.int64)
        if length
        else torch.zeros(0, dtype=torch.int64)
    )


def split_seed(seed: bytes, sites: list[str], threshold: int) -> dict[str, bytes]:
    """One share of 16 bytes per site, of which ``threshold`` open the seed.

    Example:
        >>> shares = split_seed(bytes(range(16)), ["ash", "elm", "oak"], 2)
        >>> join_shares({site: shares[site] for site in ("oak", "ash")}, ["ash", "elm", "oak"]).hex()
        '000102030405060708090a0b0c0d0e0f'
    """
    return {sites[place - 1]: share for place, share in Shamir.split(threshold, len(sites), seed, ssss=False)}


def join_shares(shares: Mapping[str, bytes], sites: list[str]) -> bytes:
    """The seed of at least ``threshold`` shares; ``sites`` as they were for `split_seed`."""
    return bytes(
        Shamir.combine([(sites.index(site) + 1, share) for site, share in shares.items()], ssss=False)
    )


def seal_share(private: bytes, recipient: str, context: bytes, share: bytes) -> str:
    """Encrypt a share for the site with this public key, as hex digits."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    sealed = AESGCM(_shared(private, recipient, b"share" + context)).encrypt(nonce, share, None)
    return (nonce + sealed).hex()


def open_share(private: bytes, sender: str, context: bytes, sealed: str) -> bytes:
    """Decrypt what the site with this public key sealed.

    Raises:
        MaskError: If it was sealed by another site, for another one or for another sum.
    """
    try:
        content = bytes.fromhex(sealed)
        key = _shared(private, sender, b"share" + context)
        return AESGCM(key).decrypt(content[:_NONCE_BYTES], content[_NONCE_BYTES:], None)
    except (InvalidTag, ValueError):
        raise MaskError("a share that this site cannot open") from None


def _shared(private: bytes, public: str, purpose: bytes) -> bytes:
    """The key that two sites have in common; the same from either side."""
    try:
        other = X25519PublicKey.from_public_bytes(bytes.fromhex(public))
        secret = X25519PrivateKey.from_private_bytes(private).exchange(other)
    except ValueError:
        raise MaskError("a public key that is none") from None
    return _derive(secret, purpose, _KEY_BYTES)


def _derive(secret: bytes, purpose: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length, salt=None, info=b"mmare secure sum " + purpose).derive(secret)
