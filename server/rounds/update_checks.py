"""What a site may return from a round: only blocks of the phase that its samples exercised."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch.linalg import vector_norm

from mmare.errors import Reason
from mmare.models.blocks import block_tensors
from mmare.models.phases import phase_at
from mmare.study.choices import Untouched
from mmare.wire.messages import Layout, Update, WireError
from mmare.wire.sharing import federated_blocks, from_wire, on_wire
from mmare.wire.tensors import is_finite, layout_of, trained_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from mmare.models.base import MultimodalModel
    from mmare.study.study import Study
    from mmare.wire.messages import Request

__all__ = ["Upload"]


class Upload:
    """The federated tensors of the server's model, and the rules for updates to them.

    Raises:
        StudyError: If the study's local parts leave nothing to federate.
    """

    def __init__(self, model: MultimodalModel, study: Study) -> None:
        self._study = study
        self._phases = model.phases()
        self._every = {block.name: block for block in model.blocks()}
        self._federated = {block.name: block for block in federated_blocks(model, study)}
        tensors = trained_tensors(model)
        self.tensors = block_tensors(self._federated.values(), tensors)  # views of the model
        self.parts = {
            name: tuple(block_tensors((block,), tensors)) for name, block in self._federated.items()
        }
        self.layout = cache(self._layout)

    def of_round(self, round_number: int) -> tuple[str, ...]:
        """Blocks that are federated in a round, in the model's order."""
        trained = phase_at(self._phases, round_number).blocks
        return tuple(name for name in self._federated if name in trained)

    def trained(self, request: Request) -> frozenset[str]:
        """Blocks whose exposures answer a request."""
        return phase_at(self._phases, request.round).blocks if request.train else frozenset()

    def _layout(self, blocks: tuple[str, ...]) -> Layout:
        """Layout of what a site sends for these blocks."""
        tensors = {name: self.tensors[name] for block in blocks for name in self.parts[block]}
        return layout_of(on_wire(tensors, tensors, self._study.federation.wire))

    def check(self, update: Update, round_number: int) -> Layout:
        """Validate an update's header and return the layout of its tensors.

        Raises:
            WireError: If an exposure is impossible, or blocks or layout are not those expected.
        """
        expected = phase_at(self._phases, round_number).blocks
        if set(update.exposures) != expected:
            odd = min(set(update.exposures) ^ expected)
            raise WireError(f"exposures of other blocks than the round's: {odd!r}", Reason.EXPOSURE)
        for name, count in update.exposures.items():
            most = update.samples * self._every[name].most
            if not 0 <= count <= most:
                raise WireError(f"exposure {count} of block {name}, expected 0 to {most}", Reason.EXPOSURE)
        stay = self._study.federation.untouched is Untouched.STAY
        wanted = tuple(name for name in self.of_round(round_number) if update.exposures[name] > 0 or not stay)
        if update.blocks != wanted:
            raise WireError(
                f"tensors of the blocks {list(update.blocks)}, expected {list(wanted)}", Reason.LAYOUT
            )
        layout = self.layout(wanted)
        if update.layout != layout.fingerprint:
            raise WireError("tensors in another layout", Reason.LAYOUT)
        return layout

    def read(self, received: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A site's tensors in the model's form."""
        return from_wire(received, self.tensors, self._study.federation.wire)

    def check_step(self, received: Mapping[str, Tensor]) -> float:
        """L2 norm of a site's change, measured here rather than taken from the site's report.

        Raises:
            WireError: If a value is not finite or the norm exceeds ``federation.max_norm``.
        """
        if not is_finite(received):
            raise WireError("values that are not finite", Reason.NON_FINITE)
        changes = (tensor - self.tensors[name] for name, tensor in self.read(received).items())
        norm = math.hypot(*(float(vector_norm(change, dtype=torch.float64)) for change in changes))
        longest = self._study.federation.max_norm
        if not math.isfinite(norm) or 0 < longest < norm:
            raise WireError(f"a change of norm {norm:.3g}, expected at most {longest:g}")
        return norm
