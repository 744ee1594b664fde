"""What bends, clipping and logarithms are worth: tables with a curved, a linear and a long-tailed truth."""

import csv

import numpy as np
import pytest

from sites.datasets.table import TableColumns, prepare_table
from tests.bench.printed import report
from tests.federations import run_nodes

pytestmark = [pytest.mark.bench, pytest.mark.filterwarnings("default")]

PATIENTS, COLUMNS = 2400, 9
SETTINGS = ("training.recipe=robust", "training.learning_rate=0.003", "training.rounds=40")
VARIANTS = {
    "as before": (True, ()),
    "clip": (True, ("model.clip=3",)),
    "clip, bends": (True, ("model.clip=3", "model.numeric=piecewise")),
    "clip, bends, logarithms": (False, ("model.clip=3", "model.numeric=piecewise")),
}


def curved(x):
    score = np.sin(2 * x[:, 0]) + 1.2 * np.abs(x[:, 1]) + (x[:, 2] > 0.5) - (np.abs(x[:, 3]) < 0.5)
    return x, 1.5 * score + np.sign(x[:, 4] * x[:, 5]) + 0.5 * x[:, 6] - 1.5


def linear(x):
    return x, x @ np.linspace(-0.8, 0.8, COLUMNS)


def tailed(x):
    score = 1.2 * (x[:, 0] > 0.3) + 1.2 * x[:, 1] + x[:, 5] - 1.5 * (np.abs(x[:, 6]) < 0.6) + x[:, 8]
    return np.exp(x * np.linspace(0.5, 2, COLUMNS)), score - 0.2


def write_table(path, truth, seed):
    random = np.random.default_rng(seed)
    values, score = truth(random.normal(size=(PATIENTS, COLUMNS)))
    ill = random.random(PATIENTS) < 1 / (1 + np.exp(-score))
    absent = random.random((PATIENTS, 3)) < 0.15
    absent[absent.all(axis=1), 0] = False
    shown = np.where(np.repeat(absent, COLUMNS // 3, axis=1), "", values.round(4).astype(str))
    with path.open("w", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "site", "y", *(f"c{column}" for column in range(COLUMNS))])
        writer.writerows(
            [f"p{row}", "abcde"[row % 5], ["no", "yes"][int(ill[row])], *cells]
            for row, cells in enumerate(shown)
        )


@pytest.mark.parametrize("truth", [curved, linear, tailed], ids=lambda truth: truth.__name__)
def test_numeric_tables(tmp_path, truth):
    groups = {
        name: [f"c{column}" for column in range(at, at + 3)]
        for name, at in zip("abc", (0, 3, 6), strict=True)
    }
    found = {name: [] for name in VARIANTS}
    for seed in range(3):
        write_table(tmp_path / f"{seed}.csv", truth, seed)
        for number, (name, (keep_skewed, settings)) in enumerate(VARIANTS.items()):
            federation = tmp_path / f"fed{seed}-{number}"
            columns = TableColumns("id", "site", "y", groups)
            prepare_table(
                tmp_path / f"{seed}.csv",
                federation,
                columns,
                ("no", "yes"),
                keep_skewed=keep_skewed,
                seed=seed,
            )
            result = run_nodes(federation, tmp_path / f"run{seed}-{number}", settings=(*SETTINGS, *settings))
            found[name].append(result["metrics"]["test"]["pooled"]["auc"])
    aucs = {name: f"{np.mean(values):.3f} ({np.std(values, ddof=1):.3f})" for name, values in found.items()}
    report(f"{truth.__name__} table", **aucs)
    best = found["clip, bends, logarithms"]
    assert np.mean(best) > np.mean(found["as before"]) - (0.01 if truth is linear else -0.01)
