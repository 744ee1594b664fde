"""What `mmare-site convert` takes beside dcm2niix on one export: wall time; dcm2niix compresses nothing."""

import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.bench.printed import report
from tests.client.ingest.phantoms import AXIAL, enhanced, save, stack, values

pytestmark = pytest.mark.bench

MOST_TIMES = 2  # as long as dcm2niix
START_S = 4.0  # of a Python program with its readers, on a busy machine: dcm2niix starts in milliseconds


def _small(folder):
    save(stack(values(20, rows=64, columns=64)), folder)


def _large(folder):
    for number in range(10):
        pixels = values(150, rows=256, columns=192, seed=number)
        save(stack(pixels, name=f"s{number}"), folder / str(number))


def _multi_frame(folder):
    frames = [
        {"position": np.array([0.0, 0.0, 2.0]) * (index % 40), "time": index // 40} for index in range(1600)
    ]
    save([enhanced(values(1600), frames, "MR", {"orientation": AXIAL})], folder)


def _seconds(*command):
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode in (0, 1)  # 1: nothing became a volume
    return time.perf_counter() - start


@pytest.mark.parametrize("make", [_small, _large, _multi_frame])
def test_convert_beside_dcm2niix(tmp_path, make):
    other = shutil.which("dcm2niix")
    if other is None:
        pytest.skip("dcm2niix is not installed (pip install dcm2niix)")
    make(tmp_path / "in")
    (tmp_path / "theirs").mkdir()
    ours = [sys.executable, "-c", "from client.cli import app; app()", "convert", tmp_path / "in", "--out"]
    theirs_s = _seconds(other, "-z", "n", "-o", tmp_path / "theirs", tmp_path / "in")
    ours_s = _seconds(*ours, tmp_path / "out")
    report(
        make.__name__, ours=f"{ours_s:.2f} s", theirs=f"{theirs_s:.2f} s", ratio=f"{ours_s / theirs_s:.1f}"
    )
    assert ours_s <= MOST_TIMES * theirs_s + START_S
