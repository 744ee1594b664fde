import errno
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from client.encoders import weights
from client.encoders.med3d import state_shapes
from client.encoders.unimed_clip import LOCAL_FILES
from client.encoders.weights import LAYOUTS, Layout, import_weights, load_weights, pinned_hash, sha256_of
from mmare.errors import InputError, RunError
from tests.client.encoders.towers import NARROW, checkpoint, drawn, write_local_files

NARROW_MED3D = state_shapes((4, 8, 8, 16))
KNOWN = (
    Layout("med3d-resnet18", "Med3D ResNet-18", "", NARROW_MED3D),
    Layout("unimed-clip-text", "UniMed-CLIP", "text_encoder.", NARROW.state_shapes(), LOCAL_FILES),
)


def published_med3d(state):
    """As ``resnet_18_23dataset.pth``: behind ``state_dict`` and ``module.``, with counters."""
    tensors = {f"module.{name}": value for name, value in state.items()}
    tensors["module.bn1.num_batches_tracked"] = torch.tensor(9)
    return {"state_dict": tensors}


@pytest.fixture
def med3d_file(tmp_path):
    file = tmp_path / "resnet_18_23dataset.pth"
    torch.save(published_med3d(drawn(NARROW_MED3D)), file)
    return file


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_imports_the_published_med3d(tmp_path, zipped):
    state = drawn(NARROW_MED3D)
    file = tmp_path / "resnet_18_23dataset.pth"
    torch.save(published_med3d(state), file, _use_new_zipfile_serialization=zipped)
    found = import_weights(file, tmp_path / "weights", KNOWN)
    assert found.name == "med3d-resnet18"
    assert found.file == tmp_path / "weights" / "med3d-resnet18.safetensors"
    assert same(load_weights(tmp_path / "weights", "med3d-resnet18"), state)
    assert found.source_sha256 == sha256_of(file)
    assert found.sha256 == sha256_of(found.file)
    assert found.n_tensors == len(state)
    assert found.n_values == sum(value.numel() for value in state.values())
    assert found.lacking == ()
    pins = json.loads((tmp_path / "weights" / "weights.json").read_text())
    assert pins == {
        found.file.name: {"sha256": found.sha256, "source": file.name, "source_sha256": found.source_sha256}
    }
    assert sorted(path.name for path in found.file.parent.iterdir()) == [
        "med3d-resnet18.safetensors",
        "weights.json",
    ]


def test_imports_the_text_tower_of_a_training_checkpoint(tmp_path):
    state = drawn(NARROW.state_shapes())
    file = write_local_files(tmp_path / "downloads") / "unimed_clip_vit_b16.pt"
    torch.save(checkpoint(state), file)
    found = import_weights(file, tmp_path / "weights", KNOWN)
    assert found.name == "unimed-clip-text"
    assert same(load_file(found.file), state)
    assert found.lacking == ()
    for name in LOCAL_FILES:
        copied = tmp_path / "weights" / "unimed-clip-text" / name
        assert copied.read_bytes() == file.with_name(name).read_bytes()


def test_scalars_as_numpy_1_pickled_them(tmp_path):
    new, old = tmp_path / "new.pt", tmp_path / "old.pt"
    torch.save(checkpoint(drawn(NARROW.state_shapes())), new)
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(old, "w") as target:
        for entry in source.namelist():
            data = source.read(entry)
            if entry.endswith("/data.pkl"):
                assert b"cnumpy._core.multiarray\nscalar" in data
                data = data.replace(b"cnumpy._core.", b"cnumpy.core.")
            target.writestr(entry, data)
    hashes = {import_weights(file, tmp_path / file.stem, KNOWN).sha256 for file in (new, old)}
    assert len(hashes) == 1


def test_says_which_files_a_tower_still_lacks(tmp_path):
    file = tmp_path / "unimed_clip_vit_b16.pt"
    torch.save(checkpoint(drawn(NARROW.state_shapes())), file)
    found = import_weights(file, tmp_path / "weights", KNOWN)
    folder = tmp_path / "weights" / "unimed-clip-text"
    assert found.lacking == (folder / "config.json", folder / "vocab.txt")


def test_the_same_weights_give_the_same_hash(tmp_path, med3d_file):
    plain, half = tmp_path / "plain.pth", tmp_path / "again.safetensors"
    state = drawn(NARROW_MED3D)
    torch.save(dict(reversed(state.items())), plain)
    save_file(state, half)
    folders = [tmp_path / name for name in "abc"]
    found = {
        import_weights(file, folder, KNOWN).sha256
        for file, folder in zip((med3d_file, plain, half), folders, strict=True)
    }
    assert len(found) == 1


def test_importing_again_changes_nothing(tmp_path, med3d_file):
    first, again = (import_weights(med3d_file, tmp_path / "weights", KNOWN) for _ in range(2))
    assert first == again


def test_other_weights_do_not_take_the_place_of_pinned_ones(tmp_path, med3d_file):
    first = import_weights(med3d_file, tmp_path / "weights", KNOWN)
    other = tmp_path / "other.pth"
    torch.save(published_med3d(drawn(NARROW_MED3D, seed=1)), other)
    with pytest.raises(InputError, match="pinned with other weights"):
        import_weights(other, tmp_path / "weights", KNOWN)
    assert sha256_of(first.file) == first.sha256


def test_a_file_that_changed_is_refused(tmp_path, med3d_file):
    found = import_weights(med3d_file, tmp_path / "weights", KNOWN)
    save_file(drawn(NARROW_MED3D, seed=1), found.file)
    os.utime(found.file, ns=(1, 1))
    with pytest.raises(InputError, match=f"expected {found.sha256} as pinned in weights.json"):
        load_weights(tmp_path / "weights", "med3d-resnet18")


def test_a_file_that_came_without_a_pin_is_pinned_when_first_used(tmp_path):
    (tmp_path / "tower").mkdir()
    file = tmp_path / "tower" / "vocab.txt"
    file.write_text("one")
    pinned_hash(tmp_path, "tower/vocab.txt")
    file.write_text("others")
    with pytest.raises(InputError, match="has changed"):
        pinned_hash(tmp_path, "tower/vocab.txt")


def renamed(state, old, new):
    return {name.replace(old, new): value for name, value in state.items()}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param(
            {"state_dict": {"module.fc.weight": torch.zeros(2)}},
            r"found 1 tensor \(fc.weight\); expected one of: Med3D ResNet-18; UniMed-CLIP",
            id="unknown",
        ),
        pytest.param(
            renamed(drawn(NARROW_MED3D), "layer4.1.", "layer4.2."),
            r"nearest to Med3D ResNet-18, but it lacks 10 tensors \(layer4.1.bn1.bias, "
            r"layer4.1.bn1.running_mean, …\); it has 10 tensors \(layer4.2.bn1.bias",
            id="other names",
        ),
        pytest.param(
            drawn(state_shapes((4, 8, 8, 12))),
            r"has the shape \(12, 8, 3, 3, 3\), expected \(16, 8",
            id="other width",
        ),
        pytest.param(
            drawn(NARROW_MED3D) | {"bn1.bias": torch.full((4,), float("nan"))}, "bn1.bias holds NaN", id="NaN"
        ),
        pytest.param(
            checkpoint({k: v for k, v in drawn(NARROW.state_shapes()).items() if not k.startswith("proj")}),
            r"nearest to UniMed-CLIP, but it lacks 2 tensors \(proj.0.weight, proj.2.weight\)",
            id="no projection",
        ),
        pytest.param([1, 2], "holds no named tensors", id="a list"),
        pytest.param({"state_dict": {}}, "holds no named tensors", id="empty"),
    ],
)
def test_another_checkpoint_is_refused(tmp_path, content, sentence):
    file = tmp_path / "file.pth"
    torch.save(content, file)
    with pytest.raises(InputError, match=sentence):
        import_weights(file, tmp_path / "weights", KNOWN)
    assert not (tmp_path / "weights").exists()


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_code_in_a_checkpoint_is_not_run(tmp_path, zipped):
    file, trace = tmp_path / "bad.pth", tmp_path / "trace"
    torch.save(
        {"state_dict": drawn(NARROW_MED3D), "x": Payload(str(trace))},
        file,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(InputError, match="so it is not opened"):
        import_weights(file, tmp_path / "weights", KNOWN)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>Sign in</html>" * 50, id="a web page"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\n", id="a git-lfs pointer"),
        pytest.param(b"PK\x03\x04" + b"\0" * 64, id="a torn zip"),
        pytest.param(pickle.dumps({"a": np.arange(3)}), id="a plain pickle"),
        pytest.param(None, id="cut off"),
    ],
)
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_damaged_file_is_one_sentence(tmp_path, med3d_file, content, ending):
    file = tmp_path / f"file{ending}"
    whole = med3d_file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(InputError, match=f"file{ending}: "):
        import_weights(file, tmp_path / "weights", KNOWN)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        import_weights(tmp_path / "none.pth", tmp_path / "weights", KNOWN)
    with pytest.raises(InputError, match="mmare-site weights import FILE"):
        pinned_hash(tmp_path, "med3d-resnet18.safetensors")


def test_a_pinned_file_that_is_no_safetensors_is_one_sentence(tmp_path):
    (tmp_path / "med3d-resnet18.safetensors").write_bytes(b"x" * 64)
    with pytest.raises(InputError, match="cannot be read"):
        load_weights(tmp_path, "med3d-resnet18")


def test_a_folder_in_place_of_a_file_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        import_weights(tmp_path, tmp_path / "weights", KNOWN)
    with pytest.raises(InputError, match="cannot be read"):
        sha256_of(tmp_path)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, med3d_file, monkeypatch):
    def full(_state, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(RunError, match="No space left on device"):
        import_weights(med3d_file, tmp_path / "weights", KNOWN)
    assert list((tmp_path / "weights").iterdir()) == []


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}'])
def test_a_damaged_list_of_pins_is_refused(tmp_path, content):
    (tmp_path / "a").write_text("a")
    (tmp_path / "weights.json").write_text(content)
    with pytest.raises(InputError, match=r"weights\.json"):
        pinned_hash(tmp_path, "a")


def test_the_known_checkpoints():
    sizes = {layout.name: len(layout.shapes) for layout in LAYOUTS}
    assert sizes == {
        "hypermm-vgg11": 16,
        "med3d-resnet18": 85,
        "resnet50-wsi": 215,
        "unimed-clip-text": 199,
        "unimed-clip-text-l14-base": 199,
        "unimed-clip-text-l14-large": 391,
    }


@pytest.mark.slow
def test_the_full_layouts(tmp_path):
    for layout in LAYOUTS[:2]:
        state = drawn(layout.shapes)
        file = tmp_path / "file.pt"
        torch.save(published_med3d(state) if layout.prefix == "" else checkpoint(state), file)
        found = import_weights(file, tmp_path / "weights")
        assert found.name == layout.name
        assert found.n_tensors == len(layout.shapes)
