import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save

from mmare.errors import InputError, StudyError
from mmare.models.batch import Batch
from mmare.models.phases import phase_at
from mmare.models.registry import build_model
from mmare.package.graft import graft
from mmare.package.grow import grow
from mmare.package.start import StartModel
from mmare.study.choices import Kind
from mmare.study.specs import ModalitySpec, ModelSpec
from mmare.study.start import StartSpec
from mmare.wire.tensors import copy_tensors, global_tensors
from tests.federations import survival_study, tiny_study

RNA, CNV = (ModalitySpec(name, Kind.FEATURES, width) for name, width in (("rna", 5), ("cnv", 16)))
OPTIONS = [
    pytest.param({}, id="thesis"),
    pytest.param({"linear": True, "numeric": "piecewise", "clip": 3.0}, id="table"),
    pytest.param({"merge": "symmetric", "fusion": "mean"}, id="mean"),
]


def trained(study, seed=5):
    """As if it had been trained: every number is drawn."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: value + torch.rand(value.shape, generator=generator)
        for name, value in global_tensors(build_model(study)).items()
    }
    return StartModel("there", study, save(tensors), "run-1"), tensors


def patients(study, rows=40, seed=1):
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(rows, len(study.modalities), generator=generator) < 0.6
    present[:, 0] |= ~present.any(dim=1)
    return [torch.randn(rows, each.width, generator=generator) for each in study.modalities], present


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("joining", [pytest.param((RNA, CNV), id="two")])
def test_every_old_patients_logits_stay_bit_for_bit(options, joining):
    old = tiny_study(model=options)
    start, tensors = trained(old)
    before = build_model(old).eval()
    copy_tensors(global_tensors(before), tensors)
    study, _ = grow(start, joining, rounds=3)
    model = build_model(study)
    graft(model, study, start)
    embedding, present = patients(old)
    anything = [torch.full((len(present), each.width), torch.nan) for each in joining]
    absent = torch.zeros(len(present), len(joining), dtype=torch.bool)
    with torch.inference_mode():
        was = before(Batch(tuple(embedding), present))
        now = model.eval()(Batch((*embedding, *anything), torch.cat([present, absent], dim=1)))
    assert was.numpy().tobytes() == now.numpy().tobytes()


def test_the_new_blocks_train_alone_at_first_and_then_everything():
    study, found = grow(trained(tiny_study())[0], (RNA,), rounds=2)
    assert study.name == "tiny-rna"
    assert study.start == StartSpec(study.start.digest, ("rna",), 2)
    assert found.left == {"rna": "a modality that the start model does not have"}
    model = build_model(study)
    assert phase_at(model.phases(), 2).blocks == {"conditioning.rna", "adapter.rna"}
    assert phase_at(model.phases(), 3).blocks == {block.name for block in model.blocks()}


@pytest.mark.parametrize(
    ("study", "joining", "error", "sentence"),
    [
        pytest.param(
            tiny_study(),
            (RNA, replace(RNA, name="ct")),
            InputError,
            "--modality ct: the study has a modality of this name; expected a new name",
            id="old-name",
        ),
        pytest.param(tiny_study(), (RNA, RNA), InputError, "--modality rna: the study has", id="twice"),
        pytest.param(
            tiny_study(training={"rounds": 2}),
            (RNA,),
            StudyError,
            "rounds must be more than the 2 that mmare trains its first part in, found 2",
            id="rounds",
        ),
        pytest.param(
            tiny_study(model={"name": "drim", "width": 16}),
            (RNA,),
            StudyError,
            "trains the blocks of a modality alone, which drim cannot",
            id="phases",
        ),
    ],
)
def test_what_cannot_grow_is_refused(study, joining, error, sentence):
    if study.model.name == "drim":
        study = replace(study, model=ModelSpec("drim", {}))
    with pytest.raises(error, match=re.escape(sentence)):
        grow(trained(study)[0], joining, rounds=2)


def test_a_model_that_would_predict_otherwise_is_refused():
    start, _ = trained(tiny_study(federation={"local": ["head"]}))
    with pytest.raises(
        InputError, match="a mmare that grows predicts patients without rna otherwise than before"
    ):
        grow(start, (RNA,), rounds=2)


def test_survival_grows_as_well():
    study, _ = grow(trained(survival_study())[0], (RNA,), rounds=2)
    assert study.survival == survival_study().survival


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        (StartSpec("0" * 64, ("lung",), 1), "first names modalities that the study does not have: lung"),
        (StartSpec("0" * 64, ("ct",), 0), "first and rounds belong together, found ['ct'] and 0"),
        (StartSpec("0" * 64, (), 3), "first and rounds belong together, found [] and 3"),
    ],
)
def test_mistakes_in_the_table(start, sentence):
    with pytest.raises(StudyError, match=re.escape(sentence)):
        replace(tiny_study(), start=start)
