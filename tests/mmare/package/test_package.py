"""What is refused of a package, and what a site keeps of one that is whole."""

import json
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import save
from typer.testing import CliRunner

from client.cli import app
from mmare.errors import InputError
from mmare.models.registry import build_model
from mmare.package.package import read_package
from mmare.package.sealed import Facts, as_json, read_sealed, seal, write_sealed
from mmare.package.weights import read_weights
from mmare.wire.tensors import global_tensors
from tests.federations import tiny_federation, tiny_study
from tests.packages import as_toml

STUDY = tiny_study()
FACTS = Facts(
    "tiny", STUDY.hash, "tiny-1", "federated", "2026-11-29T12:00:00+00:00", "0" * 64, {"torch": "2"}
)
METRICS = {"test": {"pooled": {"n": 12, "auc": 0.7}, "sites": {}, "worst_site": None}}


def contents(**changes):
    files = {
        "weights.safetensors": save(global_tensors(build_model(STUDY))),
        "study.toml": as_toml(STUDY),
        "encoders.json": as_json(
            {"ct": {"kind": "features", "encoder": "given", "fingerprint": "given", "sites": ["ash"]}}
        ),
        "moments.json": as_json({}),
        "patterns.json": as_json({"11": {"n": 7}}),
        "calibration.json": as_json({"calibration": {"temperature": 2.0, "bias": [0.0, 0.5]}}),
        "results.json": as_json({"metrics": METRICS, "notes": [], "left_out": []}),
        "card.json": as_json({"statements": {"intended_use": "\x1b[2Jnot stated", "licence": "MIT"}}),
    }
    return files | changes


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    write_sealed(seal(FACTS, contents()), folder / "model")
    write_sealed(seal(FACTS, contents()), folder / "model.zip")
    return folder


def test_a_folder_and_a_zip_are_the_same_package(whole):
    folder, archive = (read_package(whole / name) for name in ("model", "model.zip"))
    assert folder.digest == archive.digest
    assert folder.sealed.files == archive.sealed.files
    assert folder.study == STUDY
    assert torch.allclose(
        archive.judge(torch.tensor([[1.0, 3.0]])).probability,
        torch.tensor([[0.5, 2.0]]).double().softmax(dim=1),
    )


def edit_seal(model, **changes):
    content = json.loads((model / "package.json").read_text())
    (model / "package.json").write_bytes(as_json(content | changes))


def flip(path, at=-3):
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        pytest.param(
            lambda model: flip(model / "weights.safetensors"), "weights.safetensors was changed", id="bit"
        ),
        pytest.param(lambda model: flip(model / "study.toml", 40), "study.toml was changed", id="study"),
        pytest.param(lambda model: (model / "card.json").unlink(), "card.json is missing", id="missing"),
        pytest.param(lambda model: (model / "x.py").write_text(""), "x.py does not belong", id="extra"),
        pytest.param(
            lambda model: edit_seal(model, format="mmare-package/2"),
            "'mmare-package/2', expected",
            id="format",
        ),
        pytest.param(lambda model: edit_seal(model, run="another"), "package.json was changed", id="facts"),
        pytest.param(lambda model: edit_seal(model, odd=1), "unknown key 'odd'", id="odd-fact"),
        pytest.param(lambda model: edit_seal(model, files=[]), "does not belong", id="no-list"),
        pytest.param(lambda model: (model / "package.json").write_text("{"), "not JSON", id="cut-seal"),
        pytest.param(lambda model: (model / "package.json").write_text("[]"), "format None", id="list-seal"),
        pytest.param(lambda model: (model / "package.json").unlink(), "no model package", id="no-seal"),
    ],
)
def test_a_folder_that_is_not_as_it_was_sealed_is_refused(whole, tmp_path, harm, sentence):
    model = shutil.copytree(whole / "model", tmp_path / "model")
    harm(model)
    with pytest.raises(InputError, match=sentence):
        read_package(model)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.9999])
def test_a_cut_zip_is_refused(whole, tmp_path, part):
    content = (whole / "model.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: int(len(content) * part)])
    with pytest.raises(InputError, match=r"cut\.zip: cannot be read as a package"):
        read_package(tmp_path / "cut.zip")


def test_a_changed_byte_of_a_zip_is_refused_wherever_it_is(whole, tmp_path):
    """A byte of what zip itself ignores, such as a date, may change."""
    content = (whole / "model.zip").read_bytes()
    expected = read_sealed(whole / "model.zip")
    path = tmp_path / "model.zip"
    for place in range(0, len(content), 997):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            found = read_sealed(path)
        except InputError:
            continue
        assert (found.digest, found.files) == (expected.digest, expected.files)


def test_a_zip_with_a_file_twice_is_refused(whole, tmp_path):
    shutil.copy(whole / "model.zip", tmp_path / "model.zip")
    with (
        zipfile.ZipFile(tmp_path / "model.zip", "a") as archive,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        archive.writestr("card.json", b"{}")
    with pytest.raises(InputError, match="twice"):
        read_package(tmp_path / "model.zip")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param(
            {"study.toml": as_toml(tiny_study(model={"width": 8}))}, "study.toml has the hash", id="study"
        ),
        pytest.param({"weights.safetensors": save({"a": torch.zeros(2)})}, "other tensors", id="weights"),
        pytest.param({"weights.safetensors": b"abc"}, "not a safetensors file", id="no-weights"),
        pytest.param(
            {"patterns.json": as_json({"11": {"n": "x"}})}, "patterns.json 11 n must be", id="pattern"
        ),
        pytest.param(
            {"calibration.json": as_json({"calibration": {"temperature": 1.0, "bias": [0.0]}})},
            "other classes",
            id="bias",
        ),
        pytest.param({"encoders.json": b"{"}, "model: ", id="no-json"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(tmp_path, changes, sentence):
    write_sealed(seal(FACTS, contents(**changes)), tmp_path / "model")
    with pytest.raises(InputError, match=sentence):
        read_package(tmp_path / "model")


def test_a_part_that_is_absent_is_named(tmp_path):
    files = contents()
    del files["moments.json"]
    write_sealed(seal(FACTS, files), tmp_path / "model")
    with pytest.raises(InputError, match=r"lacks 'moments\.json'"):
        read_package(tmp_path / "model")


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("keep")
    with pytest.raises(InputError, match="holds something else"):
        write_sealed(seal(FACTS, contents()), tmp_path / "mine")
    with pytest.raises(InputError, match="no folder"):
        write_sealed(seal(FACTS, contents()), tmp_path / "none" / "model")
    with pytest.raises(OSError, match="name"):
        write_sealed(seal(FACTS, contents(**{"x" * 300: b""})), tmp_path / "model")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes"]


def test_weights_are_read_as_safetensors_writes_them():
    tensors = {
        "a": torch.randn(3, 2),
        "b": torch.arange(5),
        "c": torch.tensor(True),
        "d": torch.randn(2, 2, 2).half(),
        "e": torch.zeros(0, 4),
        "f": torch.tensor(2.5, dtype=torch.float64),
    }
    found, metadata = read_weights(save(tensors, {"x": "y"}), "file")
    assert metadata == {"x": "y"}
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


@pytest.mark.parametrize("keep", [4, 60, -1])
def test_cut_weights_are_refused(keep):
    with pytest.raises(InputError, match="file: not a safetensors file"):
        read_weights(save({"a": torch.zeros(4)})[:keep], "file")


def test_a_site_checks_a_package_and_keeps_a_copy(whole, tmp_path):
    site = tiny_federation(tmp_path / "fed", sites=("ash",)) / "ash"
    arguments = ["install", str(whole / "model.zip"), "--site", str(site / "site.toml")]
    for _ in range(2):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0
    assert "\x1b" not in done.output
    assert "research use, not for clinical decisions" in done.output
    (kept,) = (site / "models").iterdir()
    assert read_package(kept).digest == kept.name == read_package(whole / "model").digest
