"""The study that came with the bundle: is it approved, and can this site compute it?"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from client.doctor.findings import fine, problem, warning
from client.privacy.approvals import ApprovalFolder
from mmare.errors import MmareError
from mmare.study.choices import Kind
from mmare.study.study import load_study

if TYPE_CHECKING:
    from pathlib import Path

    from client.doctor.findings import Finding
    from mmare.study.study import Study
    from sites.config import SiteConfig

__all__ = ["look_at_encoders", "look_at_study", "read_study"]


def read_study(path: Path) -> tuple[Study | None, list[Finding]]:
    """The study that came with the bundle, if any.

    Args:
        path: Of it.
    """
    if not path.exists():
        said = "none came with the bundle: the coordinator sends it before a run"
        return None, [fine("study", said)]
    try:
        return load_study(path), []
    except (MmareError, OSError) as error:
        again = "ask the coordinator for the bundle again and install it with mmare-site kit install"
        return None, [problem("study", str(error), again)]


def look_at_study(site: SiteConfig, study: Study, path: Path) -> list[Finding]:
    """Whether the study is approved, and what of it the site holds.

    Args:
        site: Of the hospital.
        study: Of the federation.
        path: Of the study, to be approved.
    """
    findings = []
    approvals = ApprovalFolder(site.folder)
    name = f"{study.name}, hash {study.hash[:12]}"
    if approvals.find(study.hash) is not None:
        findings.append(fine("study", f"{name}: approved"))
    elif not os.access(site.folder, os.R_OK):
        findings.append(fine("study", f"{name}; whether it is approved is not for this user to see"))
    else:
        others = ", ".join(
            f"{each.study.name if each.study else 'a study'} {each.study_hash[:12]}"
            for each in approvals.all()
        )
        findings.append(
            warning(
                "study",
                f"{name}: not approved, so the worker refuses it"
                + (f"; approved is {others}, which is another study" if others else ""),
                "read what it computes and what leaves: "
                f"mmare-site approve {path} --site {site.folder}/site.toml",
            )
        )
    here = [each.name for each in study.modalities if each.name in site.modalities]
    absent = [each.name for each in study.modalities if each.name not in site.modalities]
    if not here:
        findings.append(
            problem(
                "study",
                f"it learns from {', '.join(absent)}, none of which site.toml names",
                "add a table [modality.NAME] to site.toml for each of them that this hospital holds",
            )
        )
    elif absent:
        findings.append(fine("study", f"this site holds {', '.join(here)}, and not {', '.join(absent)}"))
    return findings


def look_at_encoders(site: SiteConfig, study: Study) -> list[Finding]:
    """Whether the encoders of the study can be used here, weights and their pinned hashes included.

    Weights that were never used before are pinned, as their first use does.

    Args:
        site: Of the hospital.
        study: Of the federation.
    """
    from client.data.scan_list import scan_fingerprint  # noqa: PLC0415 - as above
    from client.encoders.registry import (  # noqa: PLC0415 - as above
        check_encoders,
        encoder_source,
        fingerprint,
    )

    site = replace(
        site, device="cpu"
    )  # a fingerprint is the same everywhere; the device has a row of its own
    try:
        check_encoders(study)
    except MmareError as error:
        return [problem("encoders", str(error), "install the same version as the coordinator")]
    findings = []
    for modality in study.modalities:
        if modality.name not in site.modalities:
            continue
        try:
            mark = (
                scan_fingerprint(site, modality)
                if modality.kind is Kind.VOLUME
                else fingerprint(modality.encoder, encoder_source(site))
            )
        except MmareError as error:
            findings.append(
                problem(
                    "encoders",
                    f"{modality.name}: {error}",
                    "import the weights that the coordinator names, with mmare-site weights import",
                )
            )
        except OSError as error:
            said = f"{modality.name}: {error.filename} cannot be read by this user ({error.strerror})"
            findings.append(warning("encoders", said, "run this check as the user who runs the worker"))
        else:
            findings.append(fine("encoders", f"{modality.name}: {mark}"))
    return findings
