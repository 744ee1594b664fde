"""A program of ``torch.export``: loaded only if no part of it is a pickle of objects, or machine code.

``torch.export.load`` unpickles what an archive holds and evaluates its expressions of shapes, so the archive
is examined first: its records, whether tensors are raw, and that expressions are sums and products.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from typing import TYPE_CHECKING, Any, Final

import torch

from client.encoders.files.networks import IMAGE
from mmare.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from client.encoders.files.folder import EncoderFolder
    from client.encoders.files.networks import Network

__all__ = ["check_archive", "open_network"]

_RECORD: Final = re.compile(  # below the archive's own folder
    r"archive_format|archive_version|byteorder|version|\.data/.*|\.format_version|\.storage_alignment|models/model\.json"
    r"|data/sample_inputs/model\.pt|data/(weights|constants)/(model_\w+_config\.json|weight_\d+|tensor_\d+)"
)
_SAMPLE: Final = "data/sample_inputs/model.pt"
_EXPRESSION: Final = re.compile(
    r"(?:Symbol\('[suz]\d+'|(?:positive|nonnegative|integer)=True|[suz]\d+|\d+|Integer|Rational|Add|Mul|Pow|Max|Min"
    r"|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|CeilToInt|IntTrueDiv|\*\*|[-+*/(), ])*"
)
_TENSOR: Final = "tensor_"  # of constants: the others are pickled objects


def open_network(folder: EncoderFolder, device: torch.device) -> Network:
    """As `client.encoders.files.networks.open_network`."""
    check_archive(folder.weights)
    program = torch.export.load(folder.weights)
    module = program.module().to(device)
    taken = [node.name for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]

    @torch.inference_mode()
    def run(values: Mapping[str, Tensor]) -> Tensor:
        given = [values[IMAGE]] if IMAGE in values else [values[name] for name in taken if name in values]
        found = module(*(value.to(device) for value in given))
        return _only(found, folder.path)

    return run


def check_archive(path: Path) -> None:
    """Refuse an archive that could run code when it is loaded.

    Raises:
        InputError: Naming the record.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            fault = _fault(archive)
    except Exception as error:
        raise InputError(f"{path}: is no program of tensors alone ({type(error).__name__})") from error
    if fault:
        raise InputError(f"{path}: {fault}")


def _fault(archive: zipfile.ZipFile) -> str:
    """Why an archive is not loaded; empty if it can be."""
    names = archive.namelist()
    records = {name.partition("/")[2]: name for name in names}
    odd = [name for name in records if not _RECORD.fullmatch(name)]
    if odd or len(records) < len(names):
        return f"holds {(odd or names)[0]!r}, expected a graph and raw tensors alone"
    if "models/model.json" not in records:
        return "has no graph; save it with torch.export.save of this torch"
    if _SAMPLE in records:
        torch.load(  # noqa: TID251 - the library reads it; weights only, so nothing runs
            io.BytesIO(archive.read(records[_SAMPLE])), weights_only=True
        )
    tables = ((name, json.loads(archive.read(at))) for name, at in records.items() if name.endswith(".json"))
    return next((fault for name, content in tables if (fault := _fault_of(name, content))), "")


def _fault_of(name: str, content: object) -> str:
    for key, value in _pairs(content):
        foreign = key == "path_name" and "constants" in name and not str(value).startswith(_TENSOR)
        if foreign or (key == "use_pickle" and value is not False):
            return f"{name} names a pickle, which is never read; export it from plain tensors"
        if key == "expr_str" and not _EXPRESSION.fullmatch(str(value)):
            return f"{name} has a shape that is no sum or product: {str(value)[:40]!r}"
    return ""


def _pairs(content: object) -> Iterator[tuple[str, object]]:
    """Every key and value, however deep."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _only(found: Any, path: Path) -> Tensor:  # noqa: ANN401 - a program returns what it likes
    parts = list(found.values()) if isinstance(found, dict) else found
    if isinstance(parts, tuple | list) and len(parts) == 1:
        parts = parts[0]
    if not isinstance(parts, torch.Tensor):
        raise InputError(f"{path}: the program returns {type(found).__name__}, expected one tensor")
    return parts
