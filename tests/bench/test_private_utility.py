"""What secure sums and differential privacy cost in AUC. Run with ``make bench``.

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
from tests.data_folder import data_folder
from tests.federations import run_nodes

pytestmark = [pytest.mark.bench, pytest.mark.filterwarnings("default")]

SEEDS = range(20)
MMIST_SEEDS = range(20)
PRIVATE = ("privacy.extra=[]", "training.patience=1000", "training.noise_probability=0")
CHOSEN = ("model.width=64", "training.batch_size=256", "training.learning_rate=0.003", "training.rounds=40")
PROTECTIONS = {
    "none": (),
    "secure sums": ("privacy.secure_sum=true", "federation.min_sites=3", "privacy.min_count=5"),
    **{each: (f"privacy.dp.epsilon={each}", "privacy.dp.clip=1.0") for each in ("8", "3", "1")},
}


def prepared(folder, *arguments):
    """A federation made by ``mmare-sim prepare``, once."""
    if not folder.exists():
        made = CliRunner().invoke(app, ["prepare", *map(str, arguments), "--out", str(folder)])
        assert made.exit_code == 0, made.output
    return folder


def lengths(federation):
    """Settings that scale every modality by its length, which needs no moments of patients."""
    return (f"modality.{each.name}.scaling=l2" for each in load_study(federation / "study.toml").modalities)


def scores_of(federation, out, split=Split.TEST):
    """AUC and balanced accuracy of a run's model on the rows of all sites, without noise."""
    study, model = load_study(out / "study.toml"), load_model(out / "model")
    data = SiteData.pooled([load_data(site, study) for site in site_folders(federation)])
    rows = data.rows[split]
    state = MetricState.of(logits_of(model, data.embedding, rows, data.present[rows]), data.label[rows])
    found = state.compute(study.positive_index)
    return found["auc"], found["balanced_accuracy"]


def compared(folder, title, seeds, protections, *arguments):
    """Run and print every protection over the seeds of a data set."""
    torch.set_num_threads(1)
    found = {each: [] for each in protections}
    for seed, protection in product(seeds, protections):
        federation = prepared(folder / f"fed-{seed}", *arguments, "--seed", seed)
        out = folder / f"run-{seed}-{protection}"
        settings = (*PRIVATE, *lengths(federation), *CHOSEN, *PROTECTIONS[protection])
        run_nodes(federation, out, settings=settings)
        found[protection].append(scores_of(federation, out))
    for protection, values in found.items():
        auc, balanced = zip(*values, strict=True)
        report(
            f"{title}, {protection if protection in ('none', 'secure sums') else f'epsilon {protection}'}",
            auc=f"{statistics.mean(auc):.3f} ± {statistics.stdev(auc):.3f}",
            balanced_accuracy=f"{statistics.mean(balanced):.3f} ± {statistics.stdev(balanced):.3f}",
        )


@pytest.mark.parametrize("patients", [200, 1000])
def test_synthetic_by_protection(tmp_path, patients):
    title = f"three hospitals of {patients} patients"
    compared(tmp_path, title, SEEDS, PROTECTIONS, "synthetic", "--patients", patients)


@pytest.mark.data
@pytest.mark.parametrize("by", ["source", "hospital"])
def test_mmist_by_protection(tmp_path, by):
    source = data_folder("mmist")
    sites = [each for each in PROTECTIONS if by == "hospital" or each != "secure sums"]  # of three or more
    arguments = ("mmist", "--source", source, "--by", by, "--split", "stratified")
    compared(tmp_path, f"MMIST by {by}", MMIST_SEEDS, sites, *arguments)
