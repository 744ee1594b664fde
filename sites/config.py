"""A site's own configuration: ``site.toml`` as frozen dataclasses."""

from __future__ import annotations

import grp
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

_TABLES = ("site", "data", "modality", "compute", "policy", "worker", "metrics", "coordinator", "peers")

# An id names folders, journal entries and metric labels: letters, digits, dot, dash, underscore.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_KEY = re.compile(r"[0-9a-f]{64}")  # X25519, public, in hex digits


@dataclass(frozen=True)
class MaskSource:
    """Where the masks of a modality's scans come from: exactly one of the first three is set."""

    column: str | None = None  # manifest column with the path of the mask
    folder: Path | None = None  # of masks that have the file names of their scans
    command: str | None = None  # makes ``{output}`` from ``{input}``, such as SynthStrip
    timeout_s: int = 600  # of the command


@dataclass(frozen=True)
class ModalitySource:
    """How a site stores one modality: exactly one of the first five is set."""

    file: Path | None = None  # a features table for all patients, keyed by patient id
    column: str | None = None  # manifest column with the path of a scan, or with finished text
    columns: tuple[str, ...] = ()  # manifest columns that the study's prompt uses, or each with a scan
    table: Path | None = None  # one row a scan: patient_id, modality, file, and date if it is known
    scans: Path | None = None  # of each patient a folder with the patient's id, in which each entry is a scan
    series: Mapping[str, str] = field(default_factory=dict)  # DICOM: plane, description, prefer, modality
    mask: MaskSource | None = None  # for scans, where the study needs masks
    um_px: float | None = None  # microns per pixel, for slides whose files lack it
    encoding: Path | None = None  # of ``file``: how columns of a table became its vectors
    encoder: Path | None = None  # folder of an encoder from a file that is not among the weights


@dataclass(frozen=True)
class WorkerConfig:
    """How the site worker is reached."""

    socket: Path  # a Unix socket; its folder is closed to other users
    group: str | None = None  # Unix group that may connect too, where the relay runs as another user
    grace_s: int = 30  # how long a worker that is asked to stop may finish its current message
    spool: Path | None = None  # instead of the socket: a folder that worker and relay share across machines

    @property
    def group_id(self) -> int | None:
        """Number of the group; raises `DataError` if this machine does not have it."""
        try:
            return None if self.group is None else grp.getgrnam(self.group).gr_gid
        except KeyError:
            raise DataError(f"[worker] group is {self.group!r}, which this machine does not have") from None


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
    # As people write it, where the id cannot say it; it never leaves the site.
    display_name: str = field(kw_only=True, default="")
    folder: Path  # of ``site.toml``; the paths in the file are resolved against it
    manifest: Path
    modalities: Mapping[str, ModalitySource]  # by the study's name; the site never has the others
    device: str = "auto"  # or cpu, cuda, cuda:1, …
    threads: int = 1  # CPU threads for training
    min_count: int = 5  # smallest group whose size may leave the site; the study's limit applies as well
    cache: Path = field(kw_only=True)  # for what is computed once, such as embeddings
    keep_runs: int = 20  # runs that do not end, whose state the worker keeps
    keep_days: int = 90  # since such a run was last heard of
    weights: Path | None = None  # folder filled by ``mmare-site weights import``
    max_norm: float | None = None  # largest L2 norm of a round's update that may leave; none: any finite one
    max_releases: int | None = None  # answers that may leave per study; none: as many as its approval allows
    epsilon_limit: float | None = None  # of all studies with differential privacy together; none: any
    keep_table: bool = False  # whether a run goes on with the table that it began with, if that changes
    worker: WorkerConfig = field(kw_only=True)
    metrics: MetricsConfig = MetricsConfig()
    coordinator: CoordinatorConfig = field(kw_only=True)
    peers: Mapping[str, str] = field(default_factory=dict)  # keys that secure sums are limited to, by site


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
    site = _Section(content, "site", ("id", "display_name"), folder)
    data = _Section(content, "data", ("manifest",), folder)
    compute = _Section(
        content, "compute", ("device", "cache", "threads", "weights", "keep_runs", "keep_days"), folder
    )
    policy = _Section(
        content,
        "policy",
        ("min_count", "max_norm", "max_releases", "epsilon_limit", "on_table_change"),
        folder,
    )
    worker = _Section(content, "worker", ("socket", "group", "grace_s", "spool"), folder)
    metrics = _Section(content, "metrics", ("port", "address"), folder)
    coordinator = _Section(content, "coordinator", ("kit", "runtime_port"), folder)
    peers = _Section(content, "peers", tuple(content.get("peers", ())), folder)
    identity = site.text("id")
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
        display_name=site.text("display_name") if "display_name" in site else "",
        folder=folder,
        manifest=data.path("manifest"),
        modalities={name: _source(name, entry, folder) for name, entry in modalities.items()},
        device=compute.text("device", "auto"),
        threads=compute.whole("threads", 1, least=1),
        min_count=policy.whole("min_count", 5, least=0),
        cache=compute.path("cache", "cache"),
        keep_runs=compute.whole("keep_runs", 20, least=1),
        keep_days=compute.whole("keep_days", 90, least=1),
        weights=compute.path("weights") if "weights" in compute else None,
        max_norm=policy.number("max_norm") if "max_norm" in policy else None,
        max_releases=policy.whole("max_releases", 1, least=1) if "max_releases" in policy else None,
        epsilon_limit=policy.number("epsilon_limit") if "epsilon_limit" in policy else None,
        keep_table=policy.one_of("on_table_change", ("end", "keep")) == "keep",
        worker=WorkerConfig(
            socket=worker.path("socket", "run/worker.sock"),
            group=worker.text("group") if "group" in worker else None,
            grace_s=worker.whole("grace_s", 30, least=0),
            spool=worker.path("spool") if "spool" in worker else None,
        ),
        peers={name: _key(name, peers.text(name)) for name in content.get("peers", {})},
        metrics=MetricsConfig(
            port=metrics.port("port") if "port" in metrics else None,
            address=metrics.text("address", "127.0.0.1"),
        ),
        coordinator=CoordinatorConfig(
            kit=coordinator.path("kit", "kit"), runtime_port=coordinator.port("runtime_port", 9094)
        ),
    )


def _key(site: str, text: str) -> str:
    if not _KEY.fullmatch(text):
        raise DataError(
            f"[peers] {site} is {text!r}, expected the 64 digits that its mmare-site approve shows"
        )
    return text


def _source(name: str, entry: object, folder: Path) -> ModalitySource:
    where = f"modality.{name}"
    if not isinstance(entry, Mapping):
        raise DataError(f"[{where}] must be a table, found {entry!r}")
    known = ("file", "column", "columns", "table", "folder")
    section = _Section(
        {where: entry}, where, (*known, "series", "mask", "um_px", "encoding", "encoder"), folder
    )
    given = section.only(known)
    if given != "file" and "encoding" in section:
        raise DataError(f"[{where}] encoding describes vectors, expected it beside file only")
    if given == "file" and "encoder" in section:
        raise DataError(f"[{where}] encoder makes vectors, which a file holds already")
    if given == "file" and not set(entry) <= {given, "encoding"}:
        raise DataError(f"[{where}] series, mask and um_px describe scans, expected them beside column only")
    if given == "file":
        encoding = section.path("encoding") if "encoding" in section else None
        return ModalitySource(file=section.path("file"), encoding=encoding)
    series = _Section(entry, "series", ("plane", "description", "prefer", "modality"), folder, where)
    return ModalitySource(
        column=section.text("column") if given == "column" else None,
        columns=_columns(entry["columns"], where) if given == "columns" else (),
        table=section.path("table") if given == "table" else None,
        scans=section.path("folder") if given == "folder" else None,
        series={key: series.text(key) for key in series.table},
        mask=_mask(entry, where, folder) if "mask" in section else None,
        um_px=section.number("um_px") if "um_px" in section else None,
        encoder=section.path("encoder") if "encoder" in section else None,
    )


def _columns(columns: object, where: str) -> tuple[str, ...]:
    valid = isinstance(columns, list) and columns and all(isinstance(item, str) and item for item in columns)
    if not isinstance(columns, list) or not valid:
        raise DataError(f"[{where}] columns is {columns!r}, expected a list of column names")
    if len(set(columns)) != len(columns):
        raise DataError(f"[{where}] columns names one column twice: {columns!r}")
    return tuple(columns)


def _mask(entry: Mapping[str, Any], where: str, folder: Path) -> MaskSource:
    known = ("column", "folder", "command")
    section = _Section(entry, "mask", (*known, "timeout_s"), folder, where)
    given = section.only(known)
    text = section.text(given)
    return MaskSource(
        column=text if given == "column" else None,
        folder=folder / text if given == "folder" else None,
        command=text if given == "command" else None,
        timeout_s=section.whole("timeout_s", 600, least=1),
    )


class _Section:
    """One table of the file, whose values are validated as they are read."""

    def __init__(
        self, content: Mapping[str, Any], name: str, known: tuple[str, ...], folder: Path, parent: str = ""
    ) -> None:
        self.table: Mapping[str, Any] = content.get(name, {})
        self._where, self._folder = f"[{parent}.{name}]" if parent else f"[{name}]", folder
        if not isinstance(self.table, Mapping):
            raise DataError(f"{self._where[1:-1]} must be a table, found {self.table!r}")
        _check_keys(self.table, known, self._where, "key")

    def __contains__(self, key: str) -> bool:
        return key in self.table

    def only(self, keys: tuple[str, ...]) -> str:
        """The one of several keys that is given."""
        given = [key for key in keys if key in self.table]
        if len(given) != 1:
            raise DataError(
                f"{self._where} has {len(given)} of the keys {', '.join(keys)}, expected exactly one"
            )
        return given[0]

    def text(self, key: str, default: str | None = None) -> str:
        value = self.table.get(key, default)
        if value is None:
            raise DataError(f"{self._where} lacks the key {key!r}")
        if not isinstance(value, str) or not value:
            raise DataError(f"{self._where} {key} is {value!r}, expected text")
        return value

    def one_of(self, key: str, known: tuple[str, ...]) -> str:
        value = self.text(key, known[0])
        if value not in known:
            raise DataError(f"{self._where} {key} is {value!r}, expected one of {', '.join(known)}")
        return value

    def path(self, key: str, default: str | None = None) -> Path:
        return self._folder / self.text(key, default)

    def number(self, key: str) -> float:
        value = self.table[key]
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise DataError(f"{self._where} {key} is {value!r}, expected a positive number")
        return float(value)

    def whole(self, key: str, default: int, *, least: int) -> int:
        value = self.table.get(key, default)
        if type(value) is not int or value < least:  # a bool is not a number here
            raise DataError(f"{self._where} {key} is {value!r}, expected a whole number from {least} up")
        return value

    def port(self, key: str, default: int = 0) -> int:
        value = self.whole(key, default, least=1)
        if value > 65535:  # noqa: PLR2004 - the highest port
            raise DataError(f"{self._where} {key} is {value}, expected a port from 1 to 65535")
        return value


def _check_keys(table: Mapping[str, Any], known: tuple[str, ...], where: str, kind: str) -> None:
    for key in table:
        if key not in known:
            raise DataError(f"{where} has an unknown {kind} {key!r}, expected one of {', '.join(known)}")
