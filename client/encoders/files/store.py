"""The encoders of a site: sealed where they are made, checked and copied where they are used."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import tomli_w
import torch
from safetensors.torch import save_file

from client.encoders.digest import sha256_of
from client.encoders.files.contract import CONTRACT
from client.encoders.files.folder import EncoderFolder, contents, open_folder
from client.encoders.files.probe import OUTPUT, check_probe, draw_probe, open_encoder, run_probe
from client.encoders.weights import read_tensors
from mmare.errors import InputError, RunError
from mmare.host.files import replacing
from mmare.study.tables import read_toml

__all__ = ["Added", "add_encoder", "convert_checkpoint", "seal_encoder"]

_CPU: Final = torch.device("cpu")
_KB_PER_MB: Final = 1024


@dataclass(frozen=True)
class Added:
    """An encoder that was checked and copied."""

    folder: EncoderFolder
    difference: float  # of the probe, relative to the largest value expected


def seal_encoder(path: Path, probe: Path | None = None) -> EncoderFolder:
    """Run a probe in float32 on the CPU; write it, what came out and the hash of every file into the folder.

    Args:
        path: Its ``encoder.toml`` may lack ``[files]`` and ``[probe]``; both are made anew.
        probe: A raw input to use instead of the drawn one: a NIfTI file, tiles as safetensors, lines of text.

    Raises:
        InputError: If the encoder cannot be opened, or gives something else than ``encoder.toml`` says;
            nothing is changed.
        RunError: If the folder cannot be written.
    """
    draft = open_folder(path, draft=True)
    old = draft.contract.probe
    try:
        with tempfile.TemporaryDirectory(dir=path, prefix=".") as scratch:
            made = replace(draft, path=Path(scratch))
            source = draw_probe(made) if probe is None else Path(shutil.copy(probe, scratch))
            before = _start_of_peak_mb()
            output = run_probe(draft, open_encoder(draft, _CPU), source)
            memory_mb = max(0, _memory_mb("VmHWM") - before)
            if not bool(output.isfinite().all()):
                raise InputError(f"{path}: the encoder gives numbers that are not finite for its probe")
            save_file({"probe": output.contiguous()}, made.path / OUTPUT)
            for name in () if old is None else (old.input, old.output):
                (path / name).unlink(missing_ok=True)
            for name in (source.name, OUTPUT):
                (made.path / name).replace(path / name)
        files = {name: sha256_of(path / name) for name in contents(path)}
        kept = {} if old is None else {"tolerance": old.tolerance}
        sealed = {"input": source.name, "output": OUTPUT, "memory_mb": memory_mb, **kept}
        content = read_toml(path / CONTRACT, "encoder") | {"files": files, "probe": sealed}
        with replacing(path / CONTRACT) as partial:
            partial.write_bytes(tomli_w.dumps(content).encode())
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from None
    return open_folder(path)


def add_encoder(path: Path, into: Path, device: torch.device) -> Added:
    """Check a folder's hashes, run its probe on a device, and copy what it lists.

    Raises:
        InputError: If a file differs, the probe gives something else, or another encoder has that name;
            nothing is changed.
        RunError: If it cannot be copied.
    """
    folder = open_folder(path)
    name = folder.contract.name
    target = into / name
    if target.exists() and not _same(target, folder):
        raise InputError(
            f"{target}: is another encoder of that name; remove it first: mmare-site encoders remove {name}"
        )
    difference = check_probe(folder, open_encoder(folder, device), device)
    if not target.exists():
        scratch = into / f".{name}.partial"
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            for file in (CONTRACT, *folder.contract.files):
                (scratch / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path / file, scratch / file)
            copied = open_folder(scratch)  # what was copied is what was checked
            scratch.replace(target)
        except OSError as error:
            raise RunError(f"{target}: cannot be written ({error.strerror or error})") from None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        folder = replace(copied, path=target)
    return Added(folder, difference)


def _same(target: Path, folder: EncoderFolder) -> bool:
    with suppress(InputError):
        return open_folder(target).fingerprint == folder.fingerprint
    return False


def convert_checkpoint(file: Path, out: Path) -> int:
    """Convert a pickled checkpoint to safetensors, reading tensors and numbers only; gives how many tensors.

    Raises:
        InputError: If it holds anything else, or there is already a file.
        RunError: If it cannot be written.
    """
    if out.exists():
        raise InputError(f"{out}: exists already")
    state = {name: value.clone().contiguous() for name, value in read_tensors(file).items()}
    try:
        with replacing(out) as partial:
            save_file(state, partial, {"format": "pt"})  # which transformers insists on
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error.strerror or error})") from None
    return len(state)


def _start_of_peak_mb() -> int:
    """Let the peak of this process begin anew; gives what it uses now, 0 where the system does not tell."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _memory_mb("VmRSS")


def _memory_mb(key: str) -> int:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1]) // _KB_PER_MB
    return 0
