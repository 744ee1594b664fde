"""A hospital behind its real service and gate, for attacks by a coordinator."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
import torch

from client.privacy.approvals import ApprovalFolder
from client.privacy.records.audit_log import AuditLog
from client.worker import make_service
from mmare.models.blocks import block_tensors
from mmare.models.registry import build_model
from mmare.study.study import Study
from mmare.wire.messages import (
    Comparison,
    Refusal,
    Request,
    RollCall,
    Statistics,
    Task,
    Update,
    WireError,
    decode,
    encode,
)
from mmare.wire.tensors import global_tensors, layout_of, pack, trained_tensors, unpack
from sites.config import SiteConfig, load_site
from sites.federation import write_federation
from tests.federations import site_tables, tiny_study

LIMIT = 5
STUDY = tiny_study(privacy={"min_count": LIMIT})


_KINDS = {
    Task.DESCRIBE: RollCall,
    Task.STATISTICS: Statistics,
    Task.TRAIN: Update,
    Task.EVALUATE: Update,
    Task.COMPARE: Comparison,
}


class Hospital:
    """A site folder, its approval of one study, and a worker's service that can be restarted."""

    def __init__(
        self,
        folder,
        study: Study = STUDY,
        patients: int = 48,
        *,
        missing=0.3,
        split=True,
        edit=None,
        seed=3,
    ) -> None:
        self.study = study
        tables = site_tables("ash", study, patients, seed, missing)
        if edit is not None:
            edit(tables)
        write_federation(folder, study, [tables])
        self.site: SiteConfig = replace(load_site(folder / "ash" / "site.toml"), min_count=LIMIT)
        if not split:
            table = pd.read_csv(self.site.manifest, dtype=str)
            table.drop(columns="split").to_csv(self.site.manifest, index=False)
        self.audit = AuditLog(self.site.folder / "audit.jsonl")
        self.approvals = ApprovalFolder(self.site.folder)
        self.approvals.record(study, None)
        self.start()

    def restart(self) -> None:
        """A new worker on the same folder, after what the old one still had to write."""
        self.ask(Task.DESCRIBE)
        self.start()

    def start(self) -> None:
        """A worker's service."""
        self.service = make_service(self.site, self.approvals, AuditLog(self.audit.path))

    def ask(self, task: Task, payload: bytes = b"", *, study: Study | None = None, **fields: object):
        """The answer's header, or the code of a refusal."""
        study = study or self.study
        request = Request(task, **{"run": "run", "study": study.to_dict(), **fields})
        header, self.tensors = self.service(encode(request), payload)
        try:
            return decode(_KINDS[task], header)
        except WireError:
            return decode(Refusal, header).code

    def train(self, number: int, model=None, **fields: object):
        """An answer to a round of training from ``model``, by default the seed's own."""
        model = model or build_model(fields.get("study") or self.study)
        tensors = global_tensors(model)
        given = {"round": number, "train": True, "layout": layout_of(tensors).fingerprint, **fields}
        return self.ask(Task.TRAIN, flat(model), **given)

    def lines(self, event: str) -> list[dict]:
        """Of the audit log."""
        return [line for line in self.audit.lines() if line["event"] == event]


def read_tensors(payload: bytes, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as they travel, of these names and shapes."""
    return unpack(torch.frombuffer(bytearray(payload), dtype=torch.uint8), layout_of(like))


def sent_and_arrived(model, update: Update, payload: bytes):
    """Of the blocks of an update: the tensors of the model that was sent, and those that came back."""
    blocks = [block for block in model.blocks() if block.name in update.blocks]
    sent = block_tensors(blocks, trained_tensors(model))
    return sent, read_tensors(payload, sent)


def flat(model: torch.nn.Module) -> bytes:
    """A model's tensors as they travel."""
    return pack(global_tensors(model)).numpy().tobytes()
