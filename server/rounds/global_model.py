"""From the updates of a round to the next model: the model in hand, and the strategy with its memory."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from mmare.models.registry import build_model
from mmare.study.strategy_options import strategy_options
from mmare.wire.messages import Split
from mmare.wire.sharing import local_parameters
from mmare.wire.tensors import copy_tensors, global_tensors, layout_of, pack, unpack
from server.aggregation.mean import Contribution
from server.aggregation.strategies import Gathered, strategy_of
from server.rounds.requests import Reply, read_spooled
from server.rounds.round_metrics import collect_states, trained_state
from server.rounds.update_checks import Upload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from mmare.study.study import Study

__all__ = ["Averaging", "GlobalModel"]

STRATEGY: Final = "strategy/"  # of a checkpoint: prefix of what the strategy remembers


class GlobalModel:
    """The model in hand at the server, and what of it travels.

    Args:
        study: Of the run.
    """

    def __init__(self, study: Study) -> None:
        self.model = build_model(study)
        self.tensors = global_tensors(self.model, without=local_parameters(self.model, study))  # of the model
        self.upload = Upload(self.model, study)
        self.layout = layout_of(self.tensors)
        self._flat: Tensor | None = None

    def packed(self) -> Tensor:
        """What is sent to the sites as a flat run, made once per model."""
        if self._flat is None:
            self._flat = pack(self.tensors)
        return self._flat

    def restore(self, run: Tensor) -> None:
        """Put the model of a flat run in hand."""
        copy_tensors(self.tensors, unpack(run, self.layout))
        self._flat = None

    def step(self, changed: Mapping[str, Tensor]) -> None:
        """Put other federated tensors (`Upload.tensors`) in hand."""
        copy_tensors(self.upload.tensors, changed)
        self._flat = None

    def scaled(self) -> None:
        """Say that buffers of the model were set."""
        self._flat = None

    def copy(self) -> dict[str, Tensor]:
        """All tensors, with the starting values of parts that stay at the sites."""
        return {name: value.clone() for name, value in global_tensors(self.model).items()}


class Averaging:
    """Brings the updates of a round together by the study's strategy.

    Args:
        hand: The model in hand, changed by every round.
        study: Of the run.
        federated: Whether more than one site trains; else there is nothing to bring together, and the update
            is the next model.
    """

    def __init__(self, hand: GlobalModel, study: Study, *, federated: bool) -> None:
        federation = study.federation
        if not federated:
            federation = replace(federation, strategy="fedavg", options={})
        options = strategy_options(federation.strategy, federation.options)
        self.measures_gap = getattr(options, "gap_step", 0.0) > 0
        self._strategy = strategy_of(federation)
        self._state: dict[str, Tensor] = {}
        self._hand = hand
        self._study = study

    def tensors(self) -> dict[str, Tensor]:
        """What the strategy remembers, for a checkpoint."""
        return {f"{STRATEGY}{name}": value for name, value in self._state.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what a checkpoint holds of it."""
        own = {name for name in tensors if name.startswith(STRATEGY)}
        self._state = {name.removeprefix(STRATEGY): tensors[name] for name in own}

    def step(self, trained: Mapping[str, Reply], own_losses: Mapping[str, float]) -> dict[str, int]:
        """Make the next model.

        Args:
            trained: Updates with tensors, by site id.
            own_losses: Of the round before, as `own_losses` gave them.

        Returns:
            Exposure per block, over all sites.
        """
        contributions = [
            Contribution(
                site,
                reply.update.samples,
                reply.update.exposures,
                reply.update.blocks,
                partial(self._read, reply),
                self._gap(reply, own_losses.get(site)),
            )
            for site, reply in trained.items()
        ]
        upload = self._hand.upload
        changed, self._state = self._strategy(
            Gathered(upload.tensors, upload.parts, contributions, self._state)
        )
        self._hand.step(changed)
        total: dict[str, int] = {}
        for each in contributions:
            for block, count in each.exposures.items():
                total[block] = total.get(block, 0) + count
        return total

    def own_losses(self, trained: Mapping[str, Reply]) -> dict[str, float]:
        """Validation loss of the model that each site trained, where it was asked for and told."""
        told = {site: reply.update for site, reply in trained.items() if reply.update.trained is not None}
        losses = {
            site: trained_state(update, self._study).compute(None)["log_loss"]
            for site, update in told.items()
        }
        return {site: loss for site, loss in losses.items() if loss is not None}

    def _gap(self, reply: Reply, own: float | None) -> float | None:
        """How much the site's validation loss rose by averaging, where both are known."""
        updates = {reply.update.site: reply.update}
        received = collect_states(updates, Split.VAL, self._study).sites.get(reply.update.site)
        loss = None if received is None else received.compute(None)["log_loss"]
        return None if own is None or loss is None else loss - own

    def _read(self, reply: Reply) -> dict[str, Tensor]:
        """The tensors of a spooled update, as tensors of the model."""
        assert reply.spooled is not None  # noqa: S101 - only updates with tensors are gathered
        upload = self._hand.upload
        return upload.read(read_spooled(reply.spooled, upload.layout(reply.update.blocks)))
