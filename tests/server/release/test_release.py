import json
import shutil

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from client.data.dataset import load_data
from client.training.evaluate import pattern_names
from mmare.errors import InputError
from mmare.models.batch import Batch
from mmare.package.package import read_package
from mmare.study.encoding import load_encoding
from mmare.wire.messages import Split
from server.cli import app
from server.release.release import release_model
from server.store.model_file import load_model
from sites.federation import site_folders
from tests.federations import run_nodes, tiny_federation
from tests.packages import table_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return table_run(tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module")
def package(run):
    release_model(run, run.parent / "model")
    return read_package(run.parent / "model")


def test_a_package_predicts_as_the_model_of_the_run(run, package):
    model = load_model(run / "model")
    generator = torch.Generator().manual_seed(0)
    embedding = tuple(
        torch.randn(6, each.width, generator=generator) * 3 for each in package.study.modalities
    )
    batch = Batch(embedding, torch.tensor([[True, True], [True, False], [False, True]]).repeat(2, 1))
    with torch.inference_mode():
        logits, expected = package.model(batch), model(batch)
    assert torch.equal(logits, expected)
    assert torch.equal(package.judge(logits).call, expected.argmax(dim=1))


def test_what_sites_told_is_in_the_package(run, package):
    sites = [load_data(site, package.study) for site in site_folders(run.parent / "fed")]
    train = [name for data in sites for name in pattern_names(data.present[data.rows[Split.TRAIN]])]
    assert {name: count.n for name, count in package.patterns.items()} == {
        name: train.count(name) for name in set(train)
    }
    assert package.encoding == load_encoding(run.parent / "fed" / "encoding.json")
    assert package.encoders["lab"].fingerprint == sites[0].encoders["lab"]
    rows = torch.cat([data.embedding[0][data.rows[Split.TRAIN]] for data in sites])
    held = torch.cat([data.present[data.rows[Split.TRAIN], 0] for data in sites])
    assert package.moments["exam"].n == int(held.sum())
    torch.testing.assert_close(package.mean("exam"), rows[held].double().mean(dim=0).float())
    result = json.loads((run / "result.json").read_text())
    assert package.results["metrics"] == result["metrics"]


def test_the_weights_say_themselves_where_they_come_from(run, package):
    with safe_open(run.parent / "model" / "weights.safetensors", framework="pt") as file:
        said = json.loads(file.metadata()["provenance"])
    assert said["notice"] == "research use, not for clinical decisions"
    assert (said["study_hash"], said["run"]) == (package.study.hash, package.facts.run)
    assert said["journal_sha256"] == package.facts.journal_sha256


def test_the_same_run_is_the_same_package(run, package):
    again = release_model(run, run.parent / "again.zip")
    assert again.digest == package.digest
    before = (run.parent / "again.zip").read_bytes()
    release_model(run, run.parent / "again.zip")
    assert (run.parent / "again.zip").read_bytes() == before
    assert read_package(run.parent / "again.zip").sealed.files == package.sealed.files


def test_what_is_not_known_is_not_stated(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    journal = (copy / "rounds.jsonl").read_text().replace(str(run.parent / "fed"), str(tmp_path / "gone"))
    (copy / "rounds.jsonl").write_text(journal)
    package = release_model(copy, tmp_path / "model")
    assert "no encoding.json" in package.facts.not_stated["encodings"]
    assert read_package(tmp_path / "model").encoding is None
    assert read_package(tmp_path / "model").card["statements"]["licence"] == "not stated"


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        pytest.param(lambda run: (run / "rounds.jsonl").unlink(), "no run here", id="no-run"),
        pytest.param(
            lambda run: (run / "rounds.jsonl").write_text(
                (run / "rounds.jsonl").read_text().replace("run_finished", "run_failed")
            ),
            "has not ended",
            id="not-ended",
        ),
        pytest.param(lambda run: (run / "result.json").unlink(), "cannot be read", id="no-result"),
        pytest.param(
            lambda run: (run / "model" / "model.safetensors").write_bytes(b"x"), "model", id="cut-model"
        ),
        pytest.param(
            lambda run: (run / "result.json").write_text('{"mode": "local"}'), "trained alone", id="alone"
        ),
    ],
)
def test_a_run_without_a_model_for_others_is_refused(run, tmp_path, harm, sentence):
    copy = shutil.copytree(run, tmp_path / "run")
    harm(copy)
    with pytest.raises(InputError, match=sentence):
        release_model(copy, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_encoding_other_than_the_sites_own_is_refused(run, tmp_path):
    other = (run.parent / "fed" / "encoding.json").read_text().replace('"crp"', '"CRP"')
    (tmp_path / "encoding.json").write_text(other)
    with pytest.raises(InputError, match="encodes lab otherwise than the sites did"):
        release_model(run, tmp_path / "model", encoding=tmp_path / "encoding.json")


def test_small_groups_stay_withheld(tmp_path):
    """What a site did not tell is counted as sites, not as patients."""
    federation = tiny_federation(tmp_path / "fed", patients=24)
    run_nodes(federation, tmp_path / "run", settings=("training.rounds=1", "privacy.min_count=6"))
    package = read_package(_released(tmp_path))
    assert any(count.withheld for count in package.patterns.values())
    assert all(count.n == 0 or count.n >= 6 for count in package.patterns.values())


def test_the_command_says_what_it_made(run, tmp_path):
    (tmp_path / "card.toml").write_text('licence = "Apache-2.0"\n')
    arguments = ["release", str(run), "--out", str(tmp_path / "model"), "--card", str(tmp_path / "card.toml")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    package = read_package(tmp_path / "model")
    assert package.digest in done.output
    assert package.card["statements"]["licence"] == "Apache-2.0"


def _released(folder):
    release_model(folder / "run", folder / "model")
    return folder / "model"
