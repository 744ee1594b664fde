"""Read the model that a study starts from, a package or a finished run; without torch."""

from __future__ import annotations

import hashlib
import json
import struct
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from mmare.errors import InputError
from mmare.package.sealed import SEAL, read_sealed
from mmare.study.study import STUDY_FILE, parse_study
from mmare.study.tables import TableError

if TYPE_CHECKING:
    from pathlib import Path

    from mmare.study.study import Study

__all__ = ["INSTALLED", "START", "StartModel", "find_start", "installed_start", "read_start"]

INSTALLED: Final = "models"  # packages in a site's folder
START: Final = "start"  # beside a study.toml that names a start model: a copy of that model
_MODEL, _CARD, _WEIGHTS = "model", "model.json", "model.safetensors"  # of a run: `server.store.model_file`


@dataclass(frozen=True)
class StartModel:
    """A trained model and where it comes from.

    Args:
        source: Where it was read, for messages.
        study: As it was trained.
        weights: In the safetensors format.
        run: That trained it.
        package: Digest of the package; empty if it was read from a run.
        encoders: Fingerprint by modality, as far as it is known.
        before: The lineage of the model that it started from itself, if it did.
    """

    source: str
    study: Study
    weights: bytes = field(repr=False)
    run: str = ""
    package: str = ""
    encoders: Mapping[str, str] = field(default_factory=dict)
    before: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the study's hash and each tensor; the same for a run and the package made of it."""
        found = hashlib.sha256(self.study.hash.encode())
        (length,) = struct.unpack_from("<Q", self.weights)
        header = json.loads(self.weights[8 : 8 + length])
        header.pop("__metadata__", None)
        for name in sorted(header):
            entry = header[name]
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            found.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
            found.update(self.weights[start:end])
        return found.hexdigest()

    def lineage(self) -> dict[str, Any]:
        """What a run that starts from it writes down."""
        told = {
            "digest": self.digest,
            "study": self.study.name,
            "study_hash": self.study.hash,
            "run": self.run,
            "package": self.package,
            "start": dict(self.before),
        }
        return {name: value for name, value in told.items() if value}


def read_start(path: Path) -> StartModel:
    """Read a package (a folder or a zip) or a finished run; files are checked against their digests.

    Raises:
        InputError: If it is neither, or a file is damaged.
    """
    if path.is_file() or (path / SEAL).is_file():
        read = _of_package
    elif (path / _MODEL / _CARD).is_file() or (path / _CARD).is_file():
        read = _of_run
    else:
        raise InputError(f"{path}: no start model, expected a model package or the folder of a finished run")
    try:
        start = read(path)
        assert start.digest  # noqa: S101 - reads the header of the weights
    except (OSError, KeyError, TypeError, ValueError, TableError, struct.error) as error:
        raise InputError(
            f"{path}: cannot be read as a start model ({type(error).__name__}: {error})"
        ) from None
    return start


def find_start(folder: Path) -> Path | None:
    """The start model that lies beside a study, if one does."""
    beside = (folder / START, folder / f"{START}.zip")
    return next((path for path in beside if path.exists()), None)


def installed_start(folder: Path, digest: str) -> StartModel | None:
    """The start model of this digest among the packages installed in a site's folder."""
    for path in sorted((folder / INSTALLED).glob("*")):
        if (path / SEAL).is_file() and (start := read_start(path)).digest == digest:
            return start
    return None


def _of_package(path: Path) -> StartModel:
    sealed = read_sealed(path)
    study = parse_study(tomllib.loads(sealed.files[STUDY_FILE].decode()), source=f"{path}: {STUDY_FILE}")
    made = json.loads(sealed.files["encoders.json"])
    encoders = {name: str(fact["fingerprint"]) for name, fact in made.items()}
    before = json.loads(sealed.files["results.json"]).get("start", {})
    weights = sealed.files["weights.safetensors"]
    return StartModel(str(path), study, weights, sealed.facts.run, sealed.digest, encoders, before)


def _of_run(path: Path) -> StartModel:
    folder = path / _MODEL if (path / _MODEL).is_dir() else path
    card = json.loads((folder / _CARD).read_text(encoding="utf-8"))
    weights = (folder / _WEIGHTS).read_bytes()
    if hashlib.sha256(weights).hexdigest() != card["weights_sha256"]:
        raise ValueError(f"{_WEIGHTS} was changed: its SHA-256 is not the one in {_CARD}")
    study = parse_study(card["study"], source=str(folder / _CARD))
    return StartModel(
        *(str(path), study, weights, str(card.get("run", ""))),
        encoders=card.get("encoders", {}),
        before=card.get("start", {}),
    )
