"""Random numbers from (seed, site, round) alone: the same on any backend, in any order, after a resume."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["generator_for", "global_draws"]

_GLOBAL: Final = Lock()


def generator_for(seed: int, site: str, round_number: int) -> torch.Generator:
    """A CPU generator for one site in one round.

    Example:
        >>> a, b = generator_for(0, "tcga", 3), generator_for(0, "tcga", 3)
        >>> bool((torch.rand(4, generator=a) == torch.rand(4, generator=b)).all())
        True
    """
    digest = hashlib.sha256(f"{seed}/{site}/{round_number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@contextmanager
def global_draws() -> Iterator[None]:
    """Exclusive use of PyTorch's global state, from which modules initialise; restored afterwards.

    Example:
        >>> before = torch.random.get_rng_state()
        >>> with global_draws():
        ...     _ = torch.nn.Linear(2, 2)
        >>> torch.equal(before, torch.random.get_rng_state())
        True
    """
    with _GLOBAL, torch.random.fork_rng(range(torch.cuda.device_count())):
        yield
