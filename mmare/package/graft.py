"""Put what fits of a start model into a study's own model, and list what does not."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from mmare.errors import InputError
from mmare.models.blocks import block_tensors
from mmare.models.registry import build_model, model_options
from mmare.package.weights import read_weights
from mmare.wire.sharing import local_parameters
from mmare.wire.tensors import copy_tensors, global_tensors, trained_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from mmare.models.base import MultimodalModel
    from mmare.models.blocks import Block
    from mmare.package.start import StartModel
    from mmare.study.specs import ModalitySpec
    from mmare.study.study import Study

__all__ = ["Graft", "graft"]


@dataclass
class Graft:
    """What a study's model has of its start model."""

    taken: list[str] = field(default_factory=list)  # blocks
    left: dict[str, str] = field(default_factory=dict)  # what stays as the seed draws it, and why
    fixed: set[str] = field(default_factory=set)  # buffers that are the start model's and stay so
    encoders: dict[str, str] = field(default_factory=dict)  # fingerprints that sites must have

    def words(self) -> list[str]:
        """For people, a line each."""
        return [
            f"taken: {', '.join(self.taken)}",
            *(f"not taken: {what}, {why}" for what, why in self.left.items()),
        ]


def graft(model: MultimodalModel, study: Study, start: StartModel) -> Graft:
    """Copy what fits of a start model into ``model``, which the study's seed made.

    Blocks are matched by name, so that a modality may have another slot. The moments of a modality that is
    the same are kept: its adapter learned from vectors scaled by them. What the absence of a new modality
    does is zero at first: nothing was learned of it, and a patient without it is predicted as before.

    Raises:
        InputError: If the start model tells something else, is another model, or nothing of it fits.
    """
    _check_same(start, study)
    weights, _ = read_weights(start.weights, start.source)
    old = build_model(start.study)
    tensors = global_tensors(old)
    if {name: value.shape for name, value in weights.items()} != {n: v.shape for n, v in tensors.items()}:
        raise InputError(f"{start.source}: the weights have other tensors than the model of their study")
    copy_tensors(tensors, weights)
    done = Graft(left=_other_options(start.study, study))
    same = _same_modalities(start, study, old, model, done)
    strangers = {each.name for each in study.modalities} - {each.name for each in start.study.modalities}
    stayed = local_parameters(old, start.study)
    known = {block.name: block for block in old.blocks()}
    theirs = trained_tensors(old)
    for block in model.blocks():
        own, name = block_tensors((block,), trained_tensors(model)), block.name
        modality = name.partition(".")[2]
        if modality in strangers and block.column is not None:
            copy_tensors(own, {each: torch.zeros_like(value) for each, value in own.items()})
        elif modality in {each.name for each in study.modalities} and modality not in same:
            continue  # said of the modality
        elif name not in known:
            done.left[name] = "which the start model does not have"
        elif stayed & set(known[name].parameters):
            done.left[name] = "which stayed at the sites"
        else:
            _copy(done, block, own, known[name], theirs)
    if not done.taken:
        raise InputError(f"{start.source}: nothing of the start model fits the study")
    _keep_buffers(done, model, old)
    return done


def _check_same(start: StartModel, study: Study) -> None:
    for what, theirs, ours in (
        ("task", start.study.task.value, study.task.value),
        ("classes", start.study.classes, study.classes),
        ("model", start.study.model.name, study.model.name),
        *(
            (name, *(_scale(each, name) for each in (start.study, study)))
            for name in ("survival", "regression")
        ),
    ):
        if theirs != ours:
            found, expected = (
                ", ".join(each) if isinstance(each, tuple) else each for each in (theirs, ours)
            )
            raise InputError(
                f"{start.source}: the start model has the {what} {found}, expected the study's: {expected}"
            )


def _scale(study: Study, name: str) -> dict[str, Any]:
    """What outputs mean; horizons only say what is judged."""
    spec = getattr(study, name)
    return {} if spec is None else {key: value for key, value in asdict(spec).items() if key != "horizons"}


def _other_options(theirs: Study, ours: Study) -> dict[str, str]:
    before, now = (asdict(model_options(each)) for each in (theirs, ours))
    return {
        f"model.{name}": f"which was {before[name]} and is {now[name]} here"
        for name in now
        if before[name] != now[name]
    }


def _same_modalities(
    start: StartModel, study: Study, old: MultimodalModel, model: MultimodalModel, done: Graft
) -> set[str]:
    """Modalities whose vectors mean the same in both; their moments are copied."""
    theirs = {each.name: (slot, each) for slot, each in enumerate(start.study.modalities)}
    same = set()
    for slot, each in enumerate(study.modalities):
        if each.name not in theirs:
            done.left[each.name] = "a modality that the start model does not have"
            continue
        before, spec = theirs[each.name]
        if difference := _difference(spec, each):
            done.left[each.name] = difference
            continue
        same.add(each.name)
        if each.name in start.encoders:
            done.encoders[each.name] = start.encoders[each.name]
        mean, deviation = (old.scaling.get_buffer(f"{what}_{before}") for what in ("mean", "deviation"))
        model.scaling.set_moments(slot, mean, deviation)
        # Deviations are 0 where no train row had it, and all is as it was made where none was told.
        if deviation.any() and (mean.any() or (deviation != 1).any()):
            done.fixed |= {f"scaling.mean_{slot}", f"scaling.deviation_{slot}"}
    for name in theirs.keys() - {each.name for each in study.modalities}:
        done.left[name] = "a modality that the study does not have"
    return same


def _difference(theirs: ModalitySpec, ours: ModalitySpec) -> str:
    """Why vectors of a modality mean something else; empty if they do not."""
    for what in ("kind", "width", "encoder", "scaling"):
        before, now = getattr(theirs, what), getattr(ours, what)
        if before != now:
            return f"whose {what} was {before} and is {now} here"
    return ""


def _copy(
    done: Graft, block: Block, own: Mapping[str, Tensor], known: Block, theirs: Mapping[str, Tensor]
) -> None:
    """Copy a block, or nothing of it: layers that were not trained together mean nothing to each other."""
    pairs = list(_pairs(block, own, known, block_tensors((known,), theirs)))
    for parameter, value, other in pairs:
        if other is None or other.shape != value.shape:
            was = "none" if other is None else f"shape {tuple(other.shape)}"
            done.left[block.name] = f"whose {parameter} has the shape {tuple(value.shape)} here, {was} there"
            return
    for _, value, other in pairs:
        copy_tensors({"": value}, {"": other} if other is not None else {})
    done.taken.append(block.name)


def _pairs(
    block: Block, own: Mapping[str, Tensor], known: Block, theirs: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Parameters of one block in both models: by place where the slot is part of their names."""
    if set(block.parameters) == set(known.parameters) or len(own) != len(theirs):
        others = dict(zip(known.parameters, theirs.values(), strict=True))
        found = [others.get(name) for name in block.parameters]
    else:
        found = list(theirs.values())
    yield from zip(block.parameters, own.values(), found, strict=True)


def _keep_buffers(done: Graft, model: MultimodalModel, old: MultimodalModel) -> None:
    """What a task learned of all sites, such as the cuts of hazards: outputs mean nothing without them."""
    theirs = dict(old.task.named_buffers()) if isinstance(old.task, torch.nn.Module) else {}
    ours = dict(model.task.named_buffers()) if isinstance(model.task, torch.nn.Module) else {}
    copy_tensors(ours, theirs)
    done.fixed |= {f"task.{name}" for name in ours}
