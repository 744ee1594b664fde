"""Checkpoint files: tensors and a small state, replaced atomically and verified when read."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mmare.host.files import own_folder, replacing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

__all__ = ["DamagedCheckpointError", "read_checkpoint", "write_checkpoint"]

STATE: Final = "state"
DIGEST: Final = "sha256"


class DamagedCheckpointError(ValueError):
    """A checkpoint is missing, truncated or modified."""


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> int:
    """Replace a checkpoint durably; returns its size in bytes. ``state`` must be JSON-serialisable."""
    text = json.dumps(state, sort_keys=True, allow_nan=False)
    own_folder(path.parent)
    with replacing(path, private=True) as partial:
        save_file(dict(tensors), partial, metadata={STATE: text, DIGEST: _digest(tensors, text)})
    return path.stat().st_size


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint and verify its digest.

    Raises:
        DamagedCheckpointError: If it is missing, truncated or modified.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise DamagedCheckpointError(f"{path.name}: {type(error).__name__}") from None
    text = metadata.get(STATE, "")
    if metadata.get(DIGEST) != _digest(tensors, text):
        raise DamagedCheckpointError(f"{path.name}: does not match its digest")
    state: dict[str, Any] = json.loads(text)
    return tensors, state


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        flat = value.clone(memory_format=torch.contiguous_format).reshape(-1)  # of one number, too
        digest.update(flat.view(dtype=torch.uint8).numpy().data)
    return digest.hexdigest()
