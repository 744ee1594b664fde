"""A run of tables that were encoded, and the package of its model: made once, copied where it is harmed."""

import numpy as np
import pandas as pd
import tomli_w

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
