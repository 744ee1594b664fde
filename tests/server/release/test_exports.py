"""The model of a package for other programs: what they get is what the package predicts."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmare.errors import InputError, RunError
from mmare.metrics.decisions import Calibration
from mmare.models.batch import Batch
from mmare.models.hiding.masked import MaskedModel
from mmare.models.registry import build_model
from mmare.package.package import read_package
from server.release.onnx_export import onnx_model
from server.release.release import release_model
from tests.federations import tiny_study
from tests.mmare.models.examples import SMALL, a_study, small_options
from tests.packages import made_package, table_run
from tests.properties import first_quick

CALIBRATION = {"calibration": {"temperature": 2.0, "bias": [0.0, -0.4]}}


def batch_of(study):
    """Patients of every pattern; an absent examination is NaN."""
    patterns = [each for each in itertools.product((False, True), repeat=len(study.modalities)) if any(each)]
    present = torch.tensor(patterns)
    generator = torch.Generator().manual_seed(1)
    embedding = tuple(
        torch.where(
            present[:, [slot]], torch.randn(len(present), each.width, generator=generator) * 4, torch.nan
        )
        for slot, each in enumerate(study.modalities)
    )
    return Batch(embedding, present)


@pytest.mark.parametrize("merge", ["thesis", "symmetric"])
@pytest.mark.parametrize("fusion", ["pairwise", "mean"])
def test_the_masked_form_predicts_the_same_of_every_pattern(merge, fusion):
    study = tiny_study(model={"merge": merge, "fusion": fusion})
    model = build_model(study).eval()
    with torch.no_grad():
        for value in model.parameters():  # a symmetric merge begins with zeros
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())) / 10)
    batch, calibration = batch_of(study), Calibration(0.5, (0.1, -0.3))
    with torch.inference_mode():
        probabilities, logits = MaskedModel(model, calibration)(batch.present, *batch.embedding)
        expected = model(batch)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(probabilities.double(), calibration.probabilities(expected))


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    run = table_run(tmp_path_factory.mktemp("tables"), ("model.numeric=piecewise", "model.clip=1.5"))
    release_model(run, run.parent / "model", bundle=run.parent / "bundle")
    return run.parent


@pytest.fixture(scope="module")
def with_graph(released):
    pytest.importorskip("onnxscript")
    release_model(released / "run", released / "with-graph", onnx=True)
    return released / "with-graph"


@pytest.mark.slow
def test_a_graph_gives_the_package_s_probabilities(with_graph):
    runtime = pytest.importorskip("onnxruntime")
    package = read_package(with_graph)
    session = runtime.InferenceSession(package.sealed.files["model.onnx"])
    batch = batch_of(package.study)
    given = {
        each.name: part.numpy() for each, part in zip(package.study.modalities, batch.embedding, strict=True)
    }
    given["present"] = batch.present.numpy()
    found, logits = session.run(None, given)
    alone, _ = session.run(None, {name: rows[:1] for name, rows in given.items()})
    np.testing.assert_allclose(alone, found[:1], atol=1e-6)
    with torch.inference_mode():
        expected = package.model(batch)
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-5, rtol=1e-5)
    probability = package.judge(expected).probability
    torch.testing.assert_close(torch.from_numpy(found).double(), probability, atol=1e-6, rtol=0)
    assert package.calibration is not None
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["study_hash"] == package.study.hash
    assert float(facts["difference"]) < 1e-5


@pytest.mark.slow
def test_a_graph_names_no_file_of_this_machine(with_graph):
    content = (with_graph / "model.onnx").read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in content
    assert b"mmare/models" not in content
    assert onnx_model(read_package(with_graph)) == content


@pytest.mark.slow
@pytest.mark.parametrize("name", first_quick("late-mean", "adacomed", "drim", "unilmmv", "unimodal"))
def test_other_models_have_a_graph_that_agrees(tmp_path, name):
    pytest.importorskip("onnxscript")
    study = a_study((4, 6, 8), model=name, **small_options(name, **SMALL))
    assert onnx_model(read_package(made_package(tmp_path / "model", study)))


@pytest.mark.slow
def test_a_model_whose_steps_depend_on_the_batch_is_refused(tmp_path):
    pytest.importorskip("onnxscript")
    study = a_study((4, 6), model="hypermm-embedding", **small_options("hypermm-embedding", **SMALL))
    with pytest.raises(InputError, match="the model hypermm-embedding has no ONNX form"):
        onnx_model(read_package(made_package(tmp_path / "model", study)))


@pytest.mark.slow
def test_a_graph_for_one_number_of_patients_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")

    class Fixed(MaskedModel):
        def forward(self, present, *embedding):
            probabilities, logits = super().forward(present, *embedding)
            return probabilities + torch.zeros(len(present), 1), logits  # len is a number, not a symbol

    monkeypatch.setattr("server.release.onnx_export.MaskedModel", Fixed)
    with pytest.raises(InputError, match="the model mmare has no ONNX form"):
        onnx_model(read_package(made_package(tmp_path / "model", tiny_study())))


@pytest.mark.slow
def test_a_graph_that_gives_other_probabilities_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    package = read_package(made_package(tmp_path / "model", tiny_study(), calibration=CALIBRATION))
    monkeypatch.setattr("server.release.onnx_export.MaskedModel", lambda model, _: MaskedModel(model, None))
    with pytest.raises(RunError, match="other probabilities than the model, by up to 0"):
        onnx_model(package)


def test_a_monai_bundle_instantiates_the_network_of_its_format(released):
    parsing = pytest.importorskip("monai.bundle")
    package = read_package(released / "model")
    parser = parsing.ConfigParser()
    parser.read_config(released / "bundle" / "configs" / "inference.json")
    parser.read_meta(released / "bundle" / "configs" / "metadata.json")
    parser["bundle_root"] = str(released / "bundle")
    network = parser.get_parsed_content("network_def")
    form = parser.get("_meta_")["network_data_format"]
    names = [each.name for each in package.study.modalities]
    assert [each for each in form["inputs"] if each != "present"] == names
    batch = batch_of(package.study)
    widths = [form["inputs"][name]["spatial_shape"][0] for name in names]
    assert [part.shape[1] for part in batch.embedding] == widths
    with torch.inference_mode():
        found = network(batch.present, *batch.embedding)[0]
        expected = package.judge(package.model(batch)).probability
    assert found.shape[1] == form["outputs"]["pred"]["num_channels"]
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)
    told = json.loads((released / "bundle" / "configs" / "metadata.json").read_text())
    assert "research use" in told["intended_use"]


def test_a_bundle_overwrites_nothing(released, tmp_path):
    (tmp_path / "bundle").mkdir()
    with pytest.raises(InputError, match="holds something else"):
        release_model(released / "run", tmp_path / "model", bundle=tmp_path / "bundle")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("out", "bundle"), [("model.zip", "model.zip"), ("model", "model"), ("old", "old/bundle")]
)
def test_a_bundle_takes_no_place_of_the_package(released, tmp_path, out, bundle):
    release_model(released / "run", tmp_path / "old")
    with pytest.raises(InputError, match="the package goes there"):
        release_model(released / "run", tmp_path / out, bundle=tmp_path / bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    read_package(tmp_path / "old")
