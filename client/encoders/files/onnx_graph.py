"""An ONNX graph: run by onnxruntime, on a GPU where it has a provider for one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from client.encoders.files.networks import IMAGE
from mmare.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from client.encoders.files.folder import EncoderFolder
    from client.encoders.files.networks import Network

__all__ = ["open_network"]

_CPU: Final = "CPUExecutionProvider"
_GPU: Final = "CUDAExecutionProvider"
_ERRORS_ONLY: Final = 3
_TEXT: Final = ("input_ids", "attention_mask", "token_type_ids")

_log = logging.getLogger(__name__)


def open_network(folder: EncoderFolder, device: torch.device) -> Network:
    """As `client.encoders.files.networks.open_network`."""
    import onnxruntime  # noqa: PLC0415 - an extra

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = _ERRORS_ONLY
    providers: list[Any] = [_CPU]
    if device.type == "cuda":
        if _GPU in onnxruntime.get_available_providers():
            providers.insert(0, (_GPU, {"device_id": device.index or 0}))
        else:
            _log.warning(
                "this onnxruntime has no provider for a GPU, so the CPU is used; onnxruntime-gpu has one"
            )
    session = onnxruntime.InferenceSession(str(folder.weights), options, providers=providers)
    spec = folder.contract
    inputs = {each.name: each.type for each in session.get_inputs()}
    output = _chosen(folder, "output", spec.output.tensor, [each.name for each in session.get_outputs()])
    if set(inputs) <= set(_TEXT):
        names = {name: name for name in inputs}
    else:
        names = {IMAGE: _chosen(folder, "input", spec.input.tensor, [*inputs])}

    def run(values: Mapping[str, Tensor]) -> Tensor:
        if lacking := [name for name in names if name not in values]:
            raise InputError(
                f"{folder.path}: the graph takes {names[lacking[0]]!r}, which {spec.input.kind} has not"
            )
        feed = {graph: _array(values[name], inputs[graph]) for name, graph in names.items()}
        return torch.from_numpy(np.asarray(session.run([output], feed)[0], np.float32))

    return run


def _array(value: Tensor, kind: str) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = value.cpu().numpy()
    types = {"tensor(float16)": np.float16, "tensor(int32)": np.int32, "tensor(int64)": np.int64}
    return array.astype(types.get(kind, array.dtype), copy=False)


def _chosen(folder: EncoderFolder, which: str, named: str, there: Sequence[str]) -> str:
    """The tensor that the contract names, or the only one."""
    if named in there or (not named and len(there) == 1):
        return named or there[0]
    raise InputError(
        f"{folder.path}: [{which}] tensor is {named!r}, expected one of the graph's: {', '.join(there)}"
    )
