"""A site's own configuration: ``site.toml`` as frozen dataclasses."""

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
    """Where the masks of a modality's scans come from: exactly one of the first three is set."""

    column: str | None = None  # manifest column with the path of the mask
    folder: Path | None = None  # of masks that have the file names of their scans
    command: str | None = None  # makes ``{output}`` from ``{input}``, such as SynthStrip
    timeout_s: int = 600  # of the command


@dataclass(frozen=True)
class ModalitySource:
    """How a site stores one modality: exactly one of the first three is set."""

    file: Path | None = None  # a features table for all patients, keyed by patient id
    column: str | None = None  # manifest column with the path of a scan, or with finished text
    columns: tuple[str, ...] = ()  # manifest columns that the study's prompt uses
    series: Mapping[str, str] = field(default_factory=dict)  # DICOM: plane, description, prefer, modality
    mask: MaskSource | None = None  # for scans, where the study needs masks
    um_px: float | None = None  # microns per pixel, for slides whose files lack it


@dataclass(frozen=True)
class WorkerConfig:
    """How the site worker is reached."""

    socket: Path  # a Unix socket; its folder is closed to other users
    group: str | None = None  # Unix group that may connect too, where the relay runs as another user
    grace_s: int = 30  # how long a worker that is asked to stop may finish its current message


@dataclass(frozen=True)
class MetricsConfig:
    """Where the site worker serves ``/metrics``."""

    port: int | None = None  # no metrics page without it
    address: str = "127.0.0.1"


@dataclass(frozen=True)
class CoordinatorConfig:
    """How a site joins a federation."""

    kit: Path  # folder with the site's key and the coordinator's certificate and address (``mmare-site kit``)
    runtime_port: int = 9094  # SuperNode to SuperExec on 127.0.0.1; unique on a machine


@dataclass(frozen=True)
class SiteConfig:
    """One site: its identity, data, compute resources and privacy limits.

    Paths are absolute, or relative to where the program runs.
    """

    id: str  # unique in a federation
    folder: Path  # of ``site.toml``; the paths in the file are resolved against it
    manifest: Path
    modalities: Mapping[str, ModalitySource]  # by the study's name; the site never has the others
    device: str = "auto"  # or cpu, cuda, cuda:1, …
    threads: int = 1  # CPU threads for training
    min_count: int = 5  # smallest group whose size may leave the site; the study's limit applies as well
    cache: Path = field(kw_only=True)  # for what is computed once, such as embeddings
    weights: Path | None = None  # folder filled by ``mmare-site weights import``
    max_norm: float | None = None  # largest L2 norm of a round's update that may leave; none: any finite one
    max_releases: int | None = None  # answers that may leave per study; none: as many as its approval allows
    worker: WorkerConfig = field(kw_only=True)
    metrics: MetricsConfig = MetricsConfig()
    coordinator: CoordinatorConfig = field(kw_only=True)


def load_site(path: Path) -> SiteConfig:
    """Read ``site.toml``; the paths in it are relative to its folder.

    Raises:
        DataError: If the file is missing or not TOML, has an unknown key, lacks a required one, or has a
            value of the wrong type.
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
        raise DataError(f"[{where}] series, mask and um_px describe scans, expected them beside column only")
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
    if value > 65535:  # noqa: PLR2004 - the highest port
        raise DataError(f"[{where}] {key} is {value}, expected a port from 1 to 65535")
    return value


def _whole(table: Mapping[str, Any], where: str, key: str, *, default: int, least: int) -> int:
    value = table.get(key, default)
    if type(value) is not int or value < least:  # a bool is not a number here
        raise DataError(f"[{where}] {key} is {value!r}, expected a whole number from {least} up")
    return value
