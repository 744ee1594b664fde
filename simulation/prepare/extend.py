"""A federation whose sites have a further modality; its study goes on from a finished run without it."""

from __future__ import annotations

import shutil
import tomllib
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import tomli_w

from mmare.errors import DataError, InputError
from mmare.package.grow import grow, joining_scaling
from mmare.package.start import START, read_start
from mmare.study.choices import Kind
from mmare.study.specs import ModalitySpec
from mmare.study.study import STUDY_FILE
from server.monitoring.followed_run import read_run
from sites.features import load_features, write_features
from sites.federation import SITE_FILE, check_target, site_folders
from sites.manifest import load_patients

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from mmare.package.graft import Graft
    from mmare.study.study import Study
    from sites.config import SiteConfig
    from sites.features import Vectors

__all__ = ["Extended", "extend_run"]

_LEFT: Final = shutil.ignore_patterns("cache", ".pooled", "audit.*", "*.lock")  # of other runs


class Extended:
    """What was made.

    Args:
        study: With the new slots.
        graft: What it has of the run's model.
        counts: Patients who have each new modality, by site.
        strangers: Vectors of nobody, by modality.
    """

    def __init__(
        self,
        study: Study,
        graft: Graft,
        counts: Mapping[str, Mapping[str, int]],
        strangers: Mapping[str, int],
    ) -> None:
        self.study, self.graft, self.counts, self.strangers = study, graft, counts, strangers


def extend_run(
    run: Path, modalities: Mapping[str, Path], out: Path, rounds: int, settings: Sequence[str] = ()
) -> Extended:
    """Write a federation folder: the run's, with vectors of new modalities and the model to start from.

    Args:
        run: Folder of a finished run.
        modalities: By name, a table of vectors by patient, or another federation folder whose sites have it.
        out: New folder.
        rounds: In which only the new blocks train.
        settings: ``section.key=value`` over the study.

    Raises:
        InputError: If the run, its federation or a modality cannot be used; nothing is written.
    """
    check_target(out, overwrite=False)
    start = read_start(run)
    started = read_run(run).first
    source = Path(str(started.settings.get("federation", ""))) if started else Path()
    if not source.is_dir():
        raise InputError(f"{run}: its federation {source} is not there; expected the folder that it ran on")
    vectors = {name: _vectors(name, path) for name, path in modalities.items()}
    scaling = joining_scaling(start.study)
    joining = [
        ModalitySpec(name, Kind.FEATURES, len(next(iter(found.values()))), scaling=scaling)
        for name, found in vectors.items()
    ]
    sites = site_folders(source)
    held = {site.folder.name: _held(site, vectors) for site in sites}
    strangers = {
        name: len(found) - sum(len(each[name]) for each in held.values()) for name, found in vectors.items()
    }
    for name, found in vectors.items():
        if strangers[name] == len(found):
            raise DataError(f"{modalities[name]}: no patient of {source} has {name}, expected their ids")
    study, graft = grow(start, joining, rounds, settings)
    partial = out.parent / f".{out.name}.{uuid.uuid4().hex}.partial"
    try:
        shutil.copytree(source, partial, ignore=_LEFT)
        (partial / STUDY_FILE).write_bytes(tomli_w.dumps(study.to_dict()).encode())
        shutil.copytree(run / "model", partial / START)
        for folder, of_site in held.items():
            _add(partial / folder, of_site)
        if out.exists():
            out.rmdir()  # empty
        partial.rename(out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or type(error).__name__})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    counts = {
        folder: {name: len(found) for name, found in of_site.items()} for folder, of_site in held.items()
    }
    return Extended(study, graft, counts, strangers)


def _vectors(name: str, path: Path) -> Vectors:
    if not path.is_dir():
        return load_features(path)
    found: dict[str, NDArray[np.float32]] = {}
    for site in site_folders(path):
        held = site.modalities.get(name)
        if held is not None and held.file is not None:
            found |= load_features(held.file)
    if not found:
        raise DataError(f"{path}: no site has vectors of {name}, expected a federation in which one does")
    return found


def _held(site: SiteConfig, vectors: Mapping[str, Vectors]) -> dict[str, Vectors]:
    ids = load_patients(site.manifest).patient_ids
    return {name: {one: found[one] for one in ids if one in found} for name, found in vectors.items()}


def _add(folder: Path, held: Mapping[str, Vectors]) -> None:
    """Name the new vectors in a site's configuration; a site without any stays as it was."""
    config = folder / SITE_FILE
    content = tomllib.loads(config.read_text(encoding="utf-8"))
    new = {name: {"file": write_features(folder, name, found)} for name, found in held.items() if found}
    if new:
        content["modality"] = {**content.get("modality", {}), **new}
        config.write_bytes(tomli_w.dumps(content).encode())
