"""From a simulated node to its site: partition i is the i-th site in id order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import torch

from client.data.dataset import SiteData, load_data
from client.data.site_table import SiteTable
from client.data.table_version import TableVersion
from client.encoders.registry import pick_device
from client.privacy.approvals import FixedApprovals
from client.privacy.gate import Gate
from client.privacy.masker import Masker
from client.privacy.records.audit_log import AuditLog
from client.privacy.records.ledger import FILE as LEDGER
from client.privacy.records.ledger import Ledger
from client.privacy.records.moments_record import FILE as MOMENTS
from client.privacy.records.moments_record import MomentsRecord
from client.training.kept.state import StateStore
from client.training.model_pool import ModelPool
from client.training.service import SiteService
from mmare.errors import SiteCode
from mmare.package.start import read_start
from mmare.study.choices import Kind
from mmare.wire.messages import Endpoint, Refusal, Split, encode
from server.run.request import RunRequest
from simulation.pace import PACE
from sites.federation import site_folders

if TYPE_CHECKING:
    from pathlib import Path

    from mmare.study.study import Study
    from sites.config import SiteConfig

__all__ = ["check_sites", "pooled_id", "site_of_partition"]

LOG = logging.getLogger(__name__)

_NEEDED: Final = ("federation", "set", "trainer", "start_from")  # of a run's configuration, by its sites


def pooled_id(sites: tuple[SiteConfig, ...]) -> str:
    """Id of the site that pools the train rows of all: theirs, joined. One site pools for itself."""
    return "+".join(site.id for site in sites)


def site_of_partition(node_config: Mapping[str, object], run_config: Mapping[str, object]) -> Endpoint:
    """The site service of a simulated node, made once per process and run.

    Args:
        node_config: Flower's ``partition-id`` and ``num-partitions``.
        run_config: What `_NEEDED` names, as in ``pyproject.toml``. A ``trainer`` that is no
            site is the last partition and pools the train rows of all.

    Raises:
        InputError: If the federation cannot be read.
    """
    needed = _request(*(str(run_config.get(key) or "") for key in _NEEDED))
    return _service(needed, int(str(node_config["partition-id"])), int(str(node_config["num-partitions"])))


def check_sites(request: RunRequest, sites: int) -> None:
    """Read the data of every site before a run begins, scans encoded: here they may be named.

    Raises:
        DataError: If one cannot be used.
    """
    study = request.study
    if any(modality.kind is Kind.VOLUME for modality in study.modalities):
        from client.data.embed import embed_site  # noqa: PLC0415 - readers of images take a second

        for site in site_folders(request.federation):
            embed_site(site, study)
    pools = bool(request.trainer) and sites > 1
    for partition in range(sites):
        node_config = {"partition-id": partition, "num-partitions": sites + pools}
        service = site_of_partition(node_config, request.to_config())
        if isinstance(service, SiteService):
            service.prepare(study)


@lru_cache
def _request(*values: str) -> RunRequest:
    """What a site needs of a run configuration, read once per process: runs of one study share it."""
    return RunRequest.from_config(dict(zip(_NEEDED, values, strict=True)))


@lru_cache(maxsize=4096)
def _service(request: RunRequest, partition: int, partitions: int) -> Endpoint:
    folder, study, trainer = request.federation, request.study, request.trainer
    sites = site_folders(folder)
    pools = trainer == pooled_id(sites) and len(sites) > 1
    if partitions != len(sites) + pools:
        LOG.error("%s nodes for %s sites of %s", partitions, len(sites) + pools, folder)
        return _refusing(SiteCode.NODES)
    approved = FixedApprovals([study.hash])  # a simulation agrees to its own study
    threads = max(site.threads for site in sites)  # alike, so that every backend computes the same bits
    if partition == len(sites):
        kept = folder / ".pooled"
        ledger = Ledger(kept / LEDGER)
        gate = Gate(trainer, approved, 0, AuditLog(kept / "audit.jsonl", digests=False), ledger=ledger)
        table = SiteTable(_pool(sites), TableVersion.of(*sites))
        models = _models("auto", threads, request.start_from)
        return SiteService(trainer, table, StateStore(kept, keeps=PACE.keeps), models, gate=gate)
    site = sites[partition]
    table = SiteTable(  # splits are drawn from the study's seed, so that results can be reproduced
        lambda wanted: load_data(site, wanted),
        TableVersion.of(site),
        keep=site.keep_table,
        record=MomentsRecord(site.cache / MOMENTS),
    )
    audit = AuditLog(site.cache / "audit.jsonl", digests=False)
    masker = Masker(site.id, site.cache)
    limits = (site.min_count, audit, site.max_norm, site.max_releases)
    gate = Gate(site.id, approved, *limits, masker, Ledger(site.cache / LEDGER, site.epsilon_limit))
    models = _models(site.device, threads, request.start_from)
    return SiteService(site.id, table, StateStore(site.cache, keeps=PACE.keeps), models, gate=gate)


@lru_cache
def _models(device: str, threads: int, start_from: Path) -> ModelPool:
    """One pool of models per device and process, and start model."""
    return ModelPool(pick_device(device), threads, lambda _digest: read_start(start_from))


def _pool(sites: tuple[SiteConfig, ...]) -> Callable[[Study], SiteData]:
    """Reads the train rows of all sites; their other rows stay with them, who evaluate."""

    def load(study: Study) -> SiteData:
        pooled = SiteData.pooled([load_data(site, study) for site in sites])
        empty = torch.zeros(0, dtype=torch.int64)
        return SiteData(
            pooled.embedding,
            pooled.present,
            pooled.label,
            {Split.TRAIN: pooled.rows[Split.TRAIN], Split.VAL: empty, Split.TEST: empty},
            pooled.encoders,
            bags=pooled.bags,
        )

    return load


def _refusing(code: SiteCode) -> Endpoint:
    return lambda _header, _payload: (encode(Refusal(code)), b"")
