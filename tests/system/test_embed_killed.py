"""``mmare-site embed`` killed with SIGKILL while it encodes, again and again, and run to its end."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client.data.dataset import load_data
from mmare.study.study import load_study
from sites.datasets.phantoms import prepare_synthetic_scans
from sites.federation import site_folders

pytestmark = pytest.mark.system

PROGRAM = Path(sys.executable).parent / "mmare-site"
COUNTS = re.compile(r"(\d+) encoded, (\d+) there before, (\d+) cannot be used")


@pytest.fixture
def federation(tmp_path):
    folder = tmp_path / "federation"
    prepare_synthetic_scans(folder, subjects=12)
    return folder


def embed(site: Path) -> tuple[int, int, int]:
    done = subprocess.run(
        [str(PROGRAM), "embed", str(site)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    found = COUNTS.search(done.stdout)
    assert found, done.stdout
    encoded, cached, refused = map(int, found.groups())
    return encoded, cached, refused


def vectors(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Embeddings that are whole, by file: time of change and content."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*.npy")
        if not path.name.startswith(".")
    }


def kill_after(site: Path, cache: Path, more: int, pause_s: float) -> None:
    """Start and kill once ``more`` embeddings have been added and a little time has passed."""
    before = len(vectors(cache))
    process = subprocess.Popen(
        [str(PROGRAM), "embed", str(site)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 90
    while time.monotonic() < end and process.poll() is None and len(vectors(cache)) < before + more:
        time.sleep(0.002)
    time.sleep(pause_s)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"


def test_killed_and_run_again_it_goes_on_where_it_was(federation):
    config = next(site for site in site_folders(federation) if site.id == "guys")
    site, study = config.folder / "site.toml", load_study(federation / "study.toml")
    undisturbed = federation / "guys" / "undisturbed"
    total = sum(embed(site))
    config.cache.rename(undisturbed)
    expected = {path.name: content for path, (_, content) in vectors(undisturbed).items()}
    assert len(expected) == total

    for more, pause_s in ((1, 0.0), (3, 0.011), (2, 0.037)):
        earlier = vectors(config.cache)
        kill_after(site, config.cache, more, pause_s)
        kept = vectors(config.cache)
        assert {path: kept[path] for path in earlier} == earlier  # none was written again
        assert len(kept) >= len(earlier) + more
    (config.cache / "embeddings" / ".half-written").write_bytes(b"\x93NUMPY")  # where a kill may leave one
    kept = vectors(config.cache)
    assert 0 < len(kept) < total

    assert embed(site) == (total - len(kept), len(kept), 0)
    after = vectors(config.cache)
    assert {path: after[path] for path in kept} == kept
    assert {path.name: content for path, (_, content) in after.items()} == expected
    assert embed(site) == (0, total, 0)
    volumes = [slot for slot, modality in enumerate(study.modalities) if modality.kind == "volume"]
    assert int(load_data(config, study).present[:, volumes].sum()) == total
