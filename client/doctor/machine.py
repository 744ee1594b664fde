"""What a site's machine has: disk, memory, device, software. None of it is data of a patient."""

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

__all__ = ["look_at_device", "look_at_disk", "look_at_memory", "look_at_versions"]

OURS: Final = "federated-mmare"
SHOWN: Final = ("flwr", "torch", "grpcio")  # beside our own

GIB: Final = 1 << 30
LEAST_DISK_GIB: Final = 1.0  # a few models and messages
NOTED_DISK_GIB: Final = 5.0  # embeddings and logs of a long run
LEAST_MEMORY_GIB: Final = 1.0  # torch and one model
NOTED_MEMORY_GIB: Final = 4.0  # an encoder beside them

NO_GPU: Final = (
    "run nvidia-smi as this user; if it lists the GPU, install a torch that fits the driver's CUDA, else the "
    'driver; device = "cpu" computes without'
)
_CGROUP: Final = Path("/sys/fs/cgroup")
_NVIDIA: Final = Path("/proc/driver/nvidia/version")


def look_at_disk(site: SiteConfig) -> list[Finding]:
    """Room and right to write where the site keeps things.

    Args:
        site: Says where.
    """
    folders = {"cache": site.cache, "site": site.folder, "kit": site.coordinator.kit}
    findings = []
    seen: dict[int, str] = {}
    ours = os.access(site.folder, os.R_OK)  # the relay's user has no business there
    for name, folder in folders.items():
        here = _existing(folder)
        if ours and name != "kit" and not os.access(here, os.W_OK | os.X_OK):  # the kit may be the relay's
            findings.append(
                warning(
                    "disk",
                    f"{here} ({name}) cannot be written to by this user",
                    "run this check as the user who runs the site, or give that user the folder",
                )
            )
        device = here.stat().st_dev
        if device in seen:
            continue
        seen[device] = name
        free = shutil.disk_usage(here).free / GIB
        said = f"{free:.1f} GiB free at {here} ({name})"
        advice = "make room: a site that cannot write its log lets no answer out"
        if free < LEAST_DISK_GIB:
            findings.append(problem("disk", said, advice))
        elif free < NOTED_DISK_GIB:
            findings.append(warning("disk", said, advice))
        else:
            findings.append(fine("disk", said))
    return findings


def look_at_memory(available: int | None = None) -> list[Finding]:
    """Memory that is free, within the limit of a container.

    Args:
        available: Bytes; none to ask this machine.
    """
    free = (_available() if available is None else available) / GIB
    said = f"{free:.1f} GiB available"
    advice = "end other programs, raise the limit of the container, or train on a larger machine"
    if free < LEAST_MEMORY_GIB:
        return [problem("memory", said, advice)]
    if free < NOTED_MEMORY_GIB:
        return [warning("memory", f"{said}; an encoder may need more", advice)]
    return [fine("memory", said)]


def look_at_device(name: str) -> list[Finding]:
    """Whether torch can compute on the device that ``site.toml`` names.

    Args:
        name: Of the device, such as ``auto``.
    """
    from client.encoders.registry import pick_device  # noqa: PLC0415 - as above

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
    """Whether a GPU computes, and what is free on it."""
    import torch  # noqa: PLC0415 - takes seconds

    try:
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        computed = float(torch.ones(2, device=device).sum())
    except (RuntimeError, AssertionError) as error:  # torch asserts that there are so many
        reason = str(error).splitlines()[0]
        return problem("device", f"{name} cannot be used: {reason}", f"correct [compute] device; {NO_GPU}")
    said = f"{properties.name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if computed != 2.0:  # noqa: PLR2004 - the sum of two ones
        return problem("device", f"{said}, but it computes 1 + 1 = {computed}", "have the GPU looked at")
    if free / GIB < LEAST_MEMORY_GIB:
        return warning("device", said, "end what else runs on the GPU, or name another in [compute] device")
    return fine("device", said)


def look_at_versions() -> list[Finding]:
    """Installed software against what this program's own metadata asks for."""
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
        advice = "install again with the versions that are tested together: deploy/constraints.txt"
        return [problem("versions", "; ".join(wrong), advice)]
    shown = ", ".join(f"{name} {_version(name)}" for name in (OURS, *SHOWN))
    return [fine("versions", f"{shown}, Python {python}; the coordinator needs the same {OURS}")]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there and can be seen."""
    for each in (folder.absolute(), *folder.absolute().parents):
        with suppress(OSError):
            if each.is_dir():
                return each
    return Path("/")


def _available() -> int:
    """Bytes that a new program can have here."""
    available = psutil.virtual_memory().available
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = (_CGROUP / "memory.current").read_text(encoding="ascii").strip()
    except OSError:  # no container, or one of another kind
        return available
    return available if limit == "max" else min(available, int(limit) - int(used))
