"""Read weights in the safetensors format: a JSON header of dtypes, shapes and places, then the bytes.

By hand, as the model library needs torch and the standard library only:
https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
import struct
from typing import TYPE_CHECKING, Final

import torch

from mmare.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["read_weights"]

_LENGTH: Final = 8  # bytes that hold the header's
_DTYPES: Final = {
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I32": torch.int32,
    "I64": torch.int64,
    "BOOL": torch.bool,
}


def read_weights(content: bytes, source: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, which own their memory, and the file's metadata.

    Raises:
        InputError: If it is not such a file; begins with ``source``.
    """
    try:
        (length,) = struct.unpack_from("<Q", content)
        header = json.loads(content[_LENGTH : _LENGTH + length])
        metadata = header.pop("__metadata__", {})
        data = bytearray(content[_LENGTH + length :])
        tensors = {name: _tensor(data, **entry) for name, entry in header.items()}
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError, struct.error) as error:
        raise InputError(f"{source}: not a safetensors file ({type(error).__name__})") from None
    return tensors, metadata


def _tensor(data: bytearray, dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
    start, end = data_offsets
    kind, count = _DTYPES[dtype], math.prod(shape)
    if end - start != count * kind.itemsize or not 0 <= start <= end <= len(data):
        raise ValueError("a tensor outside the file")
    if not count:
        return torch.zeros(shape, dtype=kind)
    return torch.frombuffer(data, dtype=kind, count=count, offset=start).reshape(shape).clone()
