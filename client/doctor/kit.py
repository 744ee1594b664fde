"""What a site holds for joining: its folder of keys and the coordinator's bundle."""

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

__all__ = ["look_at_kit"]


def look_at_kit(kit: SiteKit, coordinator: Coordinator, site: SiteConfig) -> list[Finding]:
    """Keys, their file modes, the authority's certificate, and whose bundle it is.

    Args:
        kit: Of the site; its bundle is installed.
        coordinator: As the bundle says.
        site: Whose kit it is.
    """
    findings = []
    if coordinator.site == site.id:
        joined = f"{coordinator.federation} at {coordinator.address}, admitted as {coordinator.site}"
        findings.append(fine("bundle", joined))
    else:
        findings.append(
            problem(
                "bundle",
                f"it admits {coordinator.site}, but site.toml says {site.id}",
                "install the bundle of this site, or correct [site] id and make a new request",
            )
        )
    findings += _closed(kit, site.worker.group)
    findings += _key(kit, coordinator, site)
    findings += _authority(kit.ca)
    return findings


def _closed(kit: SiteKit, group: str | None) -> list[Finding]:
    """Secrets that others could read; the group that may ask the worker may hold them, too."""
    findings = []
    for path in (kit.key, kit.secret):
        try:
            status = path.stat()
        except FileNotFoundError:
            findings.append(
                problem(
                    "kit", f"{path} is not there", "make it with mmare-site kit request, as at the beginning"
                )
            )
            continue
        mode = stat.S_IMODE(status.st_mode)
        allowed = stat.S_IRWXU if status.st_gid != _number_of(group) else stat.S_IRWXU | stat.S_IRGRP
        if mode & ~allowed:
            whom = "every user" if mode & stat.S_IRWXO else "a group of users"
            said = f"{path} has mode {mode:04o}, which lets {whom} use it"
            findings.append(problem("kit", said, f"close it: chmod {mode & allowed:04o} {path}"))
    return findings


def _number_of(group: str | None) -> int | None:
    try:
        return None if group is None else grp.getgrnam(group).gr_gid
    except KeyError:
        return None


def _key(kit: SiteKit, coordinator: Coordinator, site: SiteConfig) -> list[Finding]:
    """Whether the node's key is one, and the one that was admitted."""
    if not kit.key.exists():  # told before
        return []
    try:
        own = own_fingerprint(site)
    except InputError as error:
        return [
            problem("kit", str(error), "run this check as the user who runs the relay, or make a new key")
        ]
    if coordinator.key and coordinator.key != own:
        return [
            problem(
                "kit",
                f"the key is {own}, but the coordinator has admitted {coordinator.key}",
                "send request.json again, which mmare-site kit request writes, and install the new bundle",
            )
        ]
    return [fine("kit", f"{kit.folder}: key {own}")]


def _authority(path: Path) -> list[Finding]:
    try:
        authority = read_authority(path)
    except (OSError, ValueError):
        again = "ask the coordinator for the bundle again and install it with mmare-site kit install"
        return [problem("kit", f"{path} holds no certificate that can be read", again)]
    said = f"the federation's authority is {authority.subject}, until {authority.ends:%Y-%m-%d}"
    return [fine("kit", said)]
