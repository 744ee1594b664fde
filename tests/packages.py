"""A run of tables that were encoded, and the package of its model: made once, copied where it is harmed."""

import numpy as np
import pandas as pd
import tomli_w
from safetensors.torch import save

from mmare.models.registry import build_model
from mmare.package.sealed import Facts, as_json, seal, write_sealed
from mmare.wire.tensors import global_tensors
from sites.datasets.table import TableColumns, prepare_table
from tests.federations import run_nodes

COLUMNS = TableColumns(
    id="id",
    site="hospital",
    label="outcome",
    modalities={"exam": ("age", "sex"), "lab": ("crp", "ldl")},
    categorical=("sex",),
)
SETTINGS = ("training.rounds=2", "model.width=8", "training.learning_rate=0.01")


def table_run(folder, settings=(), rows=180):
    """Three hospitals of 60 patients by turns, some of whom lack an examination; gives the run's folder."""
    random = np.random.default_rng(5)
    outcome = random.integers(0, 2, rows)
    frame = pd.DataFrame(
        {
            "id": [f"p{row}" for row in range(rows)],
            "hospital": np.array(["ash", "birch", "cedar"])[np.arange(rows) % 3],
            "outcome": np.array(["well", "ill"])[outcome],
            "age": random.integers(30, 80, rows) + 5 * outcome,
            "sex": np.array(["f", "m"])[random.integers(0, 2, rows)],
            "crp": random.normal(3, 1, rows) + outcome,
            "ldl": random.normal(2, 1, rows),
        }
    )
    frame.loc[frame.index % 5 == 0, ["crp", "ldl"]] = None
    frame.to_csv(folder / "patients.csv", index=False)
    prepare_table(folder / "patients.csv", folder / "fed", COLUMNS, ("well", "ill"))
    run_nodes(folder / "fed", folder / "run", settings=(*SETTINGS, *settings))
    return folder / "run"


def as_toml(study):
    """A study as its file."""
    return tomli_w.dumps(study.to_dict()).encode()


def made_package(path, study, encoders=(), rows=None, **files):
    """A package of an untrained model, sealed by hand; a keyword replaces the content of a JSON file.

    Args:
        path: To write, a folder or a zip.
        study: Of it.
        encoders: Fingerprints by modality.
        rows: Train rows by class, of one site.
        files: Such as ``patterns={"10": {"n": 4}}``.
    """
    made = {
        each.name: {
            "kind": each.kind,
            "encoder": each.encoder,
            "fingerprint": dict(encoders)[each.name],
            "sites": ["ash"],
        }
        for each in study.modalities
        if each.name in dict(encoders)
    }
    contents = {
        "encoders": made,
        "moments": {},
        "patterns": {},
        "calibration": {},
        "results": {"metrics": {}, "notes": [], "left_out": []},
        "card": {"training": {"rows": {"ash": {"train": rows}} if rows else {}}},
        **files,
    }
    facts = Facts(study.name, study.hash, "run-1", "federated", "2026-11-29T12:00:00+00:00", "0" * 64, {})
    model = {"weights.safetensors": save(global_tensors(build_model(study))), "study.toml": as_toml(study)}
    sealed = seal(facts, model | {f"{name}.json": as_json(content) for name, content in contents.items()})
    write_sealed(sealed, path)
    return path
