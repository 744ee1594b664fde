"""From the updates of a round to the next model: the global model, and the strategy with its state."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from mmare.models.registry import build_model
from mmare.package.graft import Graft, graft
from mmare.study.choices import Wire
from mmare.study.strategy_options import strategy_options
from mmare.tasks.registry import task_of
from mmare.wire.messages import Split
from mmare.wire.sharing import local_parameters, steps_at_coordinator
from mmare.wire.tensors import copy_tensors, global_tensors, layout_of, pack, unpack
from server.aggregation.mean import BlockSum, Contribution, Sums
from server.aggregation.server_optimizers import steps_of
from server.aggregation.strategies import Gathered, strategy_of
from server.rounds.requests import Reply, read_spooled
from server.rounds.round_metrics import trained_state
from server.rounds.update_checks import Upload

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from mmare.package.start import StartModel
    from mmare.study.study import Study
    from server.rounds.secure_sums import Summed

__all__ = ["Averaging", "GlobalModel"]

_WIDTHS: Final = {Wire.FLOAT32: 1.0, Wire.FLOAT16: 0.5}  # of a number on its way back, over that of one there
STRATEGY: Final = "strategy/"  # prefix of the strategy's state in a checkpoint


class GlobalModel:
    """The server's model, with what fits of a start model, and which of its tensors are sent to the sites."""

    def __init__(self, study: Study, start: StartModel | None = None) -> None:
        self.model = build_model(study)
        self.graft = Graft() if start is None else graft(self.model, study, start)
        self.tensors = global_tensors(self.model, without=local_parameters(self.model, study))  # views
        self.upload = Upload(self.model, study)
        self.layout = layout_of(self.tensors)
        self._upload_ratio = (
            2.0 if study.privacy.secure_sum else _WIDTHS[study.federation.wire]
        )  # sums are int64
        self._flat: Tensor | None = None

    @property
    def round_bytes(self) -> int:
        """Of the model there and its whole change back, in the study's numbers on the wire."""
        return round(self.layout.size * (1.0 + self._upload_ratio))

    def packed(self) -> Tensor:
        """The tensors for the sites as flat bytes, cached until the model changes."""
        if self._flat is None:
            self._flat = pack(self.tensors)
        return self._flat

    def restore(self, flat: Tensor) -> None:
        """Load what `packed` returned."""
        copy_tensors(self.tensors, unpack(flat, self.layout))
        self.invalidate()

    def update(self, changed: Mapping[str, Tensor]) -> None:
        """Replace the federated tensors (`Upload.tensors`)."""
        copy_tensors(self.upload.tensors, changed)
        self.invalidate()

    def invalidate(self) -> None:
        """Clear the cache after the model's buffers were set directly."""
        self._flat = None

    def copy(self) -> dict[str, Tensor]:
        """All tensors; parts that stay at the sites have their initial values."""
        return {name: value.clone() for name, value in global_tensors(self.model).items()}


class Averaging:
    """Aggregates the updates of a round by the study's strategy.

    Args:
        model: Updated in every round.
        federated: Whether several sites train; if not, the only update becomes the next model.
    """

    def __init__(self, model: GlobalModel, study: Study, *, federated: bool) -> None:
        federation = study.federation
        if not federated:
            federation = replace(federation, max_share=1.0)
            if not steps_at_coordinator(study):
                federation = replace(federation, strategy="fedavg", options={})
        options = strategy_options(federation.strategy, federation.options)
        self.measures_gap = getattr(options, "gap_step", 0.0) > 0
        self._strategy = strategy_of(federation, steps_of(model.model, study.training).__getitem__)
        self._state: dict[str, Tensor] = {}
        self._model = model
        self._study = study

    def tensors(self) -> dict[str, Tensor]:
        """The strategy's state, for a checkpoint."""
        return {f"{STRATEGY}{name}": value for name, value in self._state.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the strategy's state from a checkpoint's tensors."""
        own = {name for name in tensors if name.startswith(STRATEGY)}
        self._state = {name.removeprefix(STRATEGY): tensors[name] for name in own}

    def step(
        self, trained: Mapping[str, Reply], own_losses: Mapping[str, float], rate_factor: float = 1.0
    ) -> dict[str, int]:
        """Make the next model.

        Args:
            trained: Updates with tensors, by site id.
            own_losses: Result of `own_losses` in the previous round.
            rate_factor: Of the round.

        Returns:
            Exposure per block, summed over sites.
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
        self._take(contributions, rate_factor=rate_factor)
        total = Counter[str]()
        for each in contributions:
            total.update(each.exposures)
        return dict(total)

    def step_by_sums(self, summed: Summed, rate_factor: float = 1.0) -> dict[str, int]:
        """Make the next model from a secure sum; exposure per block, as of `step`."""
        upload = self._model.upload
        exposure: dict[str, int] = {}
        blocks: dict[str, BlockSum] = {}
        for block, names in upload.parts.items():
            if f"{block}/weight" not in summed.values:
                continue  # another phase's
            weight, exposed = (summed.values[f"{block}/{what}"].item() for what in ("weight", "exposure"))
            changes = {name: summed.values[f"{block}/{name}"] for name in names}
            blocks[block] = BlockSum(weight, exposed, changes)
            exposure[block] = round(exposed)
        self._take((), Sums(summed.values["samples"].item(), blocks), rate_factor)
        return exposure

    def _take(
        self, contributions: Sequence[Contribution], sums: Sums | None = None, rate_factor: float = 1.0
    ) -> None:
        upload = self._model.upload
        changed, self._state = self._strategy(
            Gathered(
                upload.tensors,
                upload.parts,
                contributions,
                self._state,
                sums=sums,
                residual=self._model.model.task.residual,
                rate_factor=rate_factor,
            )
        )
        self._model.update(changed)

    def own_losses(self, trained: Mapping[str, Reply]) -> dict[str, float]:
        """Validation loss of the model that each site trained, if the site was asked and disclosed it."""
        task = task_of(self._study)
        losses = {
            site: task.compute(trained_state(reply.update, self._study))["log_loss"]
            for site, reply in trained.items()
            if reply.update.trained is not None
        }
        return {site: loss for site, loss in losses.items() if loss is not None}

    def _gap(self, reply: Reply, own: float | None) -> float | None:
        """By how much averaging raised the site's validation loss, if both losses are known."""
        received = reply.states.get(Split.VAL)
        if own is None or received is None:
            return None
        (state,) = received.sites.values()
        loss = task_of(self._study).compute(state)["log_loss"]
        return None if loss is None else loss - own

    def _read(self, reply: Reply) -> dict[str, Tensor]:
        """The tensors of a spooled update, in the model's form."""
        assert reply.spooled is not None  # noqa: S101 - only updates with tensors are aggregated
        upload = self._model.upload
        return upload.read(read_spooled(reply.spooled, upload.layout(reply.update.blocks)))
