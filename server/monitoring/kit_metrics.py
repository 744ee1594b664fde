"""Metrics of a deployment, from the coordinator's folder: certificates, sites, programs and Flower's state.

All are read from files at each scrape, so they are available whichever program has died.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil
from cryptography import x509

from mmare.host.locks import is_held
from mmare.host.metric_families import Kind, Metric, Sample
from mmare.host.metric_labels import OTHER, Names
from server.membership.kit import PROXY, SUPEREXEC, SUPERLINK
from server.monitoring.flower_state import read_flower_state
from server.monitoring.parts import one_of

__all__ = ["KIT_METRICS", "KitReader"]

PROGRAMS: Final = (SUPERLINK, SUPEREXEC, PROXY)
STATES: Final = ("admitted", "revoked")
RUN_STATUSES: Final = ("pending", "starting", "running", "completed", "failed", "stopped")
NODE_STATUSES: Final = ("online", "offline", "registered", "unregistered")
MOST_SITES: Final = 1000
_CERTIFICATES: Final = {"server": "server.crt", "authority": "ca.crt"}
_PROCESSES: Final = "state/processes.json"  # running programs, by server.deployment.programs
_LOCK: Final = "state/start.lock"  # held by server.deployment.start while it supervises them
_DATABASE: Final = "state/superlink.db"
_TICKS: Final = re.compile(r"[0-9]{1,15}")  # since boot
_G: Final = Kind.GAUGE

KIT_METRICS: Final = (
    Metric(
        "mmare_certificate_expiry_timestamp_seconds",
        _G,
        "Expiry of a certificate of the coordinator: its own, or that of its authority.",
        ("certificate",),
    ),
    Metric("mmare_kit_sites", _G, "Sites in the coordinator's folder, by whether they may join.", ("state",)),
    Metric(
        "mmare_deployment_program_up",
        _G,
        "1 while a program of the deployment runs, 0 after it ended.",
        ("program",),
    ),
    Metric(
        "mmare_deployment_program_start_timestamp_seconds",
        _G,
        "Start of a running program of the deployment.",
        ("program",),
    ),
    Metric("mmare_flower_run_status", _G, "1 for the state of the last run at Flower.", ("status",)),
    Metric("mmare_flower_nodes", _G, "Nodes that Flower knows, by state.", ("status",)),
    Metric("mmare_flower_node_online", _G, "1 while a site is online according to Flower.", ("site",)),
)


class KitReader:
    """Reads metrics from a coordinator's folder; missing or damaged files give none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sites = Names(MOST_SITES)
        self._seen: set[str] = set()  # programs that have ever run

    def samples(self) -> Iterator[Sample]:
        """Values of the metrics."""
        for name, file in _CERTIFICATES.items():
            ends = _expiry(self._folder / file)
            if ends is not None:
                yield Sample("mmare_certificate_expiry_timestamp_seconds", (name,), ends)
        records = [_object(path) for path in sorted((self._folder / "sites").glob("*.json"))]
        states = Counter(str(record.get("state")) for record in records)
        for state in STATES:
            yield Sample("mmare_kit_sites", (state,), float(states[state]))
        yield from self._programs()
        yield from self._flower(records)

    def _programs(self) -> Iterator[Sample]:
        """Process ids are not used: the exporter may run in another namespace."""
        found = _object(self._folder / _PROCESSES)
        self._seen |= found.keys() & set(PROGRAMS)
        supervised = False
        with suppress(OSError):  # of another user
            supervised = is_held(self._folder / _LOCK)
        for name in sorted(self._seen):
            runs = supervised and name in found
            yield Sample("mmare_deployment_program_up", (name,), float(runs))
            entry = found.get(name)
            ticks = entry.get("started") if isinstance(entry, dict) else None
            if runs and isinstance(ticks, str) and _TICKS.fullmatch(ticks):
                since = psutil.boot_time() + int(ticks) / os.sysconf("SC_CLK_TCK")
                yield Sample("mmare_deployment_program_start_timestamp_seconds", (name,), since)

    def _flower(self, records: list[Mapping[str, Any]]) -> Iterator[Sample]:
        state = read_flower_state(self._folder / _DATABASE, time.time())
        if state is None:
            return
        if state.run is not None:
            status = one_of(RUN_STATUSES, state.run)
            for each in (*RUN_STATUSES, OTHER):
                yield Sample("mmare_flower_run_status", (each,), float(each == status))
        statuses = Counter(one_of(NODE_STATUSES, status) for status in state.nodes.values())
        for each in (*NODE_STATUSES, OTHER):
            yield Sample("mmare_flower_nodes", (each,), float(statuses[each]))
        online: dict[str, float] = {}
        for record in records:
            node, site = record.get("node_id"), self._sites(record.get("site"))
            if record.get("state") == "admitted" and type(node) is int and site != OTHER:
                online.setdefault(site, float(state.nodes.get(node) == "online"))
        for site, value in online.items():
            yield Sample("mmare_flower_node_online", (site,), value)


def _expiry(path: Path) -> float | None:
    """Earliest expiry of the certificates in a file."""
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):
        return None
    return min(each.not_valid_after_utc.timestamp() for each in found)


def _object(path: Path) -> Mapping[str, Any]:
    """A file's JSON object; an empty one if it has none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
