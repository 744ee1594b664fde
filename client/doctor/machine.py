"""Checks of a site's machine: disk, memory, device, software."""

from __future__ import annotations

import os
import platform
import shutil
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from client.doctor.findings import fine, problem, warning
from mmare.errors import InputError

if TYPE_CHECKING:
    import torch

    from client.doctor.findings import Finding
    from sites.config import SiteConfig

__all__ = ["check_device", "check_disk", "check_memory", "check_versions"]

OURS: Final = "federated-mmare"
SHOWN: Final = ("flwr", "torch", "grpcio")  # besides our own

GIB: Final = 1 << 30
LEAST_DISK_GIB: Final = 1.0  # a few models and messages
NOTED_DISK_GIB: Final = 5.0  # embeddings and logs of a long run
LEAST_MEMORY_GIB: Final = 1.0  # torch and one model
NOTED_MEMORY_GIB: Final = 4.0  # an encoder beside them

NO_GPU: Final = (
    "run nvidia-smi as this user; if it lists the GPU, install torch for its driver's CUDA, else the driver "
    'itself; device = "cpu" computes without a GPU'
)
_CGROUP: Final = Path("/sys/fs/cgroup")
_NVIDIA: Final = Path("/proc/driver/nvidia/version")


def check_disk(site: SiteConfig) -> list[Finding]:
    """Check free space and write permission in the site's folders."""
    folders = {"cache": site.cache, "site": site.folder, "kit": site.coordinator.kit}
    findings = []
    seen: dict[int, str] = {}
    ours = os.access(site.folder, os.R_OK)  # False for the relay's user, who needs no access
    for name, folder in folders.items():
        here = _existing(folder)
        if ours and name != "kit" and not os.access(here, os.W_OK | os.X_OK):  # the kit may be the relay's
            found = f"{here} ({name}) cannot be written to by this user"
            advice = "run this check as the user who runs the site, or give that user the folder"
            findings.append(warning("disk", found, advice))
        device = here.stat().st_dev
        if device in seen:
            continue
        seen[device] = name
        free = shutil.disk_usage(here).free / GIB
        found = f"{free:.1f} GiB free at {here} ({name})"
        advice = "free some space: a site that cannot write its audit log releases no answer"
        if free < LEAST_DISK_GIB:
            findings.append(problem("disk", found, advice))
        elif free < NOTED_DISK_GIB:
            findings.append(warning("disk", found, advice))
        else:
            findings.append(fine("disk", found))
    return findings


def check_memory(available: int | None = None) -> list[Finding]:
    """Check available memory in bytes, by default this machine's, within a container's limit."""
    free = (_available() if available is None else available) / GIB
    found = f"{free:.1f} GiB available"
    advice = "close other programs, raise the container's limit, or train on a larger machine"
    if free < LEAST_MEMORY_GIB:
        return [problem("memory", found, advice)]
    if free < NOTED_MEMORY_GIB:
        return [warning("memory", f"{found}; an encoder may need more", advice)]
    return [fine("memory", found)]


def check_device(name: str) -> list[Finding]:
    """Check that torch can compute on a device of ``site.toml``, such as ``auto``."""
    from client.encoders.registry import pick_device  # noqa: PLC0415 - imports torch, which takes seconds

    try:
        device = pick_device(name)
    except InputError as error:
        return [problem("device", str(error), NO_GPU)]
    if device.type == "cuda":
        return [_gpu(device, name)]
    if device.type == "cpu" and name == "auto" and _NVIDIA.exists():
        return [warning("device", "this machine has an NVIDIA driver, but torch finds no GPU", NO_GPU)]
    return [fine("device", f"{device.type} ({name}), {os.cpu_count()} cores")]


def _gpu(device: torch.device, name: str) -> Finding:
    """Check that a GPU computes, and its free memory."""
    import torch  # noqa: PLC0415 - takes seconds

    try:
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        computed = float(torch.ones(2, device=device).sum())
    except (RuntimeError, AssertionError) as error:  # AssertionError: no such device
        reason = str(error).splitlines()[0]
        return problem("device", f"{name} cannot be used: {reason}", f"correct [compute] device; {NO_GPU}")
    found = f"{properties.name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if computed != 2.0:  # noqa: PLR2004 - the sum of two ones
        return problem("device", f"{found}, but it computes 1 + 1 = {computed}", "have the GPU examined")
    if free / GIB < LEAST_MEMORY_GIB:
        return warning("device", found, "stop other programs on the GPU, or name another in [compute] device")
    return fine("device", found)


def check_versions() -> list[Finding]:
    """Check installed versions against this package's requirements."""
    wrong = []
    for text in requires(OURS) or []:
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        found = _version(needed.name)
        if found is None or not needed.specifier.contains(found, prereleases=True):
            wrong.append(f"{needed.name} is {found or 'not installed'}, expected {needed.specifier}")
    python = platform.python_version()
    wanted = metadata(OURS)["Requires-Python"] or ""
    if not SpecifierSet(wanted).contains(python, prereleases=True):
        wrong.append(f"Python is {python}, expected {wanted}")
    if wrong:
        advice = "reinstall with the versions tested together: deploy/constraints.txt"
        return [problem("versions", "; ".join(wrong), advice)]
    shown = ", ".join(f"{name} {_version(name)}" for name in (OURS, *SHOWN))
    return [fine("versions", f"{shown}, Python {python}; the coordinator needs the same {OURS}")]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _existing(folder: Path) -> Path:
    """The folder, or its nearest existing and visible parent."""
    for each in (folder.absolute(), *folder.absolute().parents):
        with suppress(OSError):
            if each.is_dir():
                return each
    return Path("/")


def _available() -> int:
    """Bytes of memory available to a new process."""
    available = psutil.virtual_memory().available
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = (_CGROUP / "memory.current").read_text(encoding="ascii").strip()
    except OSError:  # no container, or not with cgroup v2
        return available
    return available if limit == "max" else min(available, int(limit) - int(used))
