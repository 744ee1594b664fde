import subprocess
import sys

import pytest
import torch

from client.encoders import registry
from client.encoders.med3d import state_shapes
from client.encoders.preprocess import VolumeSteps
from client.encoders.registry import (
    ENCODERS,
    GIVEN,
    EncoderSource,
    fast_type,
    fingerprint,
    pick_device,
)
from client.encoders.unimed_clip import B16
from client.encoders.weights import import_weights
from mmare.errors import InputError
from mmare.study.choices import Kind
from tests.client.encoders.towers import NARROW, drawn, write_local_files

STEPS = VolumeSteps().fingerprint


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A site with the weights of Med3D, at full size: the registry knows no other."""
    folder = tmp_path_factory.mktemp("weights")
    file = folder / "resnet_18_23dataset.pth"
    torch.save({"state_dict": drawn(state_shapes())}, file)
    import_weights(file, folder)
    return EncoderSource(weights=folder)


def test_every_entry_opens_one_kind_of_thing():
    for entry in ENCODERS.values():
        assert (entry.open_text is None) == (entry.kind is Kind.VOLUME)
        assert (entry.open_volume is None) == (entry.kind is Kind.TEXT)


def test_fingerprints_of_encoders_without_weights_need_no_site():
    assert fingerprint(GIVEN) == "given"
    assert fingerprint("hashing-text") == "hashing-text/1"
    assert (
        fingerprint("med3d-resnet18-random", preprocessing=STEPS) == f"med3d-resnet18/1-random+{STEPS}+seed:0"
    )


def test_only_the_untrained_encoder_carries_a_note():
    assert [name for name, entry in ENCODERS.items() if entry.note] == ["med3d-resnet18-random"]
    assert "UNTRAINED" in ENCODERS["med3d-resnet18-random"].note


def test_a_fingerprint_tells_variant_preprocessing_and_weights(source):
    small = VolumeSteps(size=(8, 16, 16)).fingerprint
    marks = {
        fingerprint(name, source, steps)
        for name in ("med3d-resnet18", "med3d-resnet18-monai", "med3d-resnet18-random")
        for steps in (STEPS, small)
    }
    assert len(marks) == 6


def test_opens_med3d_with_its_weights(source):
    volume = torch.ones(1, 1, 8, 16, 16)
    found = [
        ENCODERS[name].open_volume(source).encode(volume)
        for name in ("med3d-resnet18", "med3d-resnet18-monai")
    ]
    assert [embedding.shape for embedding in found] == [(1, 512)] * 2
    assert not torch.equal(*found)


def test_opens_the_untrained_encoder_without_weights():
    assert ENCODERS["med3d-resnet18-random"].open_volume(EncoderSource()).encode(
        torch.ones(1, 1, 8, 16, 16)
    ).shape == (1, 512)


def test_opens_the_text_encoders(tmp_path, monkeypatch):
    from client.encoders import weights

    assert ENCODERS["hashing-text"].open_text(EncoderSource(), 64).encode(["a tumor"]).shape == (1, 64)
    monkeypatch.setitem(ENCODERS, "unimed-clip-text", registry._unimed("unimed-clip-text", NARROW))
    layout = weights._unimed("unimed-clip-text", "narrow", NARROW)
    file = write_local_files(tmp_path / "downloads") / "file.pt"
    torch.save({f"text_encoder.{name}": value for name, value in drawn(NARROW.state_shapes()).items()}, file)
    imported = import_weights(file, tmp_path, [layout])
    source = EncoderSource(weights=tmp_path)
    mark = fingerprint("unimed-clip-text", source)
    assert mark.startswith(f"unimed-clip-text/1+sha256:{imported.sha256}+vocabulary:")
    found = ENCODERS["unimed-clip-text"].open_text(source, NARROW.width).encode(["the patient"])
    assert found.shape == (1, NARROW.width)


def test_missing_weights_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"\[compute\] weights"):
        fingerprint("med3d-resnet18")
    for name in ("med3d-resnet18", "unimed-clip-text"):
        with pytest.raises(InputError, match="import the weights first"):
            fingerprint(name, EncoderSource(weights=tmp_path))


def test_a_tower_without_its_local_files_is_one_sentence(tmp_path):
    (tmp_path / "unimed-clip-text.safetensors").write_bytes(b"x")
    with pytest.raises(
        InputError, match=f"config.json and vocab.txt not found; expected those of {B16.bert}"
    ):
        fingerprint("unimed-clip-text", EncoderSource(weights=tmp_path))


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(InputError, match="device is 'abacus'"):
        pick_device("abacus")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_gpu_that_is_not_there_is_one_sentence():
    with pytest.raises(InputError, match="finds no GPU"):
        pick_device("cuda")


@pytest.mark.parametrize(("able", "expected"), [(True, torch.bfloat16), (False, None)])
def test_the_processor_says_whether_it_has_bfloat16(monkeypatch, able, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able})
    assert fast_type(torch.device("cpu")) is expected


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), torch.bfloat16), ((7, 5), torch.float16)])
def test_a_gpu_computes_in_what_it_has(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert fast_type(torch.device("cuda")) is expected


@pytest.mark.slow
def test_a_worker_and_the_name_of_an_encoder_import_nothing_heavy():
    code = (
        "import sys, client.worker, client.encoders.registry, client.encoders.preprocess\n"
        "heavy = ('monai', 'open_clip', 'transformers', 'torchvision', 'sklearn', 'scipy')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
