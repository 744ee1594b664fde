"""``mmare-sim gain``: what each site gains by joining, paired on its own test rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.data.dataset import load_data
from client.encoders.registry import pick_device
from client.training.kept.state import StateStore
from client.training.model_pool import ModelPool
from client.training.service import SiteService
from mmare.errors import InputError
from mmare.host.files import replacing
from mmare.study.study import STUDY_FILE, load_study
from mmare.wire.tensors import global_tensors
from server.monitoring.followed_run import read_run
from server.rounds.fleet import Answer
from server.rounds.gain import gains
from server.rounds.roll_call import roll_call
from server.store.journal import Journal
from server.store.model_file import load_model
from simulation.report.run_report import GAIN, write_report
from sites.federation import site_folders

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mmare.study.study import Study
    from mmare.wire.messages import Endpoint
    from sites.config import SiteConfig

__all__ = ["compare_runs"]


class _Sites:
    """The simulated sites of a federation as a fleet, called directly."""

    def __init__(self, services: Sequence[Endpoint]) -> None:
        self._services = services

    def nodes(self, at_least: int, deadline_s: float) -> Sequence[int]:  # noqa: ARG002 - of the protocol
        """All nodes, at once."""
        return range(len(self._services))

    def ask(
        self,
        requests: Mapping[int, str],
        payload: bytes,
        deadline_s: float,  # noqa: ARG002 - likewise
        round_bytes: int = 0,  # noqa: ARG002 - likewise
    ) -> Iterator[Answer]:
        """Ask the nodes one after the other."""
        for node, header in requests.items():
            yield Answer(node, *self._services[node](header, payload))


def compare_runs(joined: Path, alone: Path) -> dict[str, Any]:
    """Compare a federated (or centralised) run with a local one; write its ``gain.json`` and report.

    Raises:
        InputError: If a folder is no such run, or they are of different studies or federations.
        RunError: If no site could compare.
    """
    federation = _federation(joined)
    if _federation(alone) != federation:
        raise InputError(f"{alone}: a run over {_federation(alone)}, expected {federation}")
    study, other = (_without_privacy(load_study(run / STUDY_FILE)) for run in (joined, alone))
    if (study.hash, study.seed) != (other.hash, other.seed):
        raise InputError(f"{alone}: a run of another study or seed than {joined}")
    folders = sorted(path.parent.parent for path in alone.glob("local/*/model/model.json"))
    if not folders:
        raise InputError(
            f"{alone}: no model that a site trained alone; expected a finished run of mode local"
        )
    fleet = _Sites([_service(site, study) for site in site_folders(federation)])
    journal = Journal(joined / "gain.jsonl", "gain")
    members = roll_call(fleet, study, "gain", journal, 1)
    found = gains(
        fleet,
        study,
        "gain",
        members,
        global_tensors(load_model(joined / "model")),
        {folder.name: global_tensors(load_model(folder / "model")) for folder in folders},
    )
    with replacing(joined / GAIN) as partial:
        partial.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    write_report(joined)
    return found


def _without_privacy(study: Study) -> Study:
    """Compared here on the sites' own rows: nothing is summed, and nothing is hidden."""
    return replace(study, privacy=replace(study.privacy, secure_sum=False, dp=None))


def _service(site: SiteConfig, study: Study) -> SiteService:
    return SiteService(
        site.id,
        lambda wanted: load_data(site, wanted),
        StateStore(site.cache),
        ModelPool(pick_device(site.device), site.threads),
        site.min_count,
        frozenset({study.hash}),
    )


def _federation(run: Path) -> Path:
    started = read_run(run).first
    if started is None:
        raise InputError(f"{run}: no run folder")
    return Path(started.settings["federation"])
