"""This build beside another, by turns on the same machine: what a command takes from start to end.

``MMARE_BENCH_BEFORE=FOLDER pytest -m bench -s tests/bench/test_builds.py``: the folder of the other build's
checkout, with its environment in ``.venv``. Only the command line and the journal serve: any build will do.
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from datetime import datetime
from pathlib import Path

import pytest

from tests.bench.printed import report
from tests.bench.test_bench import WIDTHS, federation
from tests.server.journals import read_journal

pytestmark = [pytest.mark.bench, pytest.mark.filterwarnings("default")]

BEFORE = "MMARE_BENCH_BEFORE"
TURNS, PATIENTS, ROUNDS = 5, 600, 12
STUDY = """
[study]
name = "builds"
classes = ["dead", "alive"]
positive = "alive"
[training]
recipe = "{recipe}"
rounds = {rounds}
patience = 1000
noise_probability = 0.3
[privacy]
min_count = 0
"""


def measured(program, folder, out):
    """Seconds of a run: to the first round, of the sites and beyond them in a round, and of the processor."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    subprocess.run(
        [program, "run", str(folder), "--out", str(out)],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    starts, local = {}, defaultdict(float)
    for event in read_journal(out / "rounds.jsonl"):
        if event["event"] == "round_started":
            starts[event["round"]] = datetime.fromisoformat(event["time"]).timestamp()
        if event["event"] == "site_update" and event["train_loss"] is not None:
            local[event["round"]] += event["seconds"]
    whole = {
        number: starts[number + 1] - starts[number]
        for number in starts
        if number > 2 and number + 1 in starts
    }
    return {
        "start_s": starts[1] - began,
        "sites_ms": 1e3 * statistics.median(local[number] for number in whole),
        "beyond_ms": 1e3 * statistics.median(spent - local[number] for number, spent in whole.items()),
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


@pytest.mark.parametrize("recipe", ["robust", "thesis"])
def test_a_run_by_both_builds(tmp_path, recipe):
    if not (other := os.environ.get(BEFORE)):
        pytest.skip(f"{BEFORE} names no folder of another build")
    folder = federation(tmp_path / "federation", 3, PATIENTS)
    modalities = "".join(
        f'[[modality]]\nname = "{name}"\nkind = "features"\nwidth = {width}\nscaling = "zscore"\n'
        for name, width in WIDTHS.items()
    )
    (folder / "study.toml").write_text(STUDY.format(recipe=recipe, rounds=ROUNDS) + modalities)
    programs = {
        "before": Path(other) / ".venv/bin/mmare-sim",
        "now": Path(sys.executable).parent / "mmare-sim",
    }
    found = {name: [] for name in programs}
    for name in programs:  # each its own: builds write other audit logs
        shutil.copytree(folder, tmp_path / "of" / name)
    for turn in range(TURNS):
        for name, program in programs.items():
            found[name].append(measured(program, tmp_path / "of" / name, tmp_path / f"{name}{turn}"))
    for line in found["now"][0]:
        pairs = [(one[line], other[line]) for one, other in zip(*found.values(), strict=True)]
        report(
            f"{recipe}, three sites of {PATIENTS} patients, {line}",
            before=f"{statistics.median(pair[0] for pair in pairs):.2f}",
            now=f"{statistics.median(pair[1] for pair in pairs):.2f}",
            ratio=f"{statistics.median(pair[0] / pair[1] for pair in pairs):.2f}",
        )
