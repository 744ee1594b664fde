"""What is refused: one sentence, and nothing changed."""

import json
import pickle
import tomllib
import zipfile

import pytest
import tomli_w
import torch
from safetensors.torch import load_file, save_file

from client.encoders.files import networks
from client.encoders.files.exported_program import check_archive
from client.encoders.files.folder import added_encoders, open_folder, remove_encoder
from client.encoders.files.memory import enough_memory
from client.encoders.files.store import add_encoder, convert_checkpoint, seal_encoder
from mmare.errors import InputError
from tests.client.encoders.files.folders import SCAN, draft, network_3d, write_contract

CPU = torch.device("cpu")


def changed(folder, **changes):
    """A folder whose encoder.toml says something else; dots lead into tables."""
    path = folder / "encoder.toml"
    content = tomllib.loads(path.read_text())
    for key, value in changes.items():
        *tables, last = key.split("__")
        table = content
        for name in tables:
            table = table[name]
        table[last] = value
    path.write_text(tomli_w.dumps(content))
    return folder


def refused(folder, into, match):
    with pytest.raises(InputError, match=match) as caught:
        add_encoder(folder, into, CPU)
    assert "\n" not in str(caught.value)
    assert not into.exists() or not any(into.iterdir())


def test_an_encoder_is_added_once_listed_and_removed(sealed, tmp_path):
    done = add_encoder(sealed("onnx_volume"), tmp_path, CPU)
    assert done.difference == 0
    again = add_encoder(sealed("onnx_volume"), tmp_path, CPU)
    assert again.folder.fingerprint == done.folder.fingerprint
    assert [(name, found.fingerprint) for name, found in added_encoders(tmp_path)] == [
        ("onnx-volume", done.folder.fingerprint)
    ]
    with pytest.raises(InputError, match="has no encoder 'other', found onnx-volume"):
        remove_encoder("other", tmp_path)
    remove_encoder("onnx-volume", tmp_path)
    assert not any(tmp_path.iterdir())


def test_another_output_is_refused_with_its_largest_difference(copied, tmp_path):
    folder = copied("onnx_volume")
    output = load_file(folder / "probe-output.safetensors")["probe"]
    largest = output.abs().argmax()
    output.flatten()[largest] *= 0.8
    save_file({"probe": output}, folder / "probe-output.safetensors")
    from client.encoders.digest import sha256_of

    refused(
        changed(
            folder, **{"files__probe-output.safetensors": sha256_of(folder / "probe-output.safetensors")}
        ),
        tmp_path / "weights",
        r"another output on cpu: largest difference 0\.\d+ of the largest value, expected at most 0\.001",
    )


def test_a_changed_step_shows_in_the_probe(copied, tmp_path):
    refused(changed(copied("onnx_volume"), input__orientation="RAS"), tmp_path / "w", "largest difference")


def test_another_width_is_refused(copied, tmp_path):
    refused(
        changed(copied("onnx_volume"), output__width=9),
        tmp_path / "w",
        "gives vectors of 8 numbers, expected width 9",
    )


def test_a_pooling_for_other_arrays_is_refused(copied, tmp_path):
    folder = changed(copied("onnx_volume"), output__pooling="first")
    refused(folder, tmp_path / "w", r"gives an array \(1, 8, 6, 8, 8\), but pooling is first")


def test_a_shape_that_the_network_does_not_take_is_one_sentence(copied, tmp_path):
    folder = changed(copied("onnx_volume"), input__size=[12, 16, 20])
    refused(folder, tmp_path / "w", r"the network does not take image \(1, 1, 12, 16, 20\): ")


def test_more_memory_than_there_is_is_refused(copied, tmp_path):
    folder = changed(copied("onnx_volume"), probe__memory_mb=10**9)
    refused(
        folder, tmp_path / "w", r"onnx-volume takes about 1000000000 MB of memory, but cpu has \d+ MB free"
    )


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_runs_out_is_one_sentence(error):
    with pytest.raises(InputError, match="encoder x needs more memory than cpu has"), enough_memory("x", CPU):
        raise error


def test_a_changed_file_is_refused(copied, tmp_path):
    folder = copied("onnx_volume")
    content = bytearray((folder / "model.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "model.onnx").write_bytes(content)
    refused(
        folder, tmp_path / "w", "model.onnx: sha256 is [0-9a-f]{64}, expected [0-9a-f]{64} as in encoder.toml"
    )


def test_a_file_that_is_not_listed_is_refused_unless_it_is_for_people(copied, tmp_path):
    folder = copied("transformers_slices")
    (folder / "README.md").write_text("for people")
    open_folder(folder)
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, tmp_path / "w", r"adapter_config.json: not in \[files\]")


def test_a_pickle_is_refused_and_never_read(copied, tmp_path):
    folder = copied("transformers_slices")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(print))
    refused(
        folder, tmp_path / "w", "can hold a pickle, which runs code when it is read; convert it once with"
    )
    with pytest.raises(InputError, match="can hold a pickle"):
        seal_encoder(folder)


def test_code_in_a_configuration_is_refused(tmp_path):
    folder = draft("transformers_text", tmp_path / "coded")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling.Model"}}))
    with pytest.raises(InputError, match="has 'auto_map': it needs code that transformers does not bring"):
        seal_encoder(folder)


def test_weights_that_lack_a_tensor_are_refused(tmp_path):
    folder = draft("transformers_text", tmp_path / "cut")
    state = load_file(folder / "model.safetensors")
    del state["embeddings.word_embeddings.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 tensors, the first is embeddings\.word_embeddings"):
        seal_encoder(folder)


def test_a_missing_package_is_one_sentence(copied, tmp_path, monkeypatch):
    monkeypatch.setitem(networks._FORMATS, "onnx", ("onnx_graph", "no_such_package", "federated-mmare[onnx]"))
    refused(
        copied("onnx_volume"), tmp_path / "w", r"needs no_such_package: pip install 'federated-mmare\[onnx\]'"
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param(
            {"format": "pickle"}, "format must be one of onnx, transformers, timm", id="unknown format"
        ),
        pytest.param({"licence": ""}, "licence is empty", id="no licence"),
        pytest.param({"name": "../x"}, "name is '../x'", id="name that leads elsewhere"),
        pytest.param({"input": SCAN | {"um_px": 0.5}}, "um_px is not for volume", id="key of another kind"),
        pytest.param({"input": SCAN | {"colour": 1}}, "unknown key 'colour'", id="unknown key"),
        pytest.param({"input": SCAN | {"orientation": "SAA"}}, "orientation is 'SAA'", id="axes"),
        pytest.param(
            {"input": SCAN | {"window": [3, 1]}}, "window must be a lower and a higher", id="window"
        ),
        pytest.param(
            {"input": SCAN | {"mean": [1.0, 2.0], "std": [1.0, 1.0]}}, "for each of 1 channels", id="mean"
        ),
        pytest.param(
            {"input": SCAN | {"normalise": "foreground", "channels": 3}}, "size and window alone", id="steps"
        ),
        pytest.param(
            {"files": {"../weights": "0" * 64}}, "expected a file inside the folder", id="file outside"
        ),
        pytest.param({"files": {"a": "12"}}, "expected 64 digits", id="digest"),
    ],
)
def test_what_a_contract_cannot_say(tmp_path, changes, sentence):
    content = {"format": "onnx", "input": SCAN, "output": {"width": 8}} | changes
    with pytest.raises(InputError, match=sentence) as caught:
        open_folder(write_contract(tmp_path / "x", **content))
    assert str(caught.value).startswith(str(tmp_path / "x" / "encoder.toml"))


def test_a_folder_that_was_not_sealed_is_not_added(tmp_path):
    refused(
        draft("onnx_volume", tmp_path / "x"),
        tmp_path / "w",
        "has no .probe. yet; run mmare-site encoders seal",
    )


def test_a_failed_seal_leaves_the_folder_as_it_was(tmp_path):
    folder = changed(draft("onnx_volume", tmp_path / "x"), output__width=9)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match="expected width 9"):
        seal_encoder(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_foreign_graph_is_one_sentence(tmp_path):
    folder = draft("onnx_volume", tmp_path / "x")
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match="onnx cannot open it"):
        seal_encoder(folder)


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("code of a pickle was run",))


def with_record(source, target, name, content):
    """A copy of an archive with one record replaced or added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        folder = old.namelist()[0].partition("/")[0]
        for record in old.namelist():
            if record != f"{folder}/{name}":
                new.writestr(record, old.read(record))
        new.writestr(f"{folder}/{name}", content)
    return target


def test_an_exported_program_is_examined_before_torch_reads_it(tmp_path):
    source = tmp_path / "good.pt2"
    torch.export.save(torch.export.export(network_3d(), (torch.zeros(1, 1, 8, 8, 8),)), source)
    check_archive(source)
    target = tmp_path / "bad.pt2"
    evil = tmp_path / "evil"
    torch.save({"x": Evil()}, evil)
    with zipfile.ZipFile(source) as archive:
        folder = archive.namelist()[0].partition("/")[0]
        config = archive.read(f"{folder}/data/weights/model_weights_config.json")
        graph = archive.read(f"{folder}/models/model.json")
    for name, content, sentence in (
        ("data/sample_inputs/model.pt", evil.read_bytes(), "no program of tensors alone"),
        (
            "data/weights/model_weights_config.json",
            config.replace(b'"use_pickle": false', b'"use_pickle": true'),
            "names a pickle",
        ),
        ("data/aotinductor/model/code.so", b"\x7fELF", "expected a graph and raw tensors alone"),
        ("models/model.json", graph[:-1] + b', "expr_str": "__import__(\'os\')"}', "no sum or product"),
    ):
        with pytest.raises(InputError, match=sentence):
            check_archive(with_record(source, target, name, content))


def test_a_pickled_checkpoint_is_converted_as_tensors_only(tmp_path):
    shared = torch.arange(3.0)
    torch.save({"state_dict": {"module.a": shared, "b": shared}, "epoch": 3}, tmp_path / "good.bin")
    assert convert_checkpoint(tmp_path / "good.bin", tmp_path / "model.safetensors") == 2
    assert load_file(tmp_path / "model.safetensors")["a"].tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="exists already"):
        convert_checkpoint(tmp_path / "good.bin", tmp_path / "model.safetensors")
    torch.save({"a": shared, "b": Evil()}, tmp_path / "bad.bin")
    with pytest.raises(InputError, match="holds more than tensors and numbers, so it is not opened"):
        convert_checkpoint(tmp_path / "bad.bin", tmp_path / "bad.safetensors")
    assert not (tmp_path / "bad.safetensors").exists()


def test_the_fingerprint_is_that_of_what_vectors_depend_on(copied):
    folder = copied("onnx_volume")
    marks = [open_folder(folder).fingerprint]
    marks += [
        open_folder(changed(folder, **change)).fingerprint
        for change in (
            {"licence": "other", "source": "elsewhere", "probe__tolerance": 0.01},
            {"input__window": [-500.0, 1000.0]},
            {"output__normalise": "l2"},
        )
    ]
    assert marks[0] == marks[1]
    assert len(set(marks)) == 3
