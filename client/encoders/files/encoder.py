"""An encoder from a folder, as the registry opens it: prepared inputs or texts to vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch.nn import functional

from client.encoders.files.contract import InputKind, Pooling
from client.encoders.files.memory import check_memory, enough_memory, is_full
from client.encoders.files.networks import IMAGE, open_network
from client.encoders.files.steps import pictures_of
from client.encoders.files.tokens import open_tokenizer
from mmare.errors import InputError, MmareError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from client.encoders.files.folder import EncoderFolder

__all__ = ["FileEncoder", "FileText", "pooled"]

BATCH: Final = 16  # pictures or texts per forward pass

_VECTORS, _TOKENS = 2, 3  # axes of ``(B, W)`` and ``(B, T, W)``; maps ``(B, W, …)`` have more


class _Opened:
    """The network on a device; an InputError if it cannot be opened, or memory is short."""

    def __init__(self, folder: EncoderFolder, device: torch.device) -> None:
        check_memory(folder, device)
        self._folder, self._device = folder, device
        with enough_memory(folder.contract.name, device):
            self._network = open_network(folder, device)

    def _vectors(self, inputs: Mapping[str, Tensor]) -> Tensor:
        try:
            found = self._network(inputs)
        except (MmareError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # each format has its own for a shape that it does not take
            if is_full(error):
                raise
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())
            raise InputError(f"{self._folder.path}: the network does not take {shapes}: {first}") from error
        return pooled(found, self._folder, inputs.get("attention_mask"))


class FileEncoder(_Opened):
    """Of volumes, slices or tiles."""

    def encode(self, volumes: Tensor) -> Tensor:
        """Vectors ``(B, W)`` float32 on the CPU for volumes ``(B, C, D, H, W)``.

        Of a scan's slices ``(1, S, C, H, W)`` or a slide's tiles ``(1, N, h, w, 3)`` uint8 it is one vector.

        Raises:
            InputError: If memory runs out, or what comes out is not what the contract says.
        """
        contract = self._folder.contract
        with enough_memory(contract.name, self._device):
            if contract.input.kind is InputKind.VOLUME:
                return self._vectors({IMAGE: volumes})
            rows = [self._pictures(part) for part in torch.split(volumes[0], BATCH)]
            every = torch.cat(rows)  # (S, W)
            one = every.mean(0) if contract.output.across == "mean" else every.amax(0)
            return one.unsqueeze(0)

    def _pictures(self, part: Tensor) -> Tensor:
        if self._folder.contract.input.kind is InputKind.TILES:
            part = pictures_of(part, self._folder.contract.input)
        return self._vectors({IMAGE: part})


class FileText(_Opened):
    """Of texts."""

    def __init__(self, folder: EncoderFolder, device: torch.device) -> None:
        super().__init__(folder, device)
        self._tokenize = open_tokenizer(folder)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors ``(N, W)``; texts beyond the most tokens are cut off, which is logged."""
        starts = range(0, len(texts), BATCH)
        with enough_memory(self._folder.contract.name, self._device):
            rows = [self._vectors(self._tokenize(texts[start : start + BATCH])).numpy() for start in starts]
        return np.concatenate([np.zeros((0, self._folder.contract.output.width), np.float32), *rows])


def pooled(found: Tensor, folder: EncoderFolder, attention: Tensor | None = None) -> Tensor:
    """``(B, W)`` float32 on the CPU from what a network gave.

    Raises:
        InputError: If its shape is not what the contract says.
    """
    output = folder.contract.output
    found = found.float().cpu()
    shape = tuple(found.shape)
    vectors = _pool(found, output.pooling, attention)
    if vectors is None:
        raise InputError(
            f"{folder.path}: the network gives an array {shape}, but pooling is {output.pooling}"
        )
    if vectors.shape[1] != output.width:
        raise InputError(
            f"{folder.path}: gives vectors of {vectors.shape[1]} numbers, expected width {output.width}"
        )
    return functional.normalize(vectors, dim=-1) if output.normalise == "l2" else vectors


def _pool(found: Tensor, rule: Pooling, attention: Tensor | None) -> Tensor | None:
    """``(B, W)``; None if the rule is for other shapes."""
    if rule is Pooling.NONE:
        return found if found.ndim == _VECTORS else None
    if found.ndim == _TOKENS:
        return _pool_tokens(found, rule, attention)
    if found.ndim < _TOKENS or rule not in (Pooling.MEAN, Pooling.MAX):
        return None
    flat = found.flatten(2)  # (B, W, D H W)
    return flat.mean(-1) if rule is Pooling.MEAN else flat.amax(-1)


def _pool_tokens(found: Tensor, rule: Pooling, attention: Tensor | None) -> Tensor:
    if rule is Pooling.FIRST:
        return found[:, 0]
    if rule is Pooling.PATCHES:
        return found[:, 1:].mean(1)
    inside = torch.ones(found.shape[:2], dtype=torch.bool) if attention is None else attention.bool()
    if rule is Pooling.MAX:
        return found.masked_fill(~inside.unsqueeze(-1), -torch.inf).amax(1)
    return torch.where(inside.unsqueeze(-1), found, 0.0).sum(1) / inside.sum(1, keepdim=True)
