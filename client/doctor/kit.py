"""Checks of the site's keys and the coordinator's bundle."""

from __future__ import annotations

import grp
import stat
from typing import TYPE_CHECKING

from client.doctor.certificates import read_authority
from client.doctor.findings import fine, problem
from client.membership.kit import own_fingerprint
from mmare.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from client.doctor.findings import Finding
    from mmare.wire.joining import Coordinator, SiteKit
    from sites.config import SiteConfig

__all__ = ["check_kit"]


def check_kit(kit: SiteKit, coordinator: Coordinator, site: SiteConfig) -> list[Finding]:
    """Check keys and their modes, the authority's certificate, and which site the bundle is for."""
    findings = []
    if coordinator.site == site.id:
        joined = f"{coordinator.federation} at {coordinator.address}, admitted as {coordinator.site}"
        findings.append(fine("bundle", joined))
    else:
        found = f"it admits {coordinator.site}, but site.toml says {site.id}"
        advice = "install the bundle of this site, or correct [site] id and make a new request"
        findings.append(problem("bundle", found, advice))
    return [*findings, *_modes(kit, site.worker.group), *_key(kit, coordinator, site), *_authority(kit.ca)]


def _modes(kit: SiteKit, group: str | None) -> list[Finding]:
    """Secrets that others can read; the worker's group may."""
    findings = []
    for path in (kit.key, kit.secret):
        try:
            status = path.stat()
        except FileNotFoundError:
            findings.append(problem("kit", f"{path} is not there", "create it with mmare-site kit request"))
            continue
        mode = stat.S_IMODE(status.st_mode)
        allowed = stat.S_IRWXU if status.st_gid != _group_id(group) else stat.S_IRWXU | stat.S_IRGRP
        if mode & ~allowed:
            whom = "every user" if mode & stat.S_IRWXO else "a group of users"
            found = f"{path} has mode {mode:04o}, which lets {whom} use it"
            findings.append(problem("kit", found, f"close it: chmod {mode & allowed:04o} {path}"))
    return findings


def _group_id(group: str | None) -> int | None:
    try:
        return None if group is None else grp.getgrnam(group).gr_gid
    except KeyError:
        return None


def _key(kit: SiteKit, coordinator: Coordinator, site: SiteConfig) -> list[Finding]:
    """Whether the node's key is valid and the admitted one."""
    if not kit.key.exists():  # reported by _modes
        return []
    try:
        own = own_fingerprint(site)
    except InputError as error:
        advice = "run this check as the user who runs the relay, or make a new key"
        return [problem("kit", str(error), advice)]
    if coordinator.key and coordinator.key != own:
        found = f"the key is {own}, but the coordinator has admitted {coordinator.key}"
        advice = "send the request of mmare-site kit request again and install the new bundle"
        return [problem("kit", found, advice)]
    return [fine("kit", f"{kit.folder}: key {own}")]


def _authority(path: Path) -> list[Finding]:
    try:
        authority = read_authority(path)
    except (OSError, ValueError):
        advice = "ask the coordinator for the bundle again and install it with mmare-site kit install"
        return [problem("kit", f"{path} holds no valid certificate", advice)]
    return [
        fine("kit", f"the federation's authority is {authority.subject}, until {authority.ends:%Y-%m-%d}")
    ]
