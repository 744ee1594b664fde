"""Checks that the study of the bundle is approved and that this site can compute it."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from client.doctor.findings import fine, problem, warning
from client.privacy.approvals import ApprovalFolder
from mmare.errors import MmareError
from mmare.host.console import visible
from mmare.study.study import load_study

if TYPE_CHECKING:
    from pathlib import Path

    from client.doctor.findings import Finding
    from mmare.study.encoding import Encoding
    from mmare.study.study import Study
    from sites.config import SiteConfig

__all__ = ["check_encoders", "check_study", "read_study"]


def read_study(path: Path) -> tuple[Study | None, list[Finding]]:
    """The study at ``path``, or rows that say why there is none."""
    if not path.exists():
        return None, [fine("study", "none in the bundle: the coordinator sends it before a run")]
    try:
        return load_study(path), []
    except (MmareError, OSError) as error:
        advice = "ask the coordinator for the bundle again and install it with mmare-site kit install"
        return None, [problem("study", str(error), advice)]


def check_study(site: SiteConfig, study: Study, path: Path) -> list[Finding]:
    """Check that a study, from ``path``, is approved and which of its modalities the site has."""
    findings = []
    approvals = ApprovalFolder(site.folder)
    name = f"{visible(study.name)}, hash {study.hash[:12]}"
    if approvals.find(study.hash) is not None:
        findings.append(fine("study", f"{name}: approved"))
    elif not os.access(site.folder, os.R_OK):
        findings.append(fine("study", f"{name}; this user cannot see whether it is approved"))
    else:
        others = ", ".join(
            f"{visible(each.study.name) if each.study else 'a study'} {each.study_hash[:12]}"
            for each in approvals.all()
        )
        found = f"{name}: not approved, so the worker refuses it"
        found += f"; approved is {others}, which is another study" if others else ""
        advice = (
            f"read what it computes and releases: mmare-site approve {path} --site {site.folder}/site.toml"
        )
        findings.append(warning("study", found, advice))
    here = [each.name for each in study.modalities if each.name in site.modalities]
    absent = [each.name for each in study.modalities if each.name not in site.modalities]
    if not here:
        found = f"it learns from {', '.join(absent)}, none of which site.toml names"
        advice = "add a table [modality.NAME] to site.toml for each of them that this hospital has"
        findings.append(problem("study", found, advice))
    elif absent:
        findings.append(fine("study", f"this site has {', '.join(here)}, but not {', '.join(absent)}"))
    return findings


def check_encoders(site: SiteConfig, study: Study) -> list[Finding]:
    """Check the study's encoders, their weights and pinned hashes; pins weights at their first use."""
    from client.data.dataset import modality_fingerprint  # noqa: PLC0415 - imports torch, which takes seconds
    from client.encoders.registry import FROM_FILE, check_encoders  # noqa: PLC0415 - as above

    site = replace(site, device="cpu")  # fingerprints do not depend on the device, which has its own row
    try:
        check_encoders(study)
    except MmareError as error:
        return [problem("encoders", str(error), "install the same version as the coordinator")]
    findings = []
    encodings: dict[Path, Encoding] = {}
    for modality in study.modalities:
        if modality.name not in site.modalities:
            continue
        try:
            mark = modality_fingerprint(modality, site, encodings)
        except MmareError as error:
            command = "encoders add" if modality.encoder.startswith(FROM_FILE) else "weights import"
            advice = f"import what the coordinator names, with mmare-site {command}"
            findings.append(problem("encoders", f"{modality.name}: {error}", advice))
        except OSError as error:
            found = f"{modality.name}: {error.filename} cannot be read by this user ({error.strerror})"
            findings.append(warning("encoders", found, "run this check as the user who runs the worker"))
        else:
            findings.append(fine("encoders", f"{modality.name}: {mark}"))
    return findings
