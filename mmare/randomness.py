"""Random numbers from (seed, site, round) alone: the same on any backend, in any order, after a resume."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["generator_for"]


def generator_for(seed: int, site: str, round_number: int) -> torch.Generator:
    """A CPU generator for what one site draws in one round.

    Example:
        >>> a, b = generator_for(0, "tcga", 3), generator_for(0, "tcga", 3)
        >>> bool((torch.rand(4, generator=a) == torch.rand(4, generator=b)).all())
        True
    """
    digest = hashlib.sha256(f"{seed}/{site}/{round_number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
