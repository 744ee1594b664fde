"""A folder as timm saves it: ``config.json`` names one of its architectures, the weights are safetensors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import torch

from client.encoders.files.networks import IMAGE
from mmare.errors import InputError
from mmare.randomness import global_draws

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from client.encoders.files.folder import EncoderFolder
    from client.encoders.files.networks import Network

__all__ = ["open_network"]

_POOLED: Final = "pooled"  # by the architecture's own rule, before its classifier
_TENSORS: Final = (_POOLED, "features")


def open_network(folder: EncoderFolder, device: torch.device) -> Network:
    """As `client.encoders.files.networks.open_network`."""
    import timm  # noqa: PLC0415 - takes seconds to import

    wanted = folder.contract.output.tensor or _POOLED
    if wanted not in _TENSORS:
        raise InputError(
            f"{folder.path}: [output] tensor is {wanted!r}, expected one of {', '.join(_TENSORS)}"
        )
    config: dict[str, Any] = json.loads((folder.path / "config.json").read_text(encoding="utf-8"))
    arguments = {"num_classes": config.get("num_classes", 0), **config.get("model_args", {})}
    with global_draws():  # its initial values, replaced at once
        model = timm.create_model(
            config["architecture"], pretrained=False, checkpoint_path=str(folder.weights), **arguments
        )
    whole: Any = model.eval().requires_grad_(requires_grad=False).to(device)  # methods that nn.Module has not

    @torch.inference_mode()
    def run(values: Mapping[str, Tensor]) -> Tensor:
        features: Tensor = whole.forward_features(values[IMAGE].to(device))
        return features if wanted != _POOLED else whole.forward_head(features, pre_logits=True)

    return run
