"""A study with a further modality that goes on from a finished run, for hospitals to approve."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tomli_w

from mmare.errors import InputError
from mmare.package.grow import grow, joining_scaling
from mmare.package.sealed import check_free, write_folder, zipped
from mmare.package.start import START, read_start
from mmare.study.choices import Kind
from mmare.study.specs import ModalitySpec
from mmare.study.study import STUDY_FILE
from server.release.release import release_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mmare.package.graft import Graft
    from mmare.study.choices import Scaling
    from mmare.study.study import Study

__all__ = ["extend_study"]

PARTS = 2  # of a modality: kind and width, before the encoder


def extend_study(
    run: Path, modalities: Mapping[str, str], out: Path, rounds: int, settings: Sequence[str] = ()
) -> tuple[Study, Graft]:
    """Write a folder with the study and, for its hospitals to install, the package of the run.

    Args:
        run: Folder of a finished run.
        modalities: By name, ``KIND:WIDTH`` or ``KIND:WIDTH:ENCODER``.
        out: New folder.
        rounds: In which only the new blocks train.
        settings: ``section.key=value`` over the study.

    Raises:
        InputError: If the run or a modality cannot be used; nothing is written.
    """
    check_free(out)
    start = read_start(run)
    scaling = joining_scaling(start.study)
    joining = [_modality(name, text, scaling) for name, text in modalities.items()]
    study, graft = grow(start, joining, rounds, settings)
    package = release_model(run, None)
    write_folder(out, {STUDY_FILE: tomli_w.dumps(study.to_dict()).encode(), f"{START}.zip": zipped(package)})
    return study, graft


def _modality(name: str, text: str, scaling: Scaling) -> ModalitySpec:
    kind, *rest = text.split(":")
    if kind not in list(Kind) or len(rest) not in (1, PARTS) or not rest[0].isdecimal():
        raise InputError(
            f"--modality {name}={text}: expected {'|'.join(Kind)}:WIDTH[:ENCODER], such as {name}=features:60"
        )
    encoder = rest[1] if len(rest) == PARTS else "given"
    return ModalitySpec(name, Kind(kind), int(rest[0]), encoder, scaling)
