"""What each part of our aggregation adds, per regime of missingness. Run with ``make bench``.

Two seeds here, to see that it runs and how long it takes; simulation/RESULTS.md has all twenty, made by
``mmare-sim grid aggregation --out DIR`` and ``mmare-sim report DIR``.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.printed import report
from tests.data_folder import data_folder

pytestmark = [pytest.mark.bench, pytest.mark.filterwarnings("default")]

MMARE_SIM = str(Path(sys.executable).parent / "mmare-sim")
REGIMES, STEPS, SEEDS = 5, 5, 2


def test_steps_of_aggregation_by_regime(tmp_path):
    source = data_folder("mmist")
    wanted = [argument for seed in range(SEEDS) for argument in ("--only", f"seed={seed}")]
    subprocess.run(
        [MMARE_SIM, "grid", "aggregation", "--out", str(tmp_path), "--jobs", "2", *wanted],
        check=True,
        capture_output=True,
        env={**os.environ, "MMARE_DATA": str(source.parent)},
    )
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(lines) == REGIMES * STEPS * SEEDS
    scores: dict[tuple[str, str], list[float]] = {}
    for line in lines:
        key = line["settings"]["data"], line["settings"]["strategy"]
        scores.setdefault(key, []).append(line["result"]["metrics"]["test"]["pooled"]["auc"])
    for (data, strategy), values in scores.items():
        report(f"{data}, {strategy}", auc=f"{statistics.mean(values):.3f}")
    assert {len(values) for values in scores.values()} == {SEEDS}
    subprocess.run([MMARE_SIM, "report", str(tmp_path)], check=True, capture_output=True)
    assert (tmp_path / "report.html").exists()
