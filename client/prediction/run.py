"""Predict a site's patients: inputs, model, a line each in the audit log, then the table and the page."""

from __future__ import annotations

import hmac
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from client.data.site_secret import site_secret
from client.encoders.registry import pick_device
from client.prediction.inputs import site_inputs
from client.prediction.places import check_places
from client.prediction.predict import predict
from client.prediction.silent import keep_silently
from client.prediction.written.dicom_sr import structured_reports
from client.prediction.written.fhir import fhir_bundle
from client.prediction.written.page import page_of
from client.prediction.written.table import table_bytes
from client.privacy.records.audit_log import Entry, Event, log_of
from mmare.errors import InputError, RunError
from mmare.host.files import own_folder, replacing
from mmare.study.choices import TaskName
from sites.manifest import load_patients

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from client.prediction.predict import Predictions
    from client.prediction.written.table_format import Format
    from mmare.package.package import Package
    from sites.config import SiteConfig

__all__ = ["audit_lines", "log_predictions", "page_beside", "predict_site"]


def predict_site(  # noqa: PLR0913 - those of the command
    package: Package,
    site: SiteConfig,
    table: Path | None,
    out: Path,
    form: Format,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    *,
    fhir: Path | None = None,
    dicom_sr: Path | None = None,
    silent: bool = False,
) -> Predictions:
    """Write the predictions for a table's patients to ``out`` and a page beside it; everything or nothing.

    Args:
        package: The model.
        site: How the site holds its modalities.
        table: As of the command, and so are the others.
        out: For the table.
        form: Of the table.
        progress: Called with scans done and all.
        fhir: File for a FHIR bundle.
        dicom_sr: Folder for structured reports, which does not exist yet.
        silent: Keep the predictions (`keep_silently`) and write a table without them, and no page.

    Raises:
        InputError: As of `site_inputs`, or if ``out`` cannot be taken.
        RunError: If nobody has a modality, or the audit log cannot be written.
    """
    if out.suffix.lower() == ".html":
        raise InputError(
            f"{out}: --out names the table, such as predictions.csv; the page is written beside it"
        )
    _check_forms(package.study.task, fhir, dicom_sr, silent=silent)
    more = {"the FHIR bundle": fhir, "the DICOM reports": dicom_sr}
    new = {what: place for what, place in more.items() if place is not None}
    page = {} if silent else {"the page": page_beside(out)}
    check_places(site, {"the table": out, **page, **new}, table, package)
    for place in new.values():
        if place.exists():
            raise InputError(f"{place}: is there already")
    torch.set_num_threads(site.threads)  # as in a run: other numbers of threads sum in other orders
    inputs = site_inputs(package, site, load_patients(table or site.manifest), progress=progress)
    found = predict(package, inputs, pick_device(site.device))
    lines = audit_lines(found, site_secret(site.folder))
    files = {out: table_bytes(found, form, silent=silent)}
    if not silent:
        files[page_beside(out)] = page_of(found).encode()
    if fhir is not None:
        files[fhir] = fhir_bundle(found, lines)
    if dicom_sr is not None:
        files |= {dicom_sr / name: content for name, content in structured_reports(found, site).items()}
    log_predictions(found, site, lines)
    if silent:
        keep_silently(found, site)
    if dicom_sr is not None:
        own_folder(dicom_sr)
    with ExitStack() as stack:
        for path, content in files.items():
            stack.enter_context(replacing(path, private=True)).write_bytes(content)
    return found


def log_predictions(found: Predictions, site: SiteConfig, lines: list[dict[str, Any]]) -> None:
    """Write the lines of the audit log; a RunError if they cannot be written: then nothing is told."""
    log = log_of(site)
    study = found.package.study.hash
    try:
        log.append(*(Entry(Event.PREDICTED, study=study, prediction=line) for line in lines))
    except OSError as error:
        raise RunError(f"{log.path}: {error.strerror}; what cannot be logged is not told") from None


def page_beside(out: Path) -> Path:
    """Where the page of a table goes."""
    return out.with_suffix(".html")


def audit_lines(found: Predictions, secret: bytes) -> list[dict[str, Any]]:
    """What the log says of each patient: keyed digests of patient and input, the output; no vector."""
    study = found.package.study
    of_classes = study.task is TaskName.CLASSIFICATION
    lines = []
    for row, patient in enumerate(found.inputs.patients):
        there = found.inputs.present[row].tolist()
        parts = [
            part[row].numpy().tobytes()
            for part, has in zip(found.inputs.embedding, there, strict=True)
            if has
        ]
        content = b"\0".join([patient.encode(), found.patterns[row].encode(), *parts])
        lines.append(
            {
                "model": found.package.digest,
                "patient": hmac.digest(secret, patient.encode(), "sha256").hex()[:16],
                "input": hmac.digest(secret, content, "sha256").hex(),
                "presence": found.patterns[row],
                "seen": found.seen[row],
                "share": found.seen_shares[row],
                "call": study.classes[int(found.judgement.call[row])] if of_classes else "",
                "probability" if of_classes else "values": [
                    round(each, 6) for each in found.values[row].tolist()
                ],
                "distance": {name: round(far, 3) for name, far in found.distances[row].items()},
            }
        )
    return lines


def _check_forms(task: TaskName, fhir: Path | None, dicom_sr: Path | None, *, silent: bool) -> None:
    """Refuse forms of the output that do not go with the task or with each other."""
    asked = {"--fhir": fhir, "--dicom-sr": dicom_sr, "--silent": silent}
    for name, wanted in asked.items():
        if wanted and task is not TaskName.CLASSIFICATION:
            raise InputError(f"{name} is of classes, found a model of task {task}")
    if silent and (fhir or dicom_sr):
        raise InputError("--silent shows no prediction, so it goes with neither --fhir nor --dicom-sr")
