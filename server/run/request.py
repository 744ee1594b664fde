"""What was asked for: study and settings of a run, from Flower's run configuration."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from mmare.errors import InputError
from mmare.study.choices import Mode
from mmare.study.study import STUDY_FILE, load_study

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmare.study.study import Study

__all__ = ["RunSettings", "settings_of"]


@dataclass(frozen=True)
class RunSettings:
    """What a run is, besides its study.

    Args:
        out: Run folder.
        federation: Where the sites come from; another federation is another run.
        mode: Where the rows that train lie.
        backend: Who carries messages; noted, a run may be resumed on another.
        overwrite: Replace a run with other settings.
        trainer: Of a centralised run: the site that pools the others' rows.
        expected_nodes: Nodes to wait for; 0 where unknown.
        subsets: Whether to test every subset of modalities too.
    """

    out: Path
    federation: str
    mode: Mode = Mode.FEDERATED
    backend: str = "inprocess"
    overwrite: bool = False
    trainer: str = ""
    expected_nodes: int = 0
    subsets: bool = False


def settings_of(run_config: Mapping[str, object]) -> tuple[Study, RunSettings]:
    """Study and settings from Flower's run configuration (``pyproject.toml`` lists the keys).

    Raises:
        InputError: If a value cannot be used.
    """
    federation = str(run_config.get("federation") or "")
    source = Path(federation) if federation else _embedded()  # a folder, or a study file alone
    assignments = [part for part in str(run_config.get("set") or "").split(";") if part.strip()]
    study = load_study(source / STUDY_FILE if source.is_dir() else source).override(assignments)
    mode = str(run_config.get("mode") or Mode.FEDERATED)
    if mode not in list(Mode):
        raise InputError(f"mode must be one of {', '.join(Mode)}, found {mode!r}")
    out = Path(str(run_config.get("out") or "") or f"runs/{study.name}-{mode}-seed{study.seed}")
    return study, RunSettings(
        out=out.absolute(),
        federation=str(source.resolve()),
        mode=Mode(mode),
        backend=str(run_config.get("backend") or "flower"),
        overwrite=bool(run_config.get("overwrite") or False),
        trainer=str(run_config.get("trainer") or ""),
        expected_nodes=int(str(run_config.get("nodes") or 0)),
        subsets=bool(run_config.get("subsets") or False),
    )


def _embedded() -> Path:
    for entry in entry_points(group="mmare.embedded_federation"):
        folder: Path = entry.load()()
        return folder
    raise InputError("federation is empty and no embedded one is installed")
