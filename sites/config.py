"""What a hospital says of its own folder: ``site.toml`` as a frozen dataclass."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmare.errors import DataError
from mmare.study.tables import TableError, read_toml

__all__ = [
    "CoordinatorConfig",
    "MaskSource",
    "MetricsConfig",
    "ModalitySource",
    "SiteConfig",
    "WorkerConfig",
    "load_site",
]

_TABLES = ("site", "data", "modality", "compute", "policy", "worker", "metrics", "coordinator")

# An id names folders, journal entries and metric labels: letters, digits, dot, dash, underscore.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class MaskSource:
    """How a site holds the masks of a modality's scans: exactly one of the first three is set.

    Args:
        column: Manifest column with a mask's path.
        folder: Of masks that are named as their scans.
        command: Program that makes one, with ``{input}`` and ``{output}``, such as SynthStrip.
        timeout_s: After which a program that still runs is ended.
    """

    column: str | None = None
    folder: Path | None = None
    command: str | None = None
    timeout_s: int = 600


@dataclass(frozen=True)
class ModalitySource:
    """How a site holds one modality: exactly one of the three is set.

    Args:
        file: Of features: one table for all patients, keyed by patient id; absolute or relative to where the
            program runs, like every path here.
        column: Manifest column with a scan's path, or with ready text.
        columns: Of text: the manifest columns that the study's prompt uses.
        series: Of folders of DICOM files: which series is taken (plane, description, prefer, modality).
        mask: Of scans, where the study wants masks.
        um_px: Of slides whose files do not say it: microns per pixel.
    """

    file: Path | None = None
    column: str | None = None
    columns: tuple[str, ...] = ()
    series: Mapping[str, str] = field(default_factory=dict)
    mask: MaskSource | None = None
    um_px: float | None = None


@dataclass(frozen=True)
class WorkerConfig:
    """How the site worker is reached.

    Args:
        socket: The Unix socket. Its folder is closed to other users.
        group: Unix group whose members may ask too, where relays run as another user; none for the owner
            alone.
        grace_s: How long a worker that is told to stop goes on with the message in hand.
    """

    socket: Path
    group: str | None = None
    grace_s: int = 30


@dataclass(frozen=True)
class MetricsConfig:
    """Where the site worker tells Prometheus what it does.

    Args:
        port: Of ``/metrics``; none for no such page.
        address: To listen on; this machine alone by default.
    """

    port: int | None = None
    address: str = "127.0.0.1"


@dataclass(frozen=True)
class CoordinatorConfig:
    """How a site joins a federation.

    Args:
        kit: Folder of the site's key, the coordinator's certificate and address (``mmare-site kit``).
        runtime_port: On 127.0.0.1, between SuperNode and SuperExec; another one for each site of a machine.
    """

    kit: Path
    runtime_port: int = 9094


@dataclass(frozen=True)
class SiteConfig:
    """One site: who it is, where its data lie, what it computes with, and its own limits.

    Args:
        id: Unique in a federation.
        folder: Where ``site.toml`` lies; every other path is resolved against it.
        manifest: CSV with one row per patient.
        modalities: By the study's modality name; an absent name is a modality that the site never has.
        device: ``auto``, ``cpu``, ``cuda``, …
        threads: CPU threads that training may use.
        min_count: Smallest group whose size leaves the site; it can only be stricter than the study's.
        cache: Folder for what is computed once, such as embeddings.
        weights: Folder that ``mmare-site weights import`` fills; none where no encoder needs weights.
        max_norm: Longest update (L2 norm of the change of a round) that leaves; none for any finite one.
        max_releases: Answers that may leave for one study; none for what its approval says.
        worker: How the site worker is reached.
        metrics: Where it is watched.
        coordinator: How the site joins a federation.
    """

    id: str
    folder: Path
    manifest: Path
    modalities: Mapping[str, ModalitySource]
    device: str = "auto"
    threads: int = 1
    min_count: int = 5
    cache: Path = field(kw_only=True)
    weights: Path | None = None
    max_norm: float | None = None
    max_releases: int | None = None
    worker: WorkerConfig = field(kw_only=True)
    metrics: MetricsConfig = MetricsConfig()
    coordinator: CoordinatorConfig = field(kw_only=True)


def load_site(path: Path) -> SiteConfig:
    """Read ``site.toml``.

    Args:
        path: The file itself. Its folder is what the paths in it are relative to.

    Raises:
        DataError: If the file is missing, is not TOML, has an unknown table or key, lacks a needed one, or
            has a value of the wrong kind.
    """
    try:
        content = read_toml(path, "site")
    except TableError as error:
        raise DataError(str(error)) from None
    try:
        return _parse(content, path.parent)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _parse(content: Mapping[str, Any], folder: Path) -> SiteConfig:
    _check_keys(content, _TABLES, "the file", "table")
    site = _table(content, "site", ("id",))
    data = _table(content, "data", ("manifest",))
    compute = _table(content, "compute", ("device", "cache", "threads", "weights"))
    policy = _table(content, "policy", ("min_count", "max_norm", "max_releases"))
    worker = _table(content, "worker", ("socket", "group", "grace_s"))
    metrics = _table(content, "metrics", ("port", "address"))
    coordinator = _table(content, "coordinator", ("kit", "runtime_port"))
    identity = _text(site, "site", "id")
    if not _ID.fullmatch(identity):
        raise DataError(
            f"[site] id is {identity!r}, expected letters, digits, dot, dash and underscore only, "
            "starting with a letter or digit"
        )
    modalities = content.get("modality", {})
    if not isinstance(modalities, Mapping):
        raise DataError(f"modality must be [modality.NAME] tables, found {modalities!r}")
    if not modalities:
        raise DataError("no [modality.NAME] table: a site needs at least one modality")
    return SiteConfig(
        id=identity,
        folder=folder,
        manifest=folder / _text(data, "data", "manifest"),
        modalities={name: _source(name, entry, folder) for name, entry in modalities.items()},
        device=_text(compute, "compute", "device", "auto"),
        threads=_whole(compute, "compute", "threads", default=1, least=1),
        min_count=_whole(policy, "policy", "min_count", default=5, least=0),
        cache=folder / _text(compute, "compute", "cache", "cache"),
        weights=folder / _text(compute, "compute", "weights") if "weights" in compute else None,
        max_norm=_number(policy, "policy", "max_norm") if "max_norm" in policy else None,
        max_releases=_whole(policy, "policy", "max_releases", default=1, least=1)
        if "max_releases" in policy
        else None,
        worker=WorkerConfig(
            socket=folder / _text(worker, "worker", "socket", "run/worker.sock"),
            group=_text(worker, "worker", "group") if "group" in worker else None,
            grace_s=_whole(worker, "worker", "grace_s", default=30, least=0),
        ),
        metrics=MetricsConfig(
            port=_port(metrics, "metrics", "port") if "port" in metrics else None,
            address=_text(metrics, "metrics", "address", "127.0.0.1"),
        ),
        coordinator=CoordinatorConfig(
            kit=folder / _text(coordinator, "coordinator", "kit", "kit"),
            runtime_port=_port(coordinator, "coordinator", "runtime_port", 9094),
        ),
    )


def _source(name: str, entry: object, folder: Path) -> ModalitySource:
    """One ``[modality.NAME]`` table."""
    where = f"modality.{name}"
    if not isinstance(entry, Mapping):
        raise DataError(f"[{where}] must be a table, found {entry!r}")
    known = ("file", "column", "columns")
    _check_keys(entry, (*known, "series", "mask", "um_px"), f"[{where}]", "key")
    given = [key for key in known if key in entry]
    if len(given) != 1:
        raise DataError(f"[{where}] has {len(given)} of the keys {', '.join(known)}, expected exactly one")
    if given != ["column"] and len(entry) != 1:
        raise DataError(f"[{where}] series, mask and um_px go with column: they are about scans")
    if "file" in entry:
        return ModalitySource(file=folder / _text(entry, where, "file"))
    if "column" in entry:
        series = _table(entry, "series", ("plane", "description", "prefer", "modality"))
        return ModalitySource(
            column=_text(entry, where, "column"),
            series={key: _text(series, f"{where}.series", key) for key in series},
            mask=_mask(_table(entry, "mask", ("column", "folder", "command", "timeout_s")), where, folder)
            if "mask" in entry
            else None,
            um_px=_number(entry, where, "um_px") if "um_px" in entry else None,
        )
    columns = entry["columns"]
    valid = isinstance(columns, list) and columns and all(isinstance(item, str) and item for item in columns)
    if not valid:
        raise DataError(f"[{where}] columns is {columns!r}, expected a list of column names")
    if len(set(columns)) != len(columns):
        raise DataError(f"[{where}] columns names one column twice: {columns!r}")
    return ModalitySource(columns=tuple(columns))


def _mask(table: Mapping[str, Any], where: str, folder: Path) -> MaskSource:
    """One ``[modality.NAME.mask]`` table."""
    where = f"{where}.mask"
    known = ("column", "folder", "command")
    given = [key for key in known if key in table]
    if len(given) != 1:
        raise DataError(f"[{where}] has {len(given)} of the keys {', '.join(known)}, expected exactly one")
    text = _text(table, where, given[0])
    return MaskSource(
        column=text if "column" in given else None,
        folder=folder / text if "folder" in given else None,
        command=text if "command" in given else None,
        timeout_s=_whole(table, where, "timeout_s", default=600, least=1),
    )


def _table(content: Mapping[str, Any], name: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    table = content.get(name, {})
    if not isinstance(table, Mapping):
        raise DataError(f"{name} must be a table, found {table!r}")
    _check_keys(table, known, f"[{name}]", "key")
    return table


def _check_keys(table: Mapping[str, Any], known: tuple[str, ...], where: str, kind: str) -> None:
    for key in table:
        if key not in known:
            raise DataError(f"{where} has an unknown {kind} {key!r}, expected one of {', '.join(known)}")


def _text(table: Mapping[str, Any], where: str, key: str, default: str | None = None) -> str:
    value = table.get(key, default)
    if value is None:
        raise DataError(f"[{where}] lacks the key {key!r}")
    if not isinstance(value, str) or not value:
        raise DataError(f"[{where}] {key} is {value!r}, expected text")
    return value


def _number(table: Mapping[str, Any], where: str, key: str) -> float:
    value = table[key]
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise DataError(f"[{where}] {key} is {value!r}, expected a positive number")
    return float(value)


def _port(table: Mapping[str, Any], where: str, key: str, default: int = 0) -> int:
    value = _whole(table, where, key, default=default, least=1)
    if value > 65535:  # noqa: PLR2004 - the highest there is
        raise DataError(f"[{where}] {key} is {value}, expected a port from 1 to 65535")
    return value


def _whole(table: Mapping[str, Any], where: str, key: str, *, default: int, least: int) -> int:
    value = table.get(key, default)
    if type(value) is not int or value < least:  # a bool is no number here
        raise DataError(f"[{where}] {key} is {value!r}, expected a whole number from {least} up")
    return value
