"""The recipe of tables on pooled rows beside simple models: the grid `small-sites` without its sites.

``python -m tests.bench.pooled_tables --cut cut --out FOLDER [--data NAME …] [--seeds 10]`` makes the steps of
the coordinator over full batches, in a fifth of the time of a run; it goes on from FOLDER/lines.jsonl.
"""

import argparse
import json
import math
import os
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from client.data.dataset import SiteData, load_data
from mmare.models.adapters import add_noise, moment_rows, pooled_moments
from mmare.models.blocks import exposures
from mmare.models.registry import build_model
from mmare.study.strategy_options import strategy_options
from mmare.wire.messages import Split
from server.aggregation.server_optimizers import steps_of
from simulation.grid.cell import Workplace, check_cell
from simulation.grid.file import find_grid, load_grid
from simulation.references import _loss, _models
from sites.federation import site_folders


def scale(model, data, rows):
    for slot, part in enumerate(data.embedding):
        having = moment_rows(part[rows][data.present[rows, slot]], model.scaling.scalings[slot])
        n = (~having.isnan()).sum(dim=0).tolist()
        moments = pooled_moments(n, having.nansum(dim=0).tolist(), having.square().nansum(dim=0).tolist())
        model.scaling.set_moments(slot, *moments)


def step(model, number, study, exposed, moments):
    """As `server.aggregation.strategies` steps: each block along its gradient, damped by its rows."""
    damping = strategy_options(study.federation.strategy, study.federation.options).damping
    values, steps = dict(model.named_parameters()), steps_of(model, study.training)
    for block in model.blocks():
        rows, optimizer = exposed[block.name], steps[block.name]
        factor = rows / (rows + damping) if optimizer.damped else 1.0
        for name in block.parameters if rows else ():
            column = slice(None) if block.column is None else (slice(None), block.column)
            value, change = values[name].data[column], -values[name].grad[column]
            kept = moments.get((block.name, name), [torch.zeros_like(value)] * len(optimizer.moments))
            made, moments[block.name, name] = optimizer.step(value, change, kept, number)
            values[name].data[column] = value + factor * (made - value)


def train(study, data):
    """Probabilities ``(N, K)`` of all rows by the model of the best round, that round, and the rounds run."""
    training, rows, model = study.training, data.rows, build_model(study)
    fit, val = rows[Split.TRAIN], rows[Split.VAL]
    scale(model, data, fit)
    present = model.scaling.visible(data.present)
    scaled = model.scaling(data.embedding, present)
    draws, moments = torch.Generator().manual_seed(study.seed), {}
    exposed, deviation = exposures(model.blocks(), present[fit]), model.scaling.noise_deviation()
    best = (math.inf, 0, None)
    for number in range(1, training.rounds + 1):
        model.train().zero_grad()
        noisy = scaled[fit]
        if training.noise_probability:
            noisy = add_noise(noisy, deviation, training.noise_probability, draws)
        model.loss(noisy, present[fit], data.label[fit], draws).backward()
        with torch.no_grad():
            step(model, number, study, exposed, moments)
            logits = model.eval().logits(scaled, present)
        loss = model.task.loss(logits[val], data.label[val]).item()
        if loss < best[0]:
            best = (loss, number, logits.double().softmax(dim=1).numpy())
        if number - best[1] >= training.patience:
            break
    return best[2], best[1], number


def measure(cell, place):
    request = check_cell(cell, place)
    sites = [load_data(site, request.study) for site in site_folders(request.federation)]
    data, homes = (
        SiteData.pooled(sites),
        np.repeat(np.arange(len(sites)), [len(each.label) for each in sites]),
    )
    label, (fit, val, test) = data.label.numpy(), (data.rows[split].numpy() for split in Split)
    found, best, rounds = train(request.study, data)
    aucs = {"ours": roc_auc_score(label[test], found[test, 1])}
    for name, inputs, candidates in _models(data, fit, homes[fit], request.study.seed):
        fitted = [candidate.fit(inputs[fit], label[fit]) for candidate in candidates]
        chosen = min(fitted, key=lambda each: _loss(each, inputs[val], label[val]))
        aucs[name] = roc_auc_score(label[test], chosen.predict_proba(inputs[test])[:, 1])
    return {
        "data": cell.data.name,
        "seed": cell.seed,
        "rows": len(label),
        "best": best,
        "rounds": rounds,
        "auc": aucs,
    }


def show(lines):
    for name in dict.fromkeys(each["data"] for each in lines):
        own = [each for each in lines if each["data"] == name]
        ours = np.array([each["auc"]["ours"] for each in own])
        parts = [
            f"{len(own)} splits, {own[0]['rows']} rows, best round {np.median([e['best'] for e in own]):g}"
        ]
        parts += [f"ours {ours.mean():.3f}"]
        for other in own[0]["auc"]:
            gap = ours - np.array([each["auc"].get(other, np.nan) for each in own])
            half = (
                stats.t.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / len(gap) ** 0.5
                if len(gap) > 1
                else np.nan
            )
            if other != "ours":
                mean = ours.mean() - gap.mean()
                low, high = gap.mean() - half, gap.mean() + half
                parts.append(f"{other} {mean:.3f}, {gap.mean():+.3f} ({low:+.3f}, {high:+.3f})")
        print(f"{name}: " + "; ".join(parts))  # noqa: T201 - a benchmark


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cut", type=Path, required=True, help="what tests.bench.cut_tables wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", action="append", help="of the grid; by default those of fewest sites")
    parser.add_argument("--seeds", type=int, default=10)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    grid, file = load_grid(find_grid("small-sites")), asked.out / "lines.jsonl"
    place = Workplace.make(grid.sources, asked.out, [f"cut={asked.cut}"])
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(each["data"], each["seed"]) for each in lines}
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for cell in grid.cells:
        wanted = (
            cell.data.name in asked.data
            if asked.data
            else not cell.data.name.endswith(("34 sites", "100 sites"))
        )
        key = (cell.data.name, cell.seed)
        if cell.mode == "centralised" and wanted and cell.seed < asked.seeds and key not in done:
            lines.append(measure(cell, place))
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(lines[-1]) + "\n")
    show(lines)


if __name__ == "__main__":
    main()
