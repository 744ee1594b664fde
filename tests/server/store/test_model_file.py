import json

import pytest
import torch

from mmare.errors import InputError
from mmare.models.batch import Batch
from mmare.models.registry import build_model
from mmare.wire.tensors import global_tensors
from server.store.model_file import load_model, save_model
from tests.federations import WIDTHS, tiny_study

STUDY = tiny_study()


@pytest.fixture
def saved(tmp_path):
    model = build_model(STUDY).eval()
    for slot, width in enumerate(WIDTHS.values()):
        model.scaling.set_moments(slot, torch.arange(width).float(), torch.full((width,), 2.5))
    with torch.no_grad():
        model.head.out.bias += 0.3
    save_model(tmp_path / "model", STUDY, global_tensors(model), {"run": "r", "round": 7})
    return tmp_path / "model", model


def test_a_saved_model_predicts_the_same_wherever_it_was_copied(saved, tmp_path):
    folder, model = saved
    folder.rename(tmp_path / "elsewhere")
    again = load_model(tmp_path / "elsewhere")
    generator = torch.Generator().manual_seed(0)
    embedding = tuple(torch.randn(9, width, generator=generator) * 5 for width in WIDTHS.values())
    batch = Batch(embedding, torch.tensor([[True, True], [True, False], [False, True]]).repeat(3, 1))
    assert torch.equal(again.predict(batch), model.predict(batch))
    assert not again.training
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_the_card_says_where_the_model_comes_from(saved):
    card = json.loads((saved[0] / "model.json").read_text())
    assert (card["run"], card["round"], card["study_hash"]) == ("r", 7, STUDY.hash)
    assert card["study"] == STUDY.to_dict()


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(bytes(content))


def without(folder, key):
    card = json.loads((folder / "model.json").read_text())
    del card[key]
    (folder / "model.json").write_text(json.dumps(card))


def with_other_study(folder):
    card = json.loads((folder / "model.json").read_text())
    card["study"]["model"]["width"] = 32
    (folder / "model.json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda folder: flip(folder / "model.safetensors"), id="flipped"),
        pytest.param(lambda folder: (folder / "model.safetensors").write_bytes(b"abc"), id="cut-weights"),
        pytest.param(lambda folder: (folder / "model.safetensors").unlink(), id="no-weights"),
        pytest.param(lambda folder: (folder / "model.json").unlink(), id="no-card"),
        pytest.param(lambda folder: (folder / "model.json").write_text("{"), id="cut-card"),
        pytest.param(lambda folder: (folder / "model.json").write_text("[]"), id="list-card"),
        pytest.param(lambda folder: (folder / "model.json").write_text("{}"), id="empty-card"),
        pytest.param(lambda folder: without(folder, "study"), id="no-study"),
        pytest.param(with_other_study, id="other-study"),
    ],
)
def test_what_is_not_a_whole_model_is_refused(saved, harm):
    harm(saved[0])
    with pytest.raises(InputError, match="model"):
        load_model(saved[0])
