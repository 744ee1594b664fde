import hashlib
import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save

from mmare.errors import InputError
from mmare.models.registry import build_model
from mmare.package.graft import graft
from mmare.package.package import install_package, read_package
from mmare.package.start import StartModel, find_start, installed_start, read_start
from mmare.study.choices import Kind, Scaling
from mmare.study.specs import ModalitySpec, ModelSpec
from mmare.wire.tensors import global_tensors, tensor_digest
from server.store.model_file import save_model
from tests.federations import survival_study, tiny_study
from tests.packages import made_package

STUDY = tiny_study(model={"linear": True})
LAB = ModalitySpec("lab", Kind.FEATURES, 4)


def trained(study=STUDY, **facts):
    """A start model whose every number is unlike the seed's own."""
    tensors = {name: value + 0.25 for name, value in global_tensors(build_model(study)).items()}
    return StartModel("there", study, save(tensors), "run-1", **facts)


def grafted(study, start):
    model = build_model(study)
    return model, graft(model, study, start)


def test_a_run_and_the_package_of_it_are_one_start_model(tmp_path):
    save_model(tmp_path / "run" / "model", STUDY, global_tensors(build_model(STUDY)), {"run": "run-1"})
    path = made_package(tmp_path / "start.zip", STUDY, {"ct": "given"})
    run, package = read_start(tmp_path / "run"), read_start(path)
    assert run.digest == package.digest
    assert run.lineage() == {key: value for key, value in package.lineage().items() if key != "package"}
    assert package.encoders == {"ct": "given"}
    assert find_start(tmp_path) == path
    assert trained().digest not in {run.digest, read_start(path).digest}
    assert trained(tiny_study(model={"linear": True}, training={"rounds": 9})).digest != trained().digest
    assert installed_start(tmp_path, run.digest) is None
    install_package(read_package(path), tmp_path)
    found = installed_start(tmp_path, run.digest)
    assert found is not None
    assert found.package == package.package


def test_what_is_damaged_or_is_none_is_refused(tmp_path):
    save_model(tmp_path / "model", STUDY, global_tensors(build_model(STUDY)), {})
    weights = tmp_path / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=r"model\.safetensors was changed"):
        read_start(tmp_path)
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    weights.write_bytes(whole[:9])
    card["weights_sha256"] = hashlib.sha256(whole[:9]).hexdigest()
    (tmp_path / "model" / "model.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match="cannot be read as a start model"):
        read_start(tmp_path)
    with pytest.raises(
        InputError, match="no start model, expected a model package or the folder of a finished"
    ):
        read_start(tmp_path / "nowhere")


def test_the_same_study_is_taken_whole():
    start = trained(encoders={"ct": "given", "elsewhere": "x"})
    model, found = grafted(replace(STUDY, seed=8), start)
    there = {name: value + 0.25 for name, value in global_tensors(build_model(STUDY)).items()}
    assert tensor_digest(global_tensors(model)) == tensor_digest(there)
    assert found.left == {}
    assert found.taken == [block.name for block in model.blocks()]
    assert found.encoders == {"ct": "given"}
    assert len(found.fixed) == 4


def test_modalities_are_found_by_name_whatever_their_slot():
    ct, wsi = STUDY.modalities
    model, found = grafted(replace(STUDY, modalities=(wsi, LAB, ct)), trained())
    there, here = trained_by_hand(), global_tensors(model)
    assert torch.equal(here["adapters.adapters.2.weight"], there["adapters.adapters.0.weight"])
    assert torch.equal(here["linear.inputs.0.weight"], there["linear.inputs.1.weight"])
    for name in ("conditioning.gamma.weight", "linear.missing.weight"):
        assert torch.equal(here[name][:, [2, 0]], there[name])
        assert not here[name][:, 1].any()  # nothing was learned of the absence of lab
    assert torch.equal(here["scaling.mean_2"], there["scaling.mean_0"])
    assert found.fixed == {f"scaling.{what}_{slot}" for what in ("mean", "deviation") for slot in (0, 2)}
    assert found.left == {"lab": "a modality that the start model does not have"}


def trained_by_hand():
    return {name: value + 0.25 for name, value in global_tensors(build_model(STUDY)).items()}


def test_what_does_not_fit_is_listed_and_stays_the_seeds_own():
    ct, wsi = STUDY.modalities
    wider = replace(STUDY, model=ModelSpec("mmare", {"width": 16, "linear": False, "dropout": 0.5}))
    _, found = grafted(wider, trained())
    assert found.left == {
        "model.dropout": "which was 0.3 and is 0.5 here",
        "model.linear": "which was True and is False here",
    }
    other = replace(STUDY, modalities=(replace(ct, scaling=Scaling.L2), wsi))
    model, found = grafted(other, trained())
    assert found.left == {"ct": "whose scaling was zscore and is l2 here"}
    own = global_tensors(build_model(other))
    assert torch.equal(global_tensors(model)["adapters.adapters.0.weight"], own["adapters.adapters.0.weight"])
    assert not any(name.endswith(".ct") for name in found.taken)


def test_the_cuts_of_a_survival_model_are_kept():
    study = survival_study()
    model, found = grafted(replace(study, seed=1), trained(study))
    assert "task.cuts" in found.fixed
    assert torch.equal(model.task.cuts, build_model(study).task.cuts + 0.25)


@pytest.mark.parametrize(
    ("study", "sentence"),
    [
        pytest.param(
            replace(STUDY, classes=("yes", "no")),
            "the classes no, yes, expected the study's: yes, no",
            id="classes",
        ),
        pytest.param(survival_study(), "the task classification, expected the study's: survival", id="task"),
        pytest.param(
            tiny_study(model={"name": "late-mean"}),
            "the model mmare, expected the study's: late-mean",
            id="model",
        ),
        pytest.param(tiny_study(model={"width": 12}), "nothing of the start model fits", id="width"),
    ],
)
def test_a_model_of_something_else_is_refused(study, sentence):
    if sentence.startswith("nothing"):
        study = replace(study, modalities=(replace(LAB, name="other"),))
        study = replace(study, model=ModelSpec("mmare", {"width": 12, "conditioning": False}))
    with pytest.raises(InputError, match=re.escape(sentence)):
        grafted(study, trained())
