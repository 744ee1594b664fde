"""Make a model package of a finished run."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from safetensors.torch import save

from mmare.errors import InputError
from mmare.package.package import (
    CALIBRATION_FILE,
    CARD_FILE,
    ENCODERS_FILE,
    ENCODING_PATH,
    MOMENTS_FILE,
    PATTERNS_FILE,
    RESULTS_FILE,
    WEIGHTS_FILE,
    open_package,
)
from mmare.package.sealed import NOTICE, Facts, Sealed, as_json, check_free, seal, write_folder, write_sealed
from mmare.study.choices import TaskName
from mmare.study.study import STUDY_FILE
from mmare.wire.tensors import global_tensors
from server.release.average import decide_on_average
from server.release.card import card_of, read_statements
from server.release.decide import decide
from server.release.finished_run import FinishedRun, find_encoding, load_finished
from server.release.monai_bundle import bundle_files
from server.release.onnx_export import ONNX_FILE, onnx_model
from server.release.rendering import renderings
from server.store.model_file import load_model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mmare.study.study import Study
    from server.release.decide import PointRule

__all__ = ["release_model"]


def release_model(
    folder: Path,
    out: Path | None,
    *,
    encoding: Path | None = None,
    card: Path | None = None,
    rule: PointRule | None = None,
    onnx: bool = False,
    bundle: Path | None = None,
) -> Sealed:
    """Write the package of the run in ``folder``; the same run and options make the same bytes.

    Args:
        folder: Of a finished run.
        out: A folder or, if it ends in ``.zip``, a zip; without one nothing is written.
        encoding: How tables became vectors; by default what lies beside the study of the run.
        card: Statements of the makers.
        rule: How the operating point is chosen; without one the more probable class is called.
        onnx: Whether the package holds the model as an ONNX graph, too.
        bundle: A folder for the package in the layout of a MONAI bundle.

    Raises:
        InputError: If the run has no model for others, a file does not fit, or something else is at ``out``.
    """
    if bundle is not None:
        check_free(bundle)
        if out is not None and bundle.resolve().is_relative_to(out.resolve()):
            raise InputError(f"{bundle}: the package goes there; choose another name for the MONAI bundle")
    run = load_finished(folder)
    columns, why = find_encoding(run, encoding)
    not_stated = {"encodings": why} if why else {}
    patterns = run.patterns()
    if patterns is None:
        not_stated["patterns"] = "a site told no counts, as under secure sums"
    _check_options(run.study, rule, onnx=onnx, bundle=bundle)
    if run.study.task is TaskName.CLASSIFICATION:
        decisions = decide(run.study, run.states(), rule)
    else:
        decisions = decide_on_average(run.study, run.state.states)
    not_stated |= decisions.not_stated
    facts = Facts(
        study=run.study.name,
        study_hash=run.study.hash,
        run=run.state.name,
        mode=str(run.result["mode"]),
        trained=run.state.end.time if run.state.end else "",
        journal_sha256=run.journal_sha256,
        versions=run.result["versions"],
        not_stated=not_stated,
    )
    told = card_of(run, facts, decisions, read_statements(card))
    contents: dict[str, Any] = {
        ENCODERS_FILE: _plain(run.encoders()),
        MOMENTS_FILE: _plain(run.moments()),
        PATTERNS_FILE: None if patterns is None else _plain(patterns),
        CALIBRATION_FILE: {**decisions.made, "report": decisions.report},
        RESULTS_FILE: {
            key: run.result[key]
            for key in ("metrics", "left_out", "notes", "best_round", "start")
            if key in run.result
        },
        CARD_FILE: told,
    }
    files = {
        WEIGHTS_FILE: _weights(run, facts),
        STUDY_FILE: (folder / STUDY_FILE).read_bytes(),
        **{name: as_json(content) for name, content in contents.items()},
        **renderings(told),
    }
    if columns is not None:
        files[ENCODING_PATH] = columns.text().encode()
    sealed = seal(facts, files)
    if onnx:
        sealed = seal(facts, {**files, ONNX_FILE: onnx_model(open_package(sealed))})
    if out is not None:
        write_sealed(sealed, out)
    if bundle is not None:
        write_folder(bundle, bundle_files(open_package(sealed)))
    return sealed


def _check_options(study: Study, rule: PointRule | None, *, onnx: bool, bundle: Path | None) -> None:
    """Refuse what is of classes alone, and models without a site for what a site scales by its own."""
    own = ", ".join(each.name for each in study.modalities if each.scaling.is_own)
    for name, asked in (("an operating point", rule), ("--onnx", onnx), ("--monai-bundle", bundle)):
        if asked and study.task is not TaskName.CLASSIFICATION:
            raise InputError(f"{name} is of classes, found a run of task {study.task}")
        if asked and asked is not rule and own:
            raise InputError(f"{name} serves where no site is, but each site scales {own} by its own moments")


def _plain(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asdict(part) for name, part in parts.items()}


def _weights(run: FinishedRun, facts: Facts) -> bytes:
    """The run's weights, which say themselves where they come from."""
    tensors = {
        name: value.contiguous() for name, value in global_tensors(load_model(run.folder / "model")).items()
    }
    provenance = {
        "notice": NOTICE,
        **{name: getattr(facts, name) for name in ("study", "study_hash", "run", "journal_sha256")},
        "versions": facts.versions,
    }
    # One entry, since the order of several differs from call to call.
    return save(tensors, {"provenance": json.dumps(provenance, sort_keys=True)})
