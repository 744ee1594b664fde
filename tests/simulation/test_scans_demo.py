"""Scans, embeddings, federation and report through `mmare-sim`, on heads that were drawn."""

import json
import re

import pytest
from typer.testing import CliRunner

from client.data.dataset import load_data
from mmare.study.study import load_study
from server.run.request import RunRequest
from simulation.cli import app
from simulation.run import run_federation
from sites.datasets.phantoms import prepare_synthetic_scans
from sites.federation import site_folders
from tests.federations import outcome

pytestmark = pytest.mark.slow

RUNNER = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"})
SMALL = ["--set", "training.rounds=2", "--set", "model.width=16"]


def invoke(*arguments: object):
    result = RUNNER.invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo over ten heads per hospital in volumes of 8 x 16 x 16."""
    out = tmp_path_factory.mktemp("demo")
    federation = out / "federation"
    prepare_synthetic_scans(federation, subjects=10)
    file = federation / "study.toml"
    study = load_study(file)
    size = ",\n".join(f"    {length}" for length in study.modalities[0].size)
    text = file.read_text()
    assert size in text
    file.write_text(text.replace(size, "    8,\n    16,\n    16"))
    assert load_study(file).modalities[0].size == (8, 16, 16)
    return out, invoke("demo", "--kind", "scans", "--out", out, *SMALL)


def test_the_demo_ends_with_three_runs_and_a_comparison(demo):
    out, result = demo
    assert result.exit_code == 0
    for mode in ("federated", "centralised", "local"):
        found = json.loads((out / mode / "result.json").read_text())
        assert found["rounds_run"] == 2 or mode == "local"
        assert (out / mode / "report.html").exists()
    assert re.search(r"^ *guys alone +\d?\.\d{3} .* to \d\.\d{3} *$", result.stdout, re.MULTILINE)
    assert f"report: {out / 'report.html'}\n" in result.stdout
    assert result.stdout.splitlines()[-1].endswith("prepare table --help")


def test_what_the_demo_prints_fits_a_screen(demo):
    out, result = demo
    lines = result.output.splitlines()
    assert len(lines) <= 24
    assert max(len(line.replace(str(out), "runs/demo").rstrip()) for line in lines) <= 100
    assert "\n\n" not in result.stderr


def test_the_demo_again_prints_the_same_and_trains_nothing(demo):
    out, result = demo
    before = (out / "federated" / "rounds.jsonl").read_bytes()
    again = invoke("demo", "--kind", "scans", "--out", out, *SMALL)
    assert again.stdout == result.stdout
    assert (out / "federated" / "rounds.jsonl").read_bytes() == before


def test_a_run_says_that_features_are_untrained(demo):
    _, result = demo
    assert "UNTRAINED" in result.stderr
    assert "scans encoded" in result.stderr


def test_scans_are_encoded_before_the_first_run_only(demo):
    _, result = demo
    assert result.stderr.count("scans encoded") == 1


def test_every_scan_that_was_drawn_is_in_its_row(demo):
    out, _ = demo
    study = load_study(out / "federation" / "study.toml")
    scans = len(list((out / "federation" / "scans").rglob("*.nii.gz")))
    found = 0
    for site in site_folders(out / "federation"):
        data = load_data(site, study)
        volumes = [slot for slot, modality in enumerate(study.modalities) if modality.kind == "volume"]
        found += int(data.present[:, volumes].sum())
        for slot in volumes:
            filled = data.embedding[slot].abs().sum(dim=1) > 0
            assert filled.tolist() == data.present[:, slot].tolist()
    assert 0 < found <= scans


def test_the_same_federation_gives_the_same_weights(demo, tmp_path):
    out, _ = demo
    run_federation(RunRequest(out / "federation", tmp_path / "again", set=tuple(SMALL[1::2])))
    assert outcome(tmp_path / "again") == outcome(out / "federated")


def test_a_scan_that_cannot_be_used_is_said_and_the_run_goes_on(demo, tmp_path):
    out, _ = demo
    site = site_folders(out / "federation")[0]
    study = load_study(out / "federation" / "study.toml")
    data = load_data(site, study)
    rows = data.present.sum(dim=1) > 1
    row = int(rows.nonzero()[0])
    lines = site.manifest.read_text().splitlines()
    cell = next(cell for cell in lines[row + 1].split(",") if cell.endswith(".nii.gz"))
    scan = site.folder / cell
    content = scan.read_bytes()
    scan.write_bytes(content[:200])
    try:
        result = invoke("run", out / "federation", "--out", tmp_path / "run", *SMALL)
    finally:
        scan.write_bytes(content)
    assert result.exit_code == 0
    assert f"{site.id}: 1 scans cannot be used" in result.stderr
