"""Texts to tokens, by the tokenizer that lies in the encoder's folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from client.encoders.files.contract import Format
from client.encoders.files.open_clip_folder import model_config
from client.encoders.files.transformers_folder import check_no_code

if TYPE_CHECKING:
    from torch import Tensor

    from client.encoders.files.folder import EncoderFolder

__all__ = ["Tokenize", "open_tokenizer"]

Tokenize = Callable[[Sequence[str]], Mapping[str, "Tensor"]]  # (N, T) each, padded to the longest

_log = logging.getLogger(__name__)


def open_tokenizer(folder: EncoderFolder) -> Tokenize:
    """The tokenizer of a folder; open_clip's own where its model uses none of Hugging Face."""
    limit = folder.contract.input.max_tokens
    if folder.contract.format is Format.OPEN_CLIP and not model_config(folder.path)["text_cfg"].get(
        "hf_model_name"
    ):
        from open_clip.tokenizer import (  # type: ignore[import-untyped]  # noqa: PLC0415 - has no types, slow
            SimpleTokenizer,
        )

        simple = SimpleTokenizer(context_length=limit)
        return lambda texts: {"input_ids": simple(list(texts))}
    os.environ["HF_HUB_OFFLINE"] = "1"  # never download; read at first import
    from transformers import AutoTokenizer  # noqa: PLC0415 - takes seconds to import

    if (folder.path / "config.json").exists():
        check_no_code(folder.path)
    tokenizer = AutoTokenizer.from_pretrained(
        str(folder.path), local_files_only=True, trust_remote_code=False
    )

    def tokenize(texts: Sequence[str]) -> Mapping[str, Tensor]:
        whole = [" ".join(text.split()) for text in texts]
        found: Mapping[str, Tensor] = tokenizer(
            whole, padding="longest", truncation=True, max_length=limit, return_tensors="pt"
        )
        full = int((found["attention_mask"].sum(dim=1) >= limit).sum())
        if full:
            _log.warning(
                "%d of %d texts fill or exceed %d tokens; the rest is cut off", full, len(whole), limit
            )
        return found

    return tokenize
