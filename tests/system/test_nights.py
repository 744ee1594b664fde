"""Bad nights of a hospital that waits for a study: each ends by itself, and the status is true again."""

import os
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from client.relay.programs import SUPERNODE, RelayFolder
from client.relay.status_file import read_state
from client.relay.worker_link import WorkerLink
from client.status import relay_text
from tests.federations import tiny_federation
from tests.system.deployment import Coordinator, Hospital, free_ports, needs_nginx, until

pytestmark = [pytest.mark.system, needs_nginx]

BACK_S = 180


@contextmanager
def small_disk(folder: Path):
    """A disk of two MiB at a folder."""
    if os.geteuid() != 0:
        pytest.skip("a small disk needs root")
    folder.mkdir(mode=0o700, parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "mmare", str(folder)]
    if subprocess.run(mount, capture_output=True, timeout=10, check=False).returncode:
        pytest.skip("disks cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=10)


def fill(path):
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def is_connected(site):
    worker = WorkerLink(site.worker.socket).status()
    return worker is not None and "connected" in relay_text(site, datetime.now(UTC), worker).lines


def node(site):
    state = read_state(RelayFolder.of(site))
    return None if state is None else {each.name: each for each in state.programs}[SUPERNODE]


def test_a_full_disk_is_over_once_there_is_room_again():
    with tempfile.TemporaryDirectory(prefix="mmare-") as folder:
        place = Path(folder)
        coordinator = Coordinator(place / "kit")
        federation = tiny_federation(place / "fed", sites=["ash"])
        hospital = Hospital(federation / "ash", *free_ports(1))
        coordinator.hospitals.append(hospital)
        hospital.join(coordinator)
        site, relay = hospital.site, RelayFolder.of(hospital.site)
        with small_disk(relay.folder):
            coordinator.stay()
            hospital.start()
            try:
                until(lambda: is_connected(site), "it is connected", BACK_S, coordinator.logs)
                before = node(site)
                filler = relay.folder / "filler"
                fill(filler)
                hospital.kill(SUPERNODE)
                time.sleep(8.0)  # it restarts, and can write nothing
                filler.unlink()
                until(
                    lambda: is_connected(site) and node(site).starts > before.starts,
                    "it is back, and the status says so",
                    BACK_S,
                    coordinator.logs,
                )
                now = node(site)
                assert now.pid != before.pid
                assert Path(f"/proc/{now.pid}").exists()
            finally:
                hospital.stop()
                coordinator.close()
