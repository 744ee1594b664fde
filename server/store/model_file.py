"""A run's final model: weights, scaling and study, loadable without the federation."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmare.errors import InputError
from mmare.host.files import own_folder, replacing
from mmare.models.registry import build_model
from mmare.study.study import parse_study
from mmare.wire.tensors import copy_tensors, global_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from mmare.models.base import MultimodalModel
    from mmare.study.study import Study

__all__ = ["load_model", "save_model"]

WEIGHTS, CARD = "model.safetensors", "model.json"


def save_model(folder: Path, study: Study, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write ``model.safetensors`` and ``model.json``, the latter with ``facts`` such as the round."""
    own_folder(folder)
    weights = folder / WEIGHTS
    with replacing(weights, private=True) as partial:
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial)
    card = {
        "study": study.to_dict(),
        "study_hash": study.hash,
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "software": version("federated-mmare"),
        **facts,
    }
    with replacing(folder / CARD, private=True) as partial:
        partial.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def load_model(folder: Path) -> MultimodalModel:
    """Load a model in evaluation mode from the ``model`` folder of a run, or a copy of it.

    Raises:
        InputError: If a file is missing, damaged or does not match the other.
    """
    weights = folder / WEIGHTS
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        tensors = load_file(weights)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder}: not a model folder ({type(error).__name__})") from None
    if not (isinstance(card, dict) and isinstance(card.get("study"), dict)):
        raise InputError(f"{folder / CARD}: not a model card, expected the key 'study'")
    if digest != card.get("weights_sha256"):
        raise InputError(f"{weights}: sha256 {digest[:12]}, expected the one in {CARD}")
    model = build_model(parse_study(card["study"], source=str(folder / CARD)))
    own = global_tensors(model)
    if _shapes(tensors) != _shapes(own):
        raise InputError(f"{weights}: other tensors than those of the study's model in {CARD}")
    copy_tensors(own, tensors)
    return model.eval()


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[object, ...]]:
    return {name: (value.dtype, *value.shape) for name, value in tensors.items()}
