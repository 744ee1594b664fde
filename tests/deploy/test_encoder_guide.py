"""The guide's encoders, on tiny stand-ins of their published layouts; its code and tables run literally."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w
import torch
from safetensors.torch import load_file, save_file

from client.cli import main
from tests.client.encoders.files.folders import biomedclip, dinov2, drawn

GUIDE = (Path(__file__).parents[2] / "deploy" / "encoders.md").read_text(encoding="utf-8")


def section(title):
    return next(part for part in GUIDE.split("\n## ") if part.startswith(title))


def block(title, language):
    return re.search(rf"```{language}\n(.*?)```", section(title), re.DOTALL).group(1)


def contract(title, folder, **changes):
    """The guide's table, with the sizes of the stand-in."""
    content = tomllib.loads(block(title, "toml"))
    for table, values in changes.items():
        content[table] |= values
    (folder / "encoder.toml").write_text(tomli_w.dumps(content))


def site(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["mmare-site", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def added(monkeypatch, capsys, folder):
    assert site(monkeypatch, "encoders", "seal", folder) == 0
    assert site(monkeypatch, "encoders", "add", folder, "--device", "cpu") == 0
    shown = capsys.readouterr().out
    assert f'encoder = "file:{folder.name}", width = ' in shown
    assert site(monkeypatch, "encoders", "list") == 0
    assert "fingerprint: file/1+" in capsys.readouterr().out


@pytest.mark.slow
def test_ct_fm(tmp_path, monkeypatch, capsys):
    from monai.networks.nets.segresnet_ds import SegResEncoder

    monkeypatch.chdir(tmp_path)
    Path("download").mkdir()
    Path("ct-fm").mkdir()
    config = {"spatial_dims": 3, "in_channels": 1, "init_filters": 4, "blocks_down": [1, 1, 1, 1, 1]}
    model = drawn(lambda: SegResEncoder(**config))
    assert {"conv_init.weight", "layers.0.blocks.0.conv1.weight"} <= set(model.state_dict())
    save_file(model.state_dict(), "download/model.safetensors")
    Path("download/config.json").write_text(json.dumps(config | {"head_module": None, "library": "x"}))
    done = subprocess.run(
        [sys.executable, "-c", block("CT-FM", "python")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    contract("CT-FM", Path("ct-fm"), output={"width": 64})
    added(monkeypatch, capsys, Path("ct-fm"))
    from client.encoders.files.folder import open_folder
    from client.encoders.files.networks import IMAGE, open_network

    network = open_network(open_folder(Path("ct-fm")), torch.device("cpu"))
    for shape in ((32, 48, 40), (21, 33, 50)):  # a scan's own
        scan = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(network({IMAGE: scan}), model(scan)[-1], atol=1e-5, rtol=1e-4)


def test_rad_dino(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = dinov2(Path("rad-dino"))
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "BitImageProcessor"})
    )
    contract("RAD-DINO", folder, input={"size": [28, 28]}, output={"width": 16})
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Dinov2Model"]
    added(monkeypatch, capsys, folder)
    assert sorted(path.name for path in Path("weights/rad-dino").iterdir()) == sorted(
        path.name for path in folder.iterdir()
    )


@pytest.mark.slow
def test_biomedclip(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = Path("biomedclip")
    model = biomedclip(folder)
    state = dict(model.state_dict()) | {"text.transformer.embeddings.position_ids": torch.arange(512)[None]}
    Path("download").mkdir()
    torch.save(state, "download/open_clip_pytorch_model.bin")
    command = re.search(r"mmare-site (encoders convert .*)", section("BiomedCLIP")).group(1).split()
    assert site(monkeypatch, *command) == 0
    assert set(load_file(folder / "open_clip_model.safetensors")) == set(state)
    contract("BiomedCLIP", folder, output={"width": 8})
    added(monkeypatch, capsys, folder)
    from client.encoders.files.folder import open_folder
    from client.encoders.files.probe import opened

    found = torch.from_numpy(
        opened(open_folder(folder), torch.device("cpu")).encode(["the patient", "is a male ."])
    )
    tokens = torch.tensor([[2, 5, 6, 3, 0, 0], [2, 7, 8, 9, 12, 3]])  # by the vocabulary
    expected = torch.nn.functional.normalize(model.encode_text(tokens), dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_every_key_of_the_contract_is_in_the_guide():
    from client.encoders.files.contract import Format, InputSpec, OutputSpec

    keys = {*InputSpec.__dataclass_fields__, *OutputSpec.__dataclass_fields__, *Format}
    assert [key for key in sorted(keys) if f"`{key}`" not in GUIDE and f"`{key} = " not in GUIDE] == []
