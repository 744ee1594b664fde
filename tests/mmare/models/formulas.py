"""Equations 4.8 and 4.9, adapters and head of the thesis, one patient after the other.

Written from ``reference/models.md`` §1.1 and §1.3 over named weights; shares no code with the package. Slow
and plain on purpose: it is what the vectorised model is measured against.
"""

import torch

__all__ = ["condition", "fuse_mean", "fuse_pairwise", "head", "mmare_logits"]

EPSILON = 1e-5  # of a LayerNorm, torch's own


def linear(weights, name, values):
    return weights[f"{name}.weight"] @ values + weights[f"{name}.bias"]


def layer_norm(weights, name, values):
    centred = values - values.mean()
    spread = (centred.square().mean() + EPSILON).sqrt()
    return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def condition(weights, embedding, present):
    """Equation 4.8 on one embedding ``(D,)`` of a patient; without g and h, gamma = beta = 0."""
    gamma = beta = 0.0
    if "conditioning.gamma.weight" in weights:
        missing = embedding.new_tensor([0.0 if there else 1.0 for there in present])
        gamma = 0.05 * linear(weights, "conditioning.gamma", missing)
        beta = 0.05 * linear(weights, "conditioning.beta", missing)
    return layer_norm(weights, "conditioning.norm", embedding + (gamma * embedding + beta))


def fuse_pairwise(weights, embeddings):
    """Equation 4.9 on the embeddings that a patient has, in the order of merging."""
    fused = embeddings[0]
    for following in embeddings[1:]:
        hidden = linear(weights, "fusion.first", torch.cat([fused, following])).clamp_min(0)
        fused = layer_norm(weights, "fusion.norm", fused + linear(weights, "fusion.second", hidden))
    return fused


def fuse_mean(embeddings):
    """The ablation without merging."""
    return sum(embeddings[1:], start=embeddings[0]) / len(embeddings)


def head(weights, values):
    for layer in ("head.hidden.0", "head.hidden.2"):
        values = linear(weights, layer, values).clamp_min(0)
    return linear(weights, "head.out", values)


def mmare_logits(weights, embedding, present, order=None):
    """Logits ``(K,)`` of one patient without dropout.

    Args:
        weights: The model's state by name.
        embedding: One scaled ``(W_j,)`` per slot.
        present: M truths.
        order: Slots in the order of merging; slot order by default.
    """
    conditioned = []
    for slot in order or range(len(present)):
        if present[slot]:
            values = embedding[slot]
            if f"adapters.adapters.{slot}.weight" in weights:
                values = linear(weights, f"adapters.adapters.{slot}", values).clamp_min(0)
            conditioned.append(condition(weights, values, present))
    merging = "fusion.first.weight" in weights
    return head(weights, fuse_pairwise(weights, conditioned) if merging else fuse_mean(conditioned))
