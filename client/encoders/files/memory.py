"""Whether a device has the memory that an encoder takes: a refusal instead of a process that is killed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import psutil
import torch

from mmare.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from client.encoders.files.folder import EncoderFolder

__all__ = ["check_memory", "enough_memory", "free_mb", "is_full"]

_WORDS: Final = ("not enough memory", "can't allocate memory", "failed to allocate memory", "out of memory")


def free_mb(device: torch.device) -> int:
    """Memory that a device has left."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] >> 20
    return psutil.virtual_memory().available >> 20


def check_memory(folder: EncoderFolder, device: torch.device) -> None:
    """Refuse an encoder that takes more than is free: its probe's need, or at least its weights.

    Raises:
        InputError: Naming what it takes and what there is.
    """
    contract = folder.contract
    weights = sum((folder.path / name).stat().st_size for name in contract.files) >> 20
    needed = max(weights, 0 if contract.probe is None else contract.probe.memory_mb)
    free = free_mb(device)
    if needed > free:
        raise InputError(
            f"encoder {contract.name} takes about {needed} MB of memory, but {device} has {free} MB free"
        )


@contextmanager
def enough_memory(name: str, device: torch.device) -> Iterator[None]:
    """Turn the many errors of a full memory into one sentence.

    Raises:
        InputError: If memory runs out.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        raise InputError(
            f"encoder {name} needs more memory than {device} has, {free_mb(device)} MB free"
        ) from None


def is_full(error: Exception) -> bool:
    """Whether an error says that memory ran out."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(words in str(error).lower() for words in _WORDS)
