"""What differential privacy costs in AUC, on synthetic hospitals. Run with ``make bench``.

The AUC is of the finished model on the test rows of all sites, without the noise that a run adds to what it
reports. Settings were chosen once, on the validation rows of another seed.
"""

import statistics
from itertools import product

import pytest
import torch
from typer.testing import CliRunner

from client.data.dataset import SiteData, load_data
from client.training.evaluate import logits_of
from mmare.metrics.state import MetricState
from mmare.study.study import load_study
from mmare.wire.messages import Split
from server.store.model_file import load_model
from simulation.cli import app
from sites.federation import site_folders
from tests.bench.printed import report
from tests.federations import run_nodes

pytestmark = [pytest.mark.bench, pytest.mark.filterwarnings("default")]

SEEDS = range(5)
PRIVATE = (
    *(f"modality.{name}.scaling=l2" for name in ("t1", "t2", "flair")),
    "privacy.extra=[]",
    "training.patience=1000",
)
CHOSEN = ("model.width=64", "training.batch_size=256", "training.learning_rate=0.003", "training.rounds=40")


def prepared(folder, patients, seed):
    made = CliRunner().invoke(
        app,
        ["prepare", "synthetic", "--patients", str(patients), "--seed", str(seed), "--out", str(folder)],
    )
    assert made.exit_code == 0, made.output
    return folder


def auc_of(federation, out, split=Split.TEST):
    """Of a run's model on the rows of all sites, without noise."""
    study, model = load_study(out / "study.toml"), load_model(out / "model")
    data = SiteData.pooled([load_data(site, study) for site in site_folders(federation)])
    rows = data.rows[split]
    state = MetricState.of(logits_of(model, data.embedding, rows, data.present[rows]), data.label[rows])
    return state.compute(study.positive_index)["auc"]


@pytest.mark.parametrize("patients", [200, 1000])
def test_auc_by_epsilon(tmp_path, patients):
    torch.set_num_threads(1)
    found = {"none": [], "8": [], "3": [], "1": []}
    for seed, epsilon in product(SEEDS, found):
        federation = tmp_path / f"fed-{seed}"
        if not federation.exists():
            prepared(federation, patients, seed)
        private = () if epsilon == "none" else (f"privacy.dp.epsilon={epsilon}", "privacy.dp.clip=1.0")
        out = tmp_path / f"run-{seed}-{epsilon}"
        run_nodes(federation, out, settings=(*PRIVATE, *CHOSEN, *private))
        found[epsilon].append(auc_of(federation, out))
    for epsilon, values in found.items():
        report(
            f"three hospitals of {patients} patients, epsilon {epsilon}",
            auc=f"{statistics.mean(values):.3f}",
            deviation=f"{statistics.stdev(values):.3f}",
        )
