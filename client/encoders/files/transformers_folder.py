"""A folder as transformers saves it: ``config.json`` and safetensors; nothing is downloaded or executed."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

import torch

from client.encoders.files.contract import InputKind
from client.encoders.files.networks import IMAGE
from mmare.errors import InputError
from mmare.randomness import global_draws

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from client.encoders.files.folder import EncoderFolder
    from client.encoders.files.networks import Network

__all__ = ["check_no_code", "open_network"]

_USUAL: Final = "last_hidden_state"
_POOLED: Final = "pooler_output"
_POOLER: Final = "pooler."
_TOWERS: Final = {"image_features": "get_image_features", "text_features": "get_text_features"}
_CODE: Final = ("auto_map", "custom_pipelines", "quantization_config")


def open_network(folder: EncoderFolder, device: torch.device) -> Network:
    """As `client.encoders.files.networks.open_network`."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # never download; read at first import
    from transformers import AutoModel, logging  # noqa: PLC0415 - takes seconds to import

    spec, wanted = folder.contract, folder.contract.output.tensor or _USUAL
    check_no_code(folder.path)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it would print what is missing, too
    with global_draws():  # initial values of what the file lacks, which is refused
        model, found = AutoModel.from_pretrained(
            str(folder.path),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    logging.set_verbosity(before)
    lacking = [name for name in found["missing_keys"] if wanted == _POOLED or not name.startswith(_POOLER)]
    if lacking:
        raise InputError(
            f"{folder.path}: the weights lack {len(lacking)} tensors, the first is {min(lacking)}"
        )
    model = model.eval().requires_grad_(requires_grad=False).to(device)
    call = getattr(model, _TOWERS[wanted]) if wanted in _TOWERS else model
    names = {IMAGE: "pixel_values"} if spec.input.kind is not InputKind.TEXT else None

    @torch.inference_mode()
    def run(values: Mapping[str, Tensor]) -> Tensor:
        given = {(names or {}).get(name, name): value.to(device) for name, value in values.items()}
        return _tensor(call(**given), wanted, folder.path)

    return run


def check_no_code(path: Path) -> None:
    """Refuse a ``config.json`` that names code of its own.

    Raises:
        InputError: If it does, or cannot be read.
    """
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path / 'config.json'}: cannot be read ({type(error).__name__})") from None
    for key in _CODE:
        if isinstance(config, dict) and config.get(key):
            raise InputError(
                f"{path / 'config.json'}: has {key!r}: it needs code that transformers does not bring"
            )


def _tensor(found: Any, wanted: str, path: Path) -> Tensor:  # noqa: ANN401 - each model has its own output
    if isinstance(found, torch.Tensor):
        return found
    value = getattr(found, _POOLED if wanted in _TOWERS else wanted, None)
    if not isinstance(value, torch.Tensor):
        known = ", ".join(key for key in found if isinstance(found[key], torch.Tensor))
        raise InputError(f"{path}: [output] tensor is {wanted!r}, expected one of the model's: {known}")
    return value
