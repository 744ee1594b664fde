import logging
import socket

import pytest
import torch
from torch import nn
from torch.nn import functional

from client.encoders.unimed_clip import B16, L14_BASE, L14_LARGE, load_unimed_text
from mmare.errors import InputError
from tests.client.encoders.towers import NARROW, WORDS, drawn, write_local_files

TEXTS = ["The patient is a male.", "Tumor", "the  patient is\na male, a TUMOR, a tumor, a tumor."]


@pytest.fixture(scope="module")
def state():
    return drawn(NARROW.state_shapes())


@pytest.fixture(scope="module")
def encoder(state, tmp_path_factory):
    return load_unimed_text(state, write_local_files(tmp_path_factory.mktemp("bert")), NARROW)


def plain_tower(spec):
    """The same tower without open_clip: a BERT of transformers, its first token, two linear maps."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.hidden,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        intermediate_size=spec.inner,
        max_position_embeddings=spec.positions,
        layer_norm_eps=1e-12,
    )
    inner = (spec.hidden + spec.width) // 2
    return nn.ModuleDict(
        {
            "transformer": BertModel(config, add_pooling_layer=False),
            "proj": nn.Sequential(
                nn.Linear(spec.hidden, inner, bias=False), nn.GELU(), nn.Linear(inner, spec.width, bias=False)
            ),
        }
    ).eval()


@torch.inference_mode()
def reference(tower, tokens):
    hidden = tower["transformer"](input_ids=tokens, attention_mask=(tokens != 0).long()).last_hidden_state
    return functional.normalize(tower["proj"](hidden[:, 0]), dim=-1)


def test_equals_a_plain_bert_with_a_projection(encoder, state):
    tower = plain_tower(NARROW)
    tower.load_state_dict(state, strict=True)
    tokens = encoder.tokenize(TEXTS)
    assert tokens.shape == (3, 256)
    expected = reference(tower, tokens)  # padded to 256, as the original runs
    torch.testing.assert_close(encoder.encode_tokens(tokens), expected, rtol=0, atol=1e-6)
    longest = int((tokens != 0).sum(dim=1).max())
    assert torch.equal(encoder.encode_tokens(tokens), reference(tower, tokens[:, :longest]))


def test_padding_and_neighbours_have_no_influence(encoder):
    together = encoder.encode(TEXTS)
    for row, text in zip(together, TEXTS, strict=True):
        torch.testing.assert_close(
            torch.from_numpy(encoder.encode([text])[0]), torch.from_numpy(row), rtol=0, atol=1e-6
        )


def test_rows_have_length_one_and_differ(encoder):
    found = torch.from_numpy(encoder.encode(TEXTS))
    assert found.shape == (3, NARROW.width)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    assert float((found[0] - found[1]).norm()) > 0.01


def test_more_texts_than_a_batch(encoder):
    many = encoder.encode(TEXTS * 15)
    torch.testing.assert_close(
        torch.from_numpy(many), torch.from_numpy(encoder.encode(TEXTS)).repeat(15, 1), rtol=0, atol=1e-6
    )
    assert encoder.encode([]).shape == (0, NARROW.width)


def test_tokens_are_lower_case_word_pieces(encoder):
    ids = encoder.tokenize(["The  Patient is\n a TUMOR. xyz"])[0]
    words = [WORDS[number] for number in ids[ids != 0].tolist()]
    assert words == ["[CLS]", "the", "patient", "is", "a", "tum", "##or", ".", "[UNK]", "[SEP]"]


def test_a_text_that_is_cut_off_is_told(encoder, caplog):
    with caplog.at_level(logging.WARNING):
        encoder.encode(["a"])
        assert not caplog.records
        encoder.encode(["a " * 300, "a"])
    assert "1 of 2 texts fill or exceed 256 tokens" in caplog.text


def test_no_connection_and_no_global_draw(state, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("an encoder looked outside")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    before = torch.random.get_rng_state()
    load_unimed_text(state, write_local_files(tmp_path / "bert"), NARROW).encode(TEXTS)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        pytest.param("vocab.txt", None, "vocab.txt not found; expected those of tests", id="no vocabulary"),
        pytest.param("config.json", None, "config.json not found", id="no configuration"),
        pytest.param("config.json", "{", "not a BERT configuration", id="damaged"),
        pytest.param("vocab.txt", "[PAD]\n", "1 tokens, expected 14", id="short vocabulary"),
        pytest.param("vocab.txt", "x\n" * 14, r"expected \[PAD\] first", id="another vocabulary"),
        pytest.param("vocab.txt", b"\xff\n" * 14, "cannot be read", id="no text"),
        pytest.param("tokenizer.json", "{}", "found tokenizer.json", id="another tokenizer"),
    ],
)
def test_local_files_of_another_bert_are_refused(state, tmp_path, name, content, sentence):
    folder = write_local_files(tmp_path / "bert")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=sentence):
        load_unimed_text(state, folder, NARROW)


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_act", "relu"), ("layer_norm_eps", 1e-5), ("num_attention_heads", 8), ("hidden_size", 64)],
)
def test_a_configuration_that_would_change_the_features_is_refused(state, tmp_path, key, value):
    folder = write_local_files(tmp_path / "bert", **{key: value})
    with pytest.raises(InputError, match=f"{key} is {value!r}, expected"):
        load_unimed_text(state, folder, NARROW)


def counted(spec):
    shapes = spec.state_shapes()
    return len(shapes), sum(torch.Size(shape).numel() for shape in shapes.values())


def test_the_published_sizes():
    assert counted(B16) == (199, 109_710_848)
    assert counted(L14_BASE) == (199, 110_071_296)
    assert counted(L14_LARGE)[0] == 391


@pytest.mark.parametrize("spec", [B16, L14_BASE, L14_LARGE], ids=["b16", "l14_base", "l14_large"])
def test_names_and_shapes_are_those_of_the_plain_tower(spec):
    with torch.device("meta"):
        state = plain_tower(spec).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == spec.state_shapes()


@pytest.mark.slow
def test_the_full_tower_equals_the_plain_one(tmp_path):
    state = drawn(B16.state_shapes())
    encoder = load_unimed_text(state, write_local_files(tmp_path / "bert", B16), B16)
    tower = plain_tower(B16)
    tower.load_state_dict(state, strict=True)
    tokens = encoder.tokenize(TEXTS)
    assert encoder.encode(TEXTS).shape == (3, 512)
    torch.testing.assert_close(encoder.encode_tokens(tokens), reference(tower, tokens), rtol=0, atol=1e-5)


@pytest.mark.gpu
def test_a_gpu_is_near_the_processor(state, encoder, tmp_path):
    found = load_unimed_text(state, write_local_files(tmp_path / "bert"), NARROW, torch.device("cuda"))
    torch.testing.assert_close(
        torch.from_numpy(found.encode(TEXTS)), torch.from_numpy(encoder.encode(TEXTS)), rtol=0, atol=1e-4
    )
