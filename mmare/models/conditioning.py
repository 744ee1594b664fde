"""Missing-aware conditioning: equation 4.8 of the thesis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MissingAwareConditioning"]

SCALE: Final = 0.05  # of the outputs of g and h: constant, not learned (thesis 4.2.3)


class MissingAwareConditioning(nn.Module):
    r"""Modulate each embedding by what the patient lacks.

    .. math:: \mathrm{MAC}(e) = \mathrm{LN}(e + \gamma(m) \odot e + \beta(m))

    with :math:`\gamma = 0.05\,g(m)`, :math:`\beta = 0.05\,h(m)`, both linear in the missing vector
    (``m_j = 1`` where modality j is missing) and the same for all modalities of a patient. One affine
    LayerNorm is shared by the modalities; it stays when conditioning is not ``enabled`` (the thesis's
    ablation), so that the ablation measures conditioning and not scale.
    """

    def __init__(self, modalities: int, width: int, *, enabled: bool = True) -> None:
        super().__init__()
        self.gamma = nn.Linear(modalities, width) if enabled else None
        self.beta = nn.Linear(modalities, width) if enabled else None
        self.norm = nn.LayerNorm(width)

    def forward(self, embedding: Tensor, present: Tensor) -> Tensor:
        """Condition ``(B, M, D)``; absent rows must be finite, and give finite but meaningless values."""
        if self.gamma is not None and self.beta is not None:
            missing = (~present).to(embedding.dtype)  # (B, M)
            gamma = 1 + SCALE * self.gamma(missing)  # (B, D)
            beta = SCALE * self.beta(missing)  # (B, D)
            embedding = beta.unsqueeze(1).addcmul(embedding, gamma.unsqueeze(1))  # (B, M, D)
        conditioned: Tensor = self.norm(embedding)
        return conditioned
