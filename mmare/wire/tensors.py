"""Tensors of a model as one flat run of bytes, and back."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import torch

from mmare.wire.messages import Layout, TensorSpec, WireError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor, nn

__all__ = [
    "copy_tensors",
    "global_tensors",
    "is_finite",
    "layout_of",
    "pack",
    "tensor_digest",
    "trained_tensors",
    "unpack",
]

_DTYPES: Final = {
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}


def global_tensors(model: nn.Module, without: Collection[str] = ()) -> dict[str, Tensor]:
    """Parameters and buffers by name, as the server sends them; they share memory with the model."""
    tensors = model.state_dict(keep_vars=False)
    return {name: value for name, value in tensors.items() if name not in without}


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters by name; they share memory with the model."""
    return {name: value.detach() for name, value in model.named_parameters()}


def layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    """The layout of named tensors, in their order.

    Example:
        >>> layout_of({"w": torch.zeros(2)}).tensors
        (TensorSpec(name='w', dtype='float32', shape=(2,)),)
    """
    names = {dtype: name for name, dtype in _DTYPES.items()}
    return Layout(
        tuple(TensorSpec(name, names[value.dtype], tuple(value.shape)) for name, value in tensors.items())
    )


def pack(tensors: Mapping[str, Tensor]) -> Tensor:
    """Copy tensors into one ``(bytes,)`` uint8 tensor, in their order."""
    layout = layout_of(tensors)
    run = torch.zeros(layout.size, dtype=torch.uint8)
    copy_tensors(unpack(run, layout), tensors)
    return run


def copy_tensors(into: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy tensors into those of the same names, on any device.

    Raises:
        ValueError: If a tensor is missing or has another shape.
    """
    with torch.no_grad():
        for name, value in into.items():
            if name not in values or values[name].shape != value.shape:
                raise ValueError(f"no tensor {name} of shape {tuple(value.shape)}")
            value.copy_(values[name])


def unpack(run: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Views of a flat run ``(bytes,)`` uint8 as named tensors.

    Raises:
        WireError: If the run has another length.

    Example:
        >>> tensors = {"w": torch.ones(2, 2), "n": torch.tensor(3)}
        >>> unpack(pack(tensors), layout_of(tensors))["n"]
        tensor(3)
    """
    if run.ndim != 1 or run.dtype != torch.uint8 or len(run) != layout.size:
        raise WireError(f"{run.numel()} bytes, expected {layout.size}")
    runs: dict[str, Tensor] = {}  # the run in each dtype, so that a tensor takes one operation
    found = {}
    for spec, start in zip(layout.tensors, layout.offsets, strict=False):
        if spec.dtype not in runs:
            runs[spec.dtype] = run.view(_DTYPES[spec.dtype])
        of_dtype = runs[spec.dtype]
        first = of_dtype.storage_offset() + start // of_dtype.itemsize
        found[spec.name] = of_dtype.as_strided(spec.shape, spec.strides, first)
    return found


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and values.

    Example:
        >>> one, other = ({"w": torch.tensor([value])} for value in (1.0, 2.0))
        >>> tensor_digest(one) == tensor_digest(dict(one)), tensor_digest(one) == tensor_digest(other)
        (True, False)
    """
    digest = hashlib.sha256(layout_of(tensors).fingerprint.encode())
    digest.update(pack(tensors).numpy().tobytes())
    return digest.hexdigest()


def is_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether no floating value is NaN or infinite.

    Checks one sum per tensor, so finite values whose sum overflows count as infinite.
    """
    sums = [value.sum() for value in tensors.values() if value.is_floating_point()]
    return not sums or bool(torch.stack([total.double() for total in sums]).isfinite().all())
