"""A small text tower as a site would have it: two local files, a checkpoint as its authors publish them."""

import json
from pathlib import Path

import torch

from client.encoders.unimed_clip import TowerSpec

__all__ = ["NARROW", "WORDS", "checkpoint", "drawn", "write_local_files"]

WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "patient",
    "is",
    "a",
    "male",
    "tum",
    "##or",
    ".",
    ",",
)
NARROW = TowerSpec("tests", 12, layers=2, hidden=32, heads=4, inner=64, vocabulary=len(WORDS), positions=300)


def write_local_files(folder: Path, spec: TowerSpec = NARROW, **changes):
    """``config.json`` as the publisher of the BERT writes it, and ``vocab.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "hidden_size": spec.hidden,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "intermediate_size": spec.inner,
        "vocab_size": spec.vocabulary,
        "max_position_embeddings": spec.positions,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    fillers = [f"word{number}" for number in range(spec.vocabulary - len(WORDS))]
    (folder / "vocab.txt").write_text("\n".join([*WORDS, *fillers]) + "\n")
    return folder


def drawn(shapes, seed=0):
    """Values for named shapes; scales near 1, so that a tower does not die out."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            values = values.square() + 0.5
        elif len(shape) > 1:
            values *= shape[-1] ** -0.5
        state[name] = 1 + values / 4 if len(shape) == 1 and name.endswith("weight") else values
    return state


def checkpoint(state):
    """What ``unimed_clip_vit_*.pt`` holds: both towers, the optimiser, and numpy scalars."""
    import numpy as np

    tensors = {f"module.text_encoder.{name}": value for name, value in state.items()}
    tensors["module.text_encoder.transformer.embeddings.position_ids"] = torch.arange(300)[None]
    tensors["module.visual.conv1.weight"] = torch.zeros(4, 3, 2, 2)
    tensors["module.logit_scale"] = torch.tensor(4.6)
    return {
        "epoch": 5,
        "best": np.float64(0.5),
        "name": "run",
        "state_dict": tensors,
        "optimizer": {
            "state": {0: {"exp_avg": torch.zeros(3)}},
            "param_groups": [{"lr": 1e-4, "params": [0]}],
        },
        "scaler": {"scale": 65536.0},
    }
