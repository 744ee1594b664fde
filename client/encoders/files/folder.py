"""An encoder's folder: which files it reads, that they are those that were sealed, and its identity."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.encoders.digest import sha256_of
from client.encoders.files.contract import CONTRACT, Contract, Format, load_contract
from mmare.errors import InputError

__all__ = ["VERSION", "EncoderFolder", "added_encoders", "contents", "open_folder", "remove_encoder"]

VERSION: Final = "file/1"  # raise the number when a step or a pooling changes the output

_ASIDE: Final = ("README", "LICENSE", "LICENCE", "NOTICE")  # for people; no library reads them
_PICKLES: Final = (
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".pkl",
    ".pickle",
    ".joblib",
    ".npy",
    ".npz",
    ".h5",
    ".msgpack",
)
_WEIGHTS: Final = {
    Format.ONNX: ".onnx",
    Format.TRANSFORMERS: ".safetensors",
    Format.TIMM: ".safetensors",
    Format.OPEN_CLIP: ".safetensors",
    Format.TORCH_EXPORT: ".pt2",
}


@dataclass(frozen=True)
class EncoderFolder:
    """A folder whose files were compared with its contract."""

    path: Path
    contract: Contract

    @property
    def fingerprint(self) -> str:
        """Equal at two sites if format, files, input and output are; the name is not in the digest."""
        canonical = json.dumps(self.contract.identity, sort_keys=True, separators=(",", ":"))
        return f"{VERSION}+{self.contract.name}+sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"

    @property
    def weights(self) -> Path:
        """The only file of weights, or the first part of several."""
        return self.path / _weights(self.contract, contents(self.path), self.path)[0]


def open_folder(path: Path, *, draft: bool = False) -> EncoderFolder:
    """Read a folder and compare every file with its hash.

    Args:
        path: The folder.
        draft: Whether ``[files]`` and ``[probe]`` are still to be written, so nothing is compared.

    Raises:
        InputError: If a file is missing, changed, not listed or a pickle, or no weights are there.
    """
    contract = load_contract(path)
    found = contents(path)
    if pickles := [name for name in found if name.endswith(_PICKLES)]:
        raise InputError(
            f"{path / pickles[0]}: can hold a pickle, which runs code when it is read; convert it once with "
            "mmare-site encoders convert and remove it"
        )
    _weights(contract, found, path)
    if draft:
        return EncoderFolder(path, contract)
    if contract.probe is None:
        raise InputError(f"{path / CONTRACT}: has no [probe] yet; run mmare-site encoders seal {path} first")
    if strays := [name for name in found if name not in contract.files]:
        raise InputError(
            f"{path / strays[0]}: not in [files] of {CONTRACT}, and a library might read it; remove it"
        )
    for name, expected in contract.files.items():
        if (digest := sha256_of(path / name)) != expected:
            raise InputError(f"{path / name}: sha256 is {digest}, expected {expected} as in {CONTRACT}")
    return EncoderFolder(path, contract)


def contents(path: Path) -> list[str]:
    """Files of a folder that an encoder may read, by path in it."""
    every = (file.relative_to(path) for file in sorted(path.rglob("*")) if file.is_file())
    return [
        name.as_posix()
        for name in every
        if not any(part.startswith(".") for part in name.parts)
        and name.as_posix() != CONTRACT
        and not name.name.upper().startswith(_ASIDE)
    ]


def added_encoders(into: Path) -> list[tuple[str, EncoderFolder | InputError]]:
    """The encoders of a folder of weights by name, each with what is wrong with it, if so."""
    found: list[tuple[str, EncoderFolder | InputError]] = []
    for contract in sorted(into.glob(f"[!.]*/{CONTRACT}")):
        try:
            found.append((contract.parent.name, open_folder(contract.parent)))
        except InputError as error:
            found.append((contract.parent.name, error))
    return found


def remove_encoder(name: str, into: Path) -> None:
    """Remove an added encoder; embeddings in caches stay.

    Raises:
        InputError: If there is none of that name.
    """
    names = [known for known, _ in added_encoders(into)]
    if name not in names:
        raise InputError(f"{into}: has no encoder {name!r}, found {', '.join(names) or 'none'}")
    shutil.rmtree(into / name)


def _weights(contract: Contract, names: list[str], path: Path) -> list[str]:
    """Files of weights; probes are none."""
    probes = () if contract.probe is None else (contract.probe.input, contract.probe.output)
    suffix = _WEIGHTS[contract.format]
    found = [name for name in names if name.endswith(suffix) and name not in probes]
    alone = contract.format is not Format.TRANSFORMERS  # which may split them
    if not found or (alone and len(found) > 1):
        raise InputError(
            f"{path}: holds {len(found)} files *{suffix}, expected {'one' if alone else 'the weights'} "
            f"of format {contract.format}"
        )
    return found
