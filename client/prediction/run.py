"""Predict a site's patients: inputs, model, a line each in the audit log, then the table and the page."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any

import torch

from client.data.site_secret import site_secret
from client.encoders.registry import pick_device
from client.prediction.inputs import site_inputs
from client.prediction.page import page_of
from client.prediction.predict import predict
from client.prediction.table import table_bytes
from client.privacy.audit_log import Entry, Event, log_of
from mmare.errors import InputError, RunError
from mmare.host.files import replacing
from sites.manifest import load_patients

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from client.prediction.predict import Predictions
    from client.prediction.table import Format
    from mmare.package.package import Package
    from sites.config import SiteConfig

__all__ = ["audit_entries", "log_predictions", "page_beside", "predict_site"]


def predict_site(
    package: Package,
    site: SiteConfig,
    table: Path | None,
    out: Path,
    form: Format,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Predictions:
    """Write the predictions for a table's patients to ``out`` and a page beside it; both or neither.

    Raises:
        InputError: As of `site_inputs`, or if ``out`` cannot be taken.
        RunError: If nobody has a modality, or the audit log cannot be written.
    """
    _check_place(out, table or site.manifest)
    torch.set_num_threads(site.threads)  # as in a run: other numbers of threads sum in other orders
    inputs = site_inputs(package, site, load_patients(table or site.manifest), progress=progress)
    found = predict(package, inputs, pick_device(site.device))
    content, page = table_bytes(found, form), page_of(found)
    log_predictions(found, site)
    with replacing(out, private=True) as whole, replacing(page_beside(out), private=True) as whole_page:
        whole.write_bytes(content)
        whole_page.write_text(page, encoding="utf-8")
    return found


def log_predictions(found: Predictions, site: SiteConfig) -> None:
    """Write the lines of the audit log; a RunError if they cannot be written: then nothing is told."""
    log = log_of(site)
    try:
        log.append(*audit_entries(found, site_secret(site.folder)))
    except OSError as error:
        raise RunError(f"{log.path}: {error.strerror}; what cannot be logged is not told") from None


def page_beside(out: Path) -> Path:
    """Where the page of a table goes."""
    return out.with_suffix(".html")


def audit_entries(found: Predictions, secret: bytes) -> list[Entry]:
    """A line for each patient, who is named by a keyed digest as is the input; no path, no vector."""
    study, judged = found.package.study, found.judgement
    entries = []
    for row, patient in enumerate(found.inputs.patients):
        there = found.inputs.present[row].tolist()
        parts = [
            part[row].numpy().tobytes()
            for part, has in zip(found.inputs.embedding, there, strict=True)
            if has
        ]
        content = b"\0".join([patient.encode(), found.patterns[row].encode(), *parts])
        line: dict[str, Any] = {
            "model": found.package.digest,
            "patient": hmac.digest(secret, patient.encode(), "sha256").hex()[:16],
            "input": hmac.digest(secret, content, "sha256").hex(),
            "presence": found.patterns[row],
            "seen": found.seen[row],
            "call": study.classes[int(judged.call[row])],
            "probability": [round(value, 6) for value in judged.probability[row].tolist()],
            "distance": [None if far != far else round(far, 3) for far in found.distance[row].tolist()],  # noqa: PLR0124 - NaN
        }
        entries.append(Entry(Event.PREDICTED, study=study.hash, prediction=line))
    return entries


def _check_place(out: Path, table: Path) -> None:
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out}: no folder {out.absolute().parent}")
    if out.suffix.lower() == ".html":
        raise InputError(
            f"{out}: --out names the table, such as predictions.csv; the page is written beside it"
        )
    if out.resolve() == table.resolve() or out.is_dir():
        raise InputError(
            f"{out}: {'is a folder' if out.is_dir() else 'holds the patients'}; choose another name"
        )
