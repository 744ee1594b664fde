"""Random numbers from (seed, site, round) alone: the same on any backend, in any order, after a resume.

Modules draw their first values from PyTorch's global state, which all threads share: `global_draws` is for
them.
"""

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
    """A CPU generator for what one site draws in one round.

    Example:
        >>> a, b = generator_for(0, "tcga", 3), generator_for(0, "tcga", 3)
        >>> bool((torch.rand(4, generator=a) == torch.rand(4, generator=b)).all())
        True
    """
    digest = hashlib.sha256(f"{seed}/{site}/{round_number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@contextmanager
def global_draws() -> Iterator[None]:
    """PyTorch's global state for one thread at a time; it is put back when the block ends.

    Example:
        >>> before = torch.random.get_rng_state()
        >>> with global_draws():
        ...     _ = torch.nn.Linear(2, 2)
        >>> torch.equal(before, torch.random.get_rng_state())
        True
    """
    with _GLOBAL, torch.random.fork_rng(range(torch.cuda.device_count())):
        yield
