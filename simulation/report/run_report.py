"""Write ``report.html``: one self-contained page for a run, or for the runs of one study side by side.

This module prepares the values; text and layout are in ``report_template.html.j2``, figures in
`simulation.report.figures`. matplotlib is imported when a page is written, so that importing stays cheap.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmare.errors import InputError
from mmare.study.choices import Select, TaskName
from mmare.study.outcome import SPECS, TASKS, headline_of
from mmare.study.study import Study
from server.monitoring.run_state import RunState
from server.store.events import SiteUpdate
from simulation.report.page import render_page, replace_page
from simulation.report.results import (
    MODES,
    Comparison,
    Estimate,
    RunRecord,
    absences,
    find_runs,
    line_up,
    load_run,
    local_journals,
    site_names,
)

__all__ = ["GAIN", "REFERENCES", "write_comparison", "write_report"]

SPLITS = {"train": "Train", "val": "Validation", "test": "Test"}
BINARY_METRICS = {"f1": "F1", "precision": "Precision", "recall": "Recall"}
CALIBRATION = {"log_loss": "Log loss", "brier": "Brier score", "ece": "ECE"}
SELECTED_BY = {
    Select.BALANCED_ACCURACY: "best validation balanced accuracy over all sites, ties to the lower loss",
    Select.WORST_SITE: "best validation score of the worst site, ties to the lower loss",
    Select.AUC: "best validation AUC over all sites, ties to the lower loss",
    Select.LOSS: "lowest validation loss over all sites",
    Select.BALANCED_LOSS: "lowest validation loss over all sites, classes alike",
    Select.CONCORDANCE: "best validation concordance over all sites, ties to the lower loss",
    Select.R2: "best validation R² over all sites, ties to the lower loss",
}
GAIN = "gain.json"
REFERENCES = "references.json"
PHASES = {
    "setup": "Setup (data, roll call, scaling)",
    "wait": "Training at the sites, and waiting for them",
    "aggregate": "Averaging their updates",
    "evaluate": "Merging their metrics",
    "checkpoint": "Writing checkpoints",
}

View = dict[str, Any]


def write_report(run: Path) -> Path:
    """Write (or replace) ``report.html`` in the folder of a finished run.

    Raises:
        InputError: If a file of a finished run is missing or damaged.
    """
    record = load_run(run)
    view = _local_view(record) if record.mode == "local" else _run_view(record)
    return replace_page(run / "report.html", render_page(view))


def write_comparison(folder: Path) -> Path:
    """Write (or replace) ``report.html``, which compares the runs one or two levels below a folder.

    Raises:
        InputError: If there is no finished run, one is damaged, or they are of different studies.
    """
    runs = find_runs(folder)
    if runs == [folder]:
        raise InputError(f"{folder}: a comparison needs a folder that holds runs, found a run")
    view = _comparison_view(line_up([load_run(run) for run in runs]), folder)
    return replace_page(folder / "report.html", render_page(view))


def _run_view(record: RunRecord) -> View:
    """The page of a federated or centralised run."""
    from server.release.decide import decide  # noqa: PLC0415 - torch and matplotlib take seconds
    from server.store.states import parse_states  # noqa: PLC0415 - as above
    from simulation.report import calibration_figures, figures, shapley_figures, survival_figures  # noqa: PLC0415 - as above

    sites = site_names(record)
    study, outcome = record.study, TASKS[record.study.task]
    states = parse_states(record.state.states, len(study.classes)) if _of_classes(study) else {}
    decided = decide(study, states, None)
    test = record.result["metrics"].get("test") or {}
    traffic = _traffic(record.state)
    common = _common(record, sites, ())
    by_threshold = (test.get("operating_point") or {}).get("pooled") or {}
    return {
        **common,
        "kind": "run",
        "called": {key: title for key, title in common["columns"].items() if key in by_threshold},
        "present": [site for site in sites if site in traffic or site in (test.get("sites") or {})],
        "test": test,
        "validation": record.result["metrics"].get("validation") or {},
        "withheld_rows": _withheld_rows(test, sites),
        "spread": _spread(test),
        "gain": _measured(record, GAIN, "gain"),
        "references": _measured(record, REFERENCES, "run --references"),
        "calibrated": decided.made.get("calibration"),
        "decided": decided.report,
        "plots": calibration_figures.calibration_drawings(decided.report),
        "shapley": test.get("shapley") or {},
        "rests_on": shapley_figures.shapley_drawings(test.get("shapley") or {}, sites),
        "curves": figures.curves_of_run(record, sites, outcome),
        "by_risk": survival_figures.risk_group_drawings(test.get("risk_groups"), study),
        "forests": figures.figures_of_test(test, sites, outcome.shown),
        "times": _times(record),
        "traffic": traffic,
    }


def _local_view(record: RunRecord) -> View:
    """The page of a run in which each site trained alone."""
    from simulation.report import figures  # noqa: PLC0415 - matplotlib is loaded only when a page is written

    journals = local_journals(record)
    sites = site_names(record)
    alone = line_up([record])
    return {
        **_common(record, sites, tuple(journals.values())),
        "kind": "local",
        "local": record.result["local"],
        "curves": figures.curves_alone(journals, sites, TASKS[record.study.task]),
        "comparison": alone,
        "matrices": _matrices(alone),
    }


def _comparison_view(comparison: Comparison, folder: Path) -> View:
    """The page of several runs."""
    from simulation.report import figures  # noqa: PLC0415 - matplotlib is loaded only when a page is written

    return {
        **_page(comparison.study, comparison.sites),
        "kind": "comparison",
        "comparison": comparison,
        "runs": [(str(record.folder.relative_to(folder)), record) for record in comparison.records],
        "tiles": _tiles(comparison),
        "forests": figures.comparison_figures(comparison),
        "matrices": _matrices(comparison),
    }


def _page(study: Study, sites: Sequence[str]) -> View:
    """What all pages have in common."""
    from simulation.report import figures  # noqa: PLC0415 - matplotlib is loaded only when a page is written

    classes, outcome = _of_classes(study), TASKS[study.task]
    named = ("name", "classes", "positive", "seed") if classes else ("name", "task", "seed")
    settings = {
        "study": {name: getattr(study, name) for name in named},
        **{name: asdict(spec) for name in SPECS if (spec := getattr(study, name)) is not None},
        "model": {"name": study.model.name, **study.model.options},
        "training": asdict(study.training),
        "federation": asdict(study.federation),
        "privacy": asdict(study.privacy),
    }
    binary = {key: f"{name} ({study.positive})" for key, name in BINARY_METRICS.items()}
    if study.positive is None or len(study.classes) != 2:  # noqa: PLR2004 - binary metrics are of two classes
        binary = {}
    return {
        "study": study,
        "sites": sites,
        "present": sites,
        "palette": figures.PALETTE,
        "marks": {
            site: (figures.site_variable(position), " ".join(map(str, figures.site_dash(position))))
            for position, site in enumerate(sites)
        },
        "settings": settings,
        "modalities": [asdict(modality) for modality in study.modalities],
        "headline": outcome.shown,
        "extra": {"accuracy": "Accuracy"} if classes else {**outcome.further, **at_horizons(study)},
        "worst_by": (outcome.headline, outcome.shown[outcome.headline]),
        "method": outcome.method,
        "columns": {**outcome.shown, **outcome.further, **binary, **at_horizons(study)},
        "calibration": CALIBRATION if classes else {},
        "shapley": {},
        "modes": MODES,
        "splits": SPLITS,
    }


def _common(record: RunRecord, sites: Sequence[str], alone: Sequence[RunState]) -> View:
    """What the pages of single runs have in common; ``alone`` are the states of sites that trained alone."""
    page = _page(record.study, sites)
    state = record.state
    # The journal also has the options that the model filled in itself.
    written = {} if state.first is None else state.first.settings.get("model", {})
    page["settings"]["model"] = {**written, **page["settings"]["model"]}
    page["settings"]["study"]["seed"] = record.seed
    calls = {site: call for each in (state, *alone) for site, call in each.calls.items()}
    counts = {site: call.counts for site, call in sorted(calls.items()) if call.counts}
    return {
        **page,
        "record": record,
        "result": record.result,
        "began": state.first.time if state.first else "",
        "ended": state.end.time if state.finished and state.end else "",
        "interruptions": max(state.starts - 1, 0),
        "absences": absences(record),
        "selected_by": SELECTED_BY[record.study.training.select],
        "least": record.study.privacy.min_count,
        "rows": {site: each.get("splits") or {} for site, each in counts.items()},
        "patterns": _patterns(counts),
        "scaling": state.scaling,
        "own_scaling": ", ".join(each.name for each in record.study.modalities if each.scaling.is_own),
    }


def at_horizons(study: Study) -> dict[str, str]:
    """Titles of the metrics at each horizon of task survival."""
    spec = study.survival
    if spec is None:
        return {}
    titles = {"auc": "AUC", "brier": "Brier score", "calibration": "Observed over expected"}
    return {
        f"{name}_{time:g}": f"{title} at {time:g} {spec.unit}"
        for time in spec.horizons
        for name, title in titles.items()
    }


def _of_classes(study: Study) -> bool:
    return study.task is TaskName.CLASSIFICATION


def _measured(record: RunRecord, name: str, command: str) -> View | None:
    """What another command measured and left in the run's folder, if it did."""
    path = record.folder / name
    if not path.exists():
        return None
    try:
        found: View = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"{path}: not JSON; expected what mmare-sim {command} writes") from None
    return found


def _patterns(counts: Mapping[str, Mapping[str, Any]]) -> list[View]:
    """Presence patterns, most frequent first; per site the counts by split and the share of train rows."""
    found: dict[str, dict[str, dict[str, int | None]]] = {}
    for site, reported in counts.items():
        for split, patterns in (reported.get("patterns") or {}).items():
            for pattern, n in (patterns or {}).items():
                found.setdefault(pattern, {}).setdefault(site, {})[split] = n
    train = {
        site: sum(cells[site].get("train") or 0 for cells in found.values() if site in cells)
        for site in counts
    }
    rows = [
        {
            "pattern": pattern,
            "cells": cells,
            "share": {
                site: (splits.get("train") or 0) / max(train[site], 1) for site, splits in cells.items()
            },
            "n": sum(n or 0 for splits in cells.values() for n in splits.values()),
        }
        for pattern, cells in found.items()
    ]
    return sorted(rows, key=lambda row: (-row["n"], row["pattern"]))


def _withheld_rows(test: Mapping[str, Any], sites: Sequence[str]) -> dict[str, list[str]]:
    """Per class, the tested sites whose rows the pooled values leave out."""
    tested = [site for site in sites if site in (test.get("sites") or {})]
    over = test.get("over") or {}
    missing = {name: [site for site in tested if site not in covered] for name, covered in over.items()}
    return {name: absent for name, absent in missing.items() if absent}


def _spread(test: Mapping[str, Any]) -> View | None:
    """Best and worst site by the headline metric, if at least two have one."""
    name = headline_of(test.get("pooled") or {})
    values = {
        site: metrics[name]
        for site, metrics in sorted((test.get("sites") or {}).items())
        if metrics and metrics.get(name) is not None
    }
    worst = test.get("worst_site")
    if not worst and values:
        site = min(values, key=values.__getitem__)
        worst = {"site": site, name: values[site]}
    if not worst or len(values) < 2:  # noqa: PLR2004 - one site has no spread
        return None
    best = max(values, key=values.__getitem__)
    gap = values[best] - worst[name]
    return {"worst": worst, "best": best, "value": values[best], "gap": gap}


def _times(record: RunRecord) -> list[View]:
    """Seconds of each phase of a run, and its share of the total."""
    seconds = record.result.get("seconds") or {}
    phases = {"setup": float(seconds.get("setup") or 0)}
    for row in record.state.rounds.values():
        for phase, value in {**row.phases, "checkpoint": row.checkpoint_s}.items():
            phases[phase] = phases.get(phase, 0.0) + float(value or 0)
    total = max(float(seconds.get("total") or 0), sum(phases.values()))
    rows = [(PHASES.get(phase, phase), value) for phase, value in phases.items()]
    rows.append(("Everything else", total - sum(phases.values())))
    return [
        {"phase": phase, "seconds": value, "share": value / total if total else 0.0} for phase, value in rows
    ]


def _traffic(state: RunState) -> dict[str, View]:
    """Per site: number of rounds, and means per round of samples, seconds, update norm and bytes."""
    rounds: dict[str, list[SiteUpdate]] = {}
    for row in state.rounds.values():
        for site, update in row.updates.items():
            rounds.setdefault(site, []).append(update)
    keys = ("samples", "seconds", "norm", "bytes_up", "bytes_down")
    return {
        site: {
            "rounds": len(updates),
            **{key: sum(float(getattr(each, key) or 0) for each in updates) / len(updates) for key in keys},
        }
        for site, updates in sorted(rounds.items())
    }


def _tiles(comparison: Comparison) -> list[tuple[str, Estimate]]:
    """Pooled test headline metric of each mode; of sites trained alone, the best and the worst."""
    name = TASKS[comparison.study.task].headline
    found = [(way, way.on(None, name)) for way in reversed(comparison.contenders)]
    tiles = [(MODES[way.mode], value) for way, value in found if way.mode != "local"]
    alone = [(way, value) for way, value in found if way.mode == "local" and value.value is not None]
    alone.sort(key=lambda pair: pair[1].value or 0.0, reverse=True)
    if alone:
        tiles.append((f"Best site alone: {alone[0][0].site}", alone[0][1]))
    if len(alone) > 1:
        tiles.append((f"Worst site alone: {alone[-1][0].site}", alone[-1][1]))
    return tiles


def _matrices(comparison: Comparison) -> list[View]:
    """Per metric: each way to train (rows) on all test rows and on each site's (columns)."""
    columns = (None, *comparison.sites)
    return [
        {
            "title": title,
            "rows": [(c, [(rows, c.on(rows, metric)) for rows in columns]) for c in comparison.contenders],
        }
        for metric, title in TASKS[comparison.study.task].shown.items()
    ]
