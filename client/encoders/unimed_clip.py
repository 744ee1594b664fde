"""The text tower of UniMed-CLIP: a BERT, its first token, a projection, normalised to length 1.

Khattak et al., "UniMed-CLIP", arXiv:2412.10372; mbzuai-oryx/UniMed-CLIP at 6f091778. The tower is
`open_clip`'s `HFTextEncoder`, built from two local files and the weights that ``mmare-site weights import``
converted; nothing is ever downloaded.

Differs from the original: features are normalised (its ``encode_text`` leaves that to the caller), and
batches are padded to their longest text only, which is faster and changes no result.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch.nn import functional

from mmare.errors import InputError
from mmare.randomness import global_draws

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = [
    "B16",
    "L14_BASE",
    "L14_LARGE",
    "LOCAL_FILES",
    "TowerSpec",
    "UniMedText",
    "check_local_names",
    "load_unimed_text",
]

ARCHITECTURE: Final = "unimed-clip-text/1"  # raise the number when the features change
CONTEXT: Final = 256  # most tokens per text; the original pads to it
BATCH: Final = 32
LOCAL_FILES: Final = ("config.json", "vocab.txt")  # of the BERT, from its publisher

_POOLER: Final = "cls_last_hidden_state_pooler"
_OTHER_TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json")
_SPECIAL_TOKENS: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TowerSpec:
    """Sizes of a text tower."""

    bert: str  # source of its config.json and vocab.txt (Hugging Face)
    width: int  # of the embedding
    layers: int
    hidden: int
    heads: int  # of the attention
    inner: int  # width of the feed-forward layers
    vocabulary: int = 30522
    positions: int = 512

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of a weights file."""
        hidden, inner, projected = self.hidden, self.inner, (self.hidden + self.width) // 2
        shapes: dict[str, tuple[int, ...]] = {}
        for name, rows in (("word", self.vocabulary), ("position", self.positions), ("token_type", 2)):
            shapes[f"transformer.embeddings.{name}_embeddings.weight"] = (rows, hidden)
        square, wide = (hidden, hidden), (inner, hidden)
        maps = {f"attention.self.{name}": square for name in ("query", "key", "value")}
        maps |= {"attention.output.dense": square, "intermediate.dense": wide, "output.dense": wide[::-1]}
        norms = ["transformer.embeddings.LayerNorm"]
        for layer in range(self.layers):
            where = f"transformer.encoder.layer.{layer}"
            for name, shape in maps.items():
                shapes[f"{where}.{name}.weight"] = shape
                shapes[f"{where}.{name}.bias"] = shape[:1]
            norms += [f"{where}.attention.output.LayerNorm", f"{where}.output.LayerNorm"]
        shapes |= {f"{norm}.{name}": (hidden,) for norm in norms for name in ("weight", "bias")}
        return shapes | {"proj.0.weight": (projected, hidden), "proj.2.weight": (self.width, projected)}


_BERT: Final = "microsoft/BiomedNLP-BiomedBERT"
B16: Final = TowerSpec(f"{_BERT}-base-uncased-abstract", 512, layers=12, hidden=768, heads=12, inner=3072)
L14_BASE: Final = TowerSpec(
    f"{_BERT}-base-uncased-abstract", 768, layers=12, hidden=768, heads=12, inner=3072
)
L14_LARGE: Final = TowerSpec(
    f"{_BERT}-large-uncased-abstract", 768, layers=24, hidden=1024, heads=16, inner=4096
)


class UniMedText:
    """The frozen tower and its tokenizer on a device, in float32.

    Args:
        tower: `open_clip.hf_model.HFTextEncoder` with its weights; switched to evaluation mode here.
        tokenizer: `open_clip.tokenizer.HFTokenizer`.
        device: CPU by default.
    """

    def __init__(self, tower: Any, tokenizer: Any, device: torch.device | None = None) -> None:  # noqa: ANN401  open_clip is imported on first use
        self.device = device or torch.device("cpu")
        self._tower = tower.eval().requires_grad_(requires_grad=False).to(self.device)
        self._tokenizer = tokenizer
        self._padding = int(tower.config.pad_token_id)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings ``(N, W)`` of L2 norm 1; texts beyond 256 tokens are cut off, which is logged."""
        if not texts:
            return np.zeros((0, self._tower.output_dim), np.float32)
        tokens = self.tokenize(texts)
        n_full = int((tokens[:, -1] != self._padding).sum())
        if n_full:
            _log.warning(
                "%d of %d texts fill or exceed %d tokens; the rest is cut off", n_full, len(texts), CONTEXT
            )
        return torch.cat([self.encode_tokens(part) for part in torch.split(tokens, BATCH)]).numpy()

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """``(N, 256)`` token numbers, padded."""
        tokens: Tensor = self._tokenizer(list(texts))
        return tokens

    @torch.inference_mode()
    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """``(B, W)`` on the CPU for ``(B, T)`` tokens."""
        longest = int((tokens != self._padding).sum(dim=1).max())  # padding only ever follows the text
        features: Tensor = self._tower(tokens[:, :longest].to(self.device))
        return functional.normalize(features, dim=-1).cpu()


def load_unimed_text(
    state: Mapping[str, Tensor], folder: Path, spec: TowerSpec, device: torch.device | None = None
) -> UniMedText:
    """Build the tower from local files and load weights checked by `client.encoders.weights`.

    ``folder`` holds ``config.json`` and ``vocab.txt`` and no other file that a tokenizer would read.

    Raises:
        InputError: If a file is missing or belongs to another BERT.
    """
    check_local_files(folder, spec)
    os.environ["HF_HUB_OFFLINE"] = "1"  # never download; read at first import
    from open_clip.hf_model import HFTextEncoder  # type: ignore[import-untyped]  # noqa: PLC0415  has no types, takes seconds to import
    from open_clip.tokenizer import HFTokenizer  # type: ignore[import-untyped]  # noqa: PLC0415  as above

    with global_draws():  # its initial values, replaced at once
        tower = HFTextEncoder(str(folder), spec.width, pooler_type=_POOLER, proj_type="mlp", pretrained=False)
    tower.load_state_dict(state, strict=True)
    tokenizer = HFTokenizer(str(folder), context_length=CONTEXT, clean="whitespace", local_files_only=True)
    return UniMedText(tower, tokenizer, device)


def check_local_names(folder: Path, spec: TowerSpec) -> None:
    """Raise an InputError with the missing files of a folder and their origin, if any."""
    lacking = [name for name in LOCAL_FILES if not (folder / name).is_file()]
    if lacking:
        raise InputError(
            f"{folder}: {' and '.join(lacking)} not found; expected those of {spec.bert} (Hugging Face) there"
        )


def check_local_files(folder: Path, spec: TowerSpec) -> None:
    """Refuse a configuration or a vocabulary of another BERT: either would change the features silently.

    Raises:
        InputError: Naming the file, what was found and what was expected.
    """
    check_local_names(folder, spec)
    strays = [name for name in _OTHER_TOKENIZER_FILES if (folder / name).exists()]
    if strays:
        raise InputError(
            f"{folder}: found {strays[0]}, which would change the tokens; expected vocab.txt only"
        )
    _check_config(folder / "config.json", spec)
    _check_vocabulary(folder / "vocab.txt", spec.vocabulary)


def _check_config(path: Path, spec: TowerSpec) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # as above; this import may come first
    from transformers.models.bert.configuration_bert import BertConfig  # noqa: PLC0415  takes a second to import

    try:
        config = BertConfig.from_json_file(str(path))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not a BERT configuration ({type(error).__name__})") from None
    expected = {
        "model_type": "bert",
        "hidden_size": spec.hidden,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "intermediate_size": spec.inner,
        "vocab_size": spec.vocabulary,
        "max_position_embeddings": spec.positions,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    }
    for key, wanted in expected.items():
        found = getattr(config, key, None)
        if found != wanted:
            raise InputError(f"{path}: {key} is {found!r}, expected {wanted!r} as in {spec.bert}")


def _check_vocabulary(path: Path, n_tokens: int) -> None:
    try:
        words = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # as the tokenizer splits
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__})") from None
    if len(words) != n_tokens:
        raise InputError(f"{path}: {len(words)} tokens, expected {n_tokens}")
    lacking = [token for token in _SPECIAL_TOKENS if token not in words]
    if lacking or words[0] != _SPECIAL_TOKENS[0]:
        raise InputError(f"{path}: expected [PAD] first and all of {', '.join(_SPECIAL_TOKENS)}")
