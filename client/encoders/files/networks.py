"""Open the network of an encoder's folder, in the format that its contract names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Final

from client.encoders.files.contract import Format
from client.encoders.files.memory import is_full
from mmare.errors import InputError, MmareError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from client.encoders.files.folder import EncoderFolder

__all__ = ["IMAGE", "Network", "open_network"]

Network = Callable[[Mapping[str, "Tensor"]], "Tensor"]  # inputs by name, output (B, …)

IMAGE: Final = "image"  # the input that is no text

# Format: module with ``open_network``, package that it needs, what brings the package.
_FORMATS: Final = {
    Format.ONNX: ("onnx_graph", "onnxruntime", "federated-mmare[onnx]"),
    Format.TRANSFORMERS: ("transformers_folder", "transformers", "federated-mmare[site]"),
    Format.TIMM: ("timm_folder", "timm", "federated-mmare[site]"),
    Format.OPEN_CLIP: ("open_clip_folder", "open_clip", "federated-mmare[site]"),
    Format.TORCH_EXPORT: ("exported_program", "torch", "torch"),
}


def open_network(folder: EncoderFolder, device: torch.device) -> Network:
    """The network with its weights, in float32, frozen.

    Raises:
        InputError: If its package is not installed, or a file cannot be read or does not fit.
    """
    module, package, extra = _FORMATS[folder.contract.format]
    try:
        import_module(package)
    except ImportError:
        raise InputError(
            f"encoder {folder.contract.name} is of format {folder.contract.format}, which needs {package}: "
            f"pip install '{extra}'"
        ) from None
    opened: Callable[[EncoderFolder, torch.device], Network]
    opened = import_module(f"client.encoders.files.{module}").open_network
    try:
        return opened(folder, device)
    except (MmareError, MemoryError):
        raise
    except Exception as error:  # libraries raise almost anything on a damaged or foreign file
        if is_full(error):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{folder.path}: {folder.contract.format} cannot open it: {first}") from error
