"""Made-up grids for tests of the report: every metric of a cell comes from one set of made-up predictions."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from simulation.grid.file import load_grid
from simulation.grid.plan import Cell

SITES = ("north", "south", "west")
NAMES = {
    "ixi": ("t1", "t2", "pd", "mra"),
    "mmist": ("ct", "mri", "wsi"),
    "synthetic": ("scan", "lab", "note"),
}
SIZES = {"drim": 17_594_630, "unilmmv": 20_986_000, "adacomed": 18_643_465, "hypermm": 12_846_594}
SKILL = {"mmare": 0.8, "drim": 0.74, "unilmmv": 0.72, "adacomed": 0.75, "hypermm": 0.68, "unimodal": 0.6}


def scores(confusion: Sequence[Sequence[int]], auc: float | None) -> dict[str, Any]:
    """Metrics of counts (true class, predicted class); not those of the product, so that tests are fair."""
    classes = range(len(confusion))
    n = sum(map(sum, confusion))
    recalls, precisions, f1s = [], [], []
    for k in classes:
        truly, guessed = sum(confusion[k]), sum(row[k] for row in confusion)
        recalls.append(confusion[k][k] / truly if truly else None)
        precisions.append(confusion[k][k] / guessed if guessed else 0.0)
        f1s.append(2 * confusion[k][k] / (truly + guessed) if truly + guessed else 0.0)
    whole = None not in recalls and n > 0
    two = len(confusion) == 2 and whole
    return {
        "n": n,
        "accuracy": sum(confusion[k][k] for k in classes) / n if n else None,
        "balanced_accuracy": sum(recalls) / len(recalls) if whole else None,
        "macro_recall": sum(recalls) / len(recalls) if whole else None,
        "macro_precision": sum(precisions) / len(precisions) if whole else None,
        "macro_f1": sum(f1s) / len(f1s) if whole else None,
        "f1": f1s[1] if two else None,
        "precision": precisions[1] if two else None,
        "recall": recalls[1] if two else None,
        "auc": auc if whole else None,
    }


def guesses(rng: random.Random, classes: int, n: int, skill: float) -> list[list[int]]:
    confusion = [[0] * classes for _ in range(classes)]
    for _ in range(n):
        truth = rng.randrange(classes)
        wrong = [k for k in range(classes) if k != truth]
        confusion[truth][truth if rng.random() < skill else rng.choice(wrong)] += 1
    return confusion


def added(parts: Iterable[Sequence[Sequence[int]]]) -> list[list[int]]:
    parts = list(parts)
    size = range(len(parts[0]))
    return [[sum(part[i][j] for part in parts) for j in size] for i in size]


def tested(
    rng: random.Random, classes: int, names: Sequence[str], skill: float, *, subsets: bool
) -> dict[str, Any]:
    """Test metrics of one model: sites, patterns and pooled are cuts of the same predictions."""
    full = "1" * len(names)
    kinds = [full, *(full[:slot] + "0" + full[slot + 1 :] for slot in range(len(names)))]
    cells = {
        (site, kind): guesses(rng, classes, 26 - 4 * i - 3 * j, skill - 0.05 * i - 0.02 * j)
        for i, site in enumerate(SITES)
        for j, kind in enumerate(kinds)
    }

    def auc(level: float) -> float:
        return min(max(rng.gauss(level + 0.06, 0.02), 0.3), 0.99)

    def block(pick: Any, level: float) -> dict[str, Any]:
        return scores(added(counts for key, counts in cells.items() if pick(key)), auc(level))

    sites = {
        site: block(lambda key, site=site: key[0] == site, skill - 0.05 * i) for i, site in enumerate(SITES)
    }
    worst = min(SITES, key=lambda site: sites[site]["balanced_accuracy"])
    found = {
        "pooled": block(lambda _: True, skill),
        "sites": sites,
        "patterns": {kind: block(lambda key, kind=kind: key[1] == kind, skill) for kind in kinds},
        "worst_site": {"site": worst, "balanced_accuracy": sites[worst]["balanced_accuracy"]},
        "over": {},
    }
    if subsets:
        masks = [format(number, f"0{len(names)}b") for number in range(1, 2 ** len(names))]
        found["subsets"] = {
            mask: scores(guesses(rng, classes, 90, skill - 0.1 + 0.05 * mask.count("1")), auc(skill - 0.05))
            for mask in masks
        }
    return found


def result_of(cell: Cell, *, subsets: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A made-up result; the same for the same cell."""
    rng = random.Random(cell.id)  # noqa: S311 - made-up numbers
    names = NAMES[cell.data.prepare[0]]
    if "clinical" in cell.data.name and "without" not in cell.data.name:
        names = (*names, "clinical")
    classes = 3 if cell.data.task == "epoch" else 2
    rate = cell.missing.rate or 0.0
    skill = SKILL.get(cell.model.name, 0.7) - 0.15 * rate - 0.12 * (classes - 2)
    skill += 0.02 * len(cell.strategy.set) - 0.02 * ("model.fusion=mean" in cell.ablation.set)
    skill += {"federated": 0.0, "centralised": 0.03, "local": -0.08}[cell.mode.value]
    size = SIZES.get(cell.model.name, 960_130)
    result: dict[str, Any] = {
        "study": "made-up", "model": cell.model.name, "strategy": "fedavg", "mode": cell.mode.value,
        "seed": cell.seed, "rounds_run": rng.randint(40, 120), "best_round": rng.randint(10, 40),
        "parameters": {"trainable": size, "federated": size}, "bytes": {"up_per_round": size * 4},
        "seconds": {"total": 10 + rng.random() * size / 1e6, "rounds": 8, "train": 6 + rng.random()},
        "versions": {"torch": "2.15.0", "flwr": "1.41.2"},
        "left_out": [{"site": "west", "round": 3, "reason": "S203"}] if cell.seed == 1 else [],
    }  # fmt: skip
    if cell.mode.value == "local":
        result["local"] = {}
        for i, site in enumerate(SITES):
            test = tested(rng, classes, names, skill - 0.03 * i, subsets=False)
            own = scores(
                guesses(rng, classes, test["sites"][site]["n"], skill + 0.02), skill + rng.gauss(0.08, 0.02)
            )
            result["local"][site] = {"best_round": 9, "metrics": {"test": {**test, "own": own}}}
            test["sites"][site] = own
    else:
        result["metrics"] = {"validation": {}, "test": tested(rng, classes, names, skill, subsets=subsets)}
    return result, names


def amputated(cell: Cell, names: Sequence[str]) -> dict[str, Any] | None:
    if cell.missing.rate is None:
        return None
    rng = random.Random(f"{cell.federation}")  # noqa: S311 - made-up numbers
    return {
        "mechanism": cell.missing.mechanism, "rate": cell.missing.rate, "seed": cell.seed,
        "sites": {
            site: {
                "never": [],
                "modalities": {
                    name: {
                        "patients": 100 + 20 * i, "target": cell.missing.rate,
                        "achieved": cell.missing.rate - rng.random() * 0.03,
                    }
                    for name in names
                },
            }
            for i, site in enumerate(SITES)
        },
    }  # fmt: skip


def line_of(cell: Cell, grid: str, *, subsets: bool = False) -> dict[str, Any]:
    result, names = result_of(cell, subsets=subsets)
    return {
        "cell": cell.id, "grid": grid, "settings": cell.settings, "amputation": amputated(cell, names),
        "seconds": 12.5, "result": result, "modalities": list(names), "classes": ["a", "b"],
    }  # fmt: skip


def make_grid(folder: Path, text: str, *, leave_out: Iterable[int] = ()) -> list[dict[str, Any]]:
    """Write the folder of a grid as a grid leaves it.

    Args:
        folder: To be made.
        text: Of ``grid.toml``.
        leave_out: Positions of cells without a result.

    Returns:
        The lines of ``results.jsonl``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "grid.toml").write_text(text, encoding="utf-8")
    grid = load_grid(folder / "grid.toml")
    gone = set(leave_out)
    lines = [
        line_of(cell, grid.head.name, subsets=grid.head.subsets)
        for position, cell in enumerate(grid.cells)
        if position not in gone
    ]
    write_lines(folder, lines)
    return lines


def write_lines(folder: Path, lines: Iterable[dict[str, Any]]) -> None:
    (folder / "results.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
