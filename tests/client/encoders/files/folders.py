"""Tiny encoders in each format, as their libraries save them; and sealed once."""

import json
from pathlib import Path

import tomli_w
import torch
from safetensors.torch import save_file
from torch import nn

from tests.client.encoders.towers import WORDS

__all__ = ["DRAFTS", "SCAN", "draft", "network_3d", "write_contract"]

SCAN = {"kind": "volume", "size": [12, 16, 16], "window": [-1000, 1000]}
SLICES = {"kind": "slices", "size": [28, 28], "slices": 4, "channels": 3, "mean": [0.5], "std": [0.25]}
TILES = {"kind": "tiles", "size": [28, 28], "tile_px": 64, "mean": [0.5] * 3, "std": [0.25] * 3}


def write_contract(folder: Path, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    content = {"name": folder.name, "licence": "MIT", "source": "tests"} | changes
    (folder / "encoder.toml").write_text(tomli_w.dumps(content))
    return folder


def drawn(make):
    """A module with values from a seed, whatever the global state is."""
    with torch.random.fork_rng():
        torch.manual_seed(0)  # noqa: TID251 - the state is restored
        module = make().eval()
    return module.requires_grad_(requires_grad=False)


def network_3d(width=8):
    return drawn(
        lambda: nn.Sequential(
            nn.Conv3d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv3d(4, width, 3, padding=1)
        )
    )


def pictures_2d(width=8):
    return drawn(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, width, 3))
    )


def write_onnx(network, shape, path, name="features"):
    """The graph of a convolution, ReLU and a convolution; an exporter takes seconds for it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    first, last = network[0], network[2]
    nodes, values = [], []
    for number, (conv, taken, given) in enumerate([(first, "scan", "a"), (last, "b", name)]):
        values += [
            numpy_helper.from_array(getattr(conv, key).numpy(), f"{key}{number}")
            for key in ("weight", "bias")
        ]
        axes = conv.weight.ndim - 2
        nodes.append(
            helper.make_node(
                "Conv",
                [taken, f"weight{number}", f"bias{number}"],
                [given],
                strides=list(conv.stride),
                pads=[*conv.padding] * 2,
                kernel_shape=[3] * axes,
            )
        )
    nodes.insert(1, helper.make_node("Relu", ["a"], ["b"]))
    sizes = ["n", *shape[1:]], ["n", last.weight.shape[0], *["?"] * (len(shape) - 2)]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, z)
        for n, z in zip(("scan", name), sizes, strict=True)
    ]
    graph = helper.make_graph(nodes, "tiny", ends[:1], ends[1:], values)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def onnx_volume(folder):
    write_contract(folder, format="onnx", input=SCAN, output={"width": 8, "pooling": "mean"})
    write_onnx(network_3d(), (1, 1, 12, 16, 16), folder / "model.onnx")
    return folder


def onnx_tiles(folder):
    write_contract(folder, format="onnx", input=TILES, output={"width": 8, "pooling": "max", "across": "max"})
    write_onnx(pictures_2d(), (1, 3, 28, 28), folder / "model.onnx")
    return folder


def dinov2(folder, size=28):
    """The layout of RAD-DINO: a Dinov2Model, its preprocessor_config.json, model.safetensors."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=size,
        patch_size=14,
        mlp_ratio=2,
    )
    drawn(lambda: Dinov2Model(config)).save_pretrained(folder)
    return folder


def transformers_slices(folder):
    write_contract(
        folder,
        format="transformers",
        input=SLICES,
        output={"width": 16, "tensor": "pooler_output", "across": "mean"},
    )
    return dinov2(folder)


def bert(folder):
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    drawn(lambda: BertModel(config, add_pooling_layer=False)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


def transformers_text(folder):
    write_contract(
        folder,
        format="transformers",
        input={"kind": "text", "max_tokens": 64},
        output={"width": 16, "pooling": "mean", "normalise": "l2"},
    )
    return bert(folder)


TIMM = {"img_size": 28, "patch_size": 14, "embed_dim": 12, "depth": 1, "num_heads": 2}


def timm_tiles(folder):
    import timm

    write_contract(
        folder, format="timm", input=TILES, output={"width": 12, "tensor": "features", "pooling": "patches"}
    )
    name = "vit_tiny_patch16_224"
    model = drawn(lambda: timm.create_model(name, num_classes=3, **TIMM))
    (folder / "config.json").write_text(
        json.dumps(
            {"architecture": name, "num_classes": 3, "model_args": TIMM, "pretrained_cfg": {"tag": "tests"}}
        )
    )
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


OPEN_CLIP = {  # as BiomedCLIP: a ViT of timm, a BERT of Hugging Face, both projected to one width
    "embed_dim": 8,
    "vision_cfg": {
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 224,
    },
    "text_cfg": {
        "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 256,
    },
}


def biomedclip(folder):
    """The layout of BiomedCLIP without its weights, which the caller saves; gives the model."""
    from open_clip.model import CustomTextCLIP

    bert(folder)
    (folder / "model.safetensors").unlink()
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": OPEN_CLIP, "preprocess_cfg": {"mean": [0.48] * 3, "std": [0.27] * 3}})
    )
    local = json.loads(json.dumps(OPEN_CLIP))
    local["text_cfg"] |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
    return drawn(lambda: CustomTextCLIP(**local))


def open_clip_text(folder):
    write_contract(folder, format="open_clip", input={"kind": "text"}, output={"width": 8, "normalise": "l2"})
    save_file(biomedclip(folder).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def torch_export_volume(folder):
    write_contract(folder, format="torch-export", input=SCAN, output={"width": 8, "pooling": "mean"})
    program = torch.export.export(
        network_3d(), (torch.zeros(2, 1, 12, 16, 16),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    torch.export.save(program, folder / "model.pt2")
    return folder


DRAFTS = {
    make.__name__: make
    for make in (
        onnx_volume,
        onnx_tiles,
        transformers_slices,
        transformers_text,
        timm_tiles,
        open_clip_text,
        torch_export_volume,
    )
}


def draft(name, folder):
    """An encoder's folder that is not sealed yet."""
    return DRAFTS[name](folder)
