"""A folder of open_clip: ``open_clip_config.json``, safetensors, ``config.json`` of a text tower."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import torch

from client.encoders.files.contract import InputKind
from client.encoders.files.networks import IMAGE
from client.encoders.files.transformers_folder import check_no_code
from mmare.randomness import global_draws

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from client.encoders.files.folder import EncoderFolder
    from client.encoders.files.networks import Network

__all__ = ["model_config", "open_network"]


def model_config(path: Path) -> dict[str, Any]:
    """The model part of a folder's configuration; nothing in it leads out of the folder.

    Raises:
        InputError: If the text tower's ``config.json`` is missing or names code.
    """
    content = json.loads((path / "open_clip_config.json").read_text(encoding="utf-8"))
    config: dict[str, Any] = content.get("model_cfg", content)
    if config["text_cfg"].get("hf_model_name"):
        check_no_code(path)
        config["text_cfg"] |= {"hf_model_name": str(path), "hf_model_pretrained": False}
    config["vision_cfg"] |= (
        {"timm_model_pretrained": False} if "timm_model_name" in config["vision_cfg"] else {}
    )
    return config


def open_network(folder: EncoderFolder, device: torch.device) -> Network:
    """As `client.encoders.files.networks.open_network`: ``encode_image`` or ``encode_text``."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # never download; read at first import
    import open_clip  # type: ignore[import-untyped]  # noqa: PLC0415 - has no types, takes seconds to import
    from open_clip.model import CLIP, CustomTextCLIP  # type: ignore[import-untyped]  # noqa: PLC0415 - as above

    config = model_config(folder.path)
    custom = config.pop("custom_text", False) or bool(config["text_cfg"].get("hf_model_name"))
    with global_draws():  # its initial values, replaced at once
        model = (CustomTextCLIP if custom else CLIP)(**config)
    open_clip.load_checkpoint(model, str(folder.weights), strict=True)
    model = model.eval().requires_grad_(requires_grad=False).to(device)
    text = folder.contract.input.kind is InputKind.TEXT

    @torch.inference_mode()
    def run(values: Mapping[str, Tensor]) -> Tensor:
        found: Tensor
        found = (
            model.encode_text(values["input_ids"].to(device))
            if text
            else model.encode_image(values[IMAGE].to(device))
        )
        return found

    return run
