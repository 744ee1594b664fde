"""A site's own scaling of its modalities: from its train rows in a run, kept for predictions when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmare.errors import InputError
from mmare.models.site_scaling import scale_as_site
from mmare.wire.messages import Split
from mmare.wire.received import digest_of
from mmare.wire.tensors import global_tensors, pack

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from client.data.dataset import SiteData
    from client.training.kept.state import StateStore
    from mmare.models.base import MultimodalModel

__all__ = ["has_own", "keep_scaling", "scale_own", "take_scaling"]


def has_own(model: MultimodalModel) -> list[int]:
    """Slots that each site scales by its own."""
    return [slot for slot, scaling in enumerate(model.scaling.scalings) if scaling.is_own]


def scale_own(model: MultimodalModel, data: SiteData) -> None:
    """Let a model that arrived scale as this site does."""
    rows = data.rows[Split.TRAIN]
    if has_own(model):
        scale_as_site(model.scaling, [part[rows] for part in data.embedding], data.present[rows])


def keep_scaling(model: MultimodalModel, payload: bytes, store: StateStore) -> None:
    """Keep the own scaling of a model that arrived as ``payload``."""
    kept = {
        name: model.scaling.get_buffer(name).cpu()
        for slot in has_own(model)
        for name in (f"mean_{slot}", f"deviation_{slot}")
    }
    if kept:
        store.save_scaling(digest_of(payload).hex(), kept)


def take_scaling(model: MultimodalModel, weights: Mapping[str, Tensor], store: StateStore | None) -> None:
    """Give a model the own scaling that was kept when it arrived with these ``weights``.

    Raises:
        InputError: If none was.
    """
    own = has_own(model)
    if not own:
        return
    sent = pack({name: weights[name] for name in global_tensors(model)})
    kept = store and store.load_scaling(digest_of(sent.numpy().tobytes()).hex())
    if not kept:
        names = ", ".join(model.modality_names[slot] for slot in own)
        raise InputError(
            f"the model scales {names} by each site's own moments, and none were kept here: only a site that "
            "took part until the end of the run can use it, by mmare-site predict"
        )
    for slot in own:
        model.scaling.set_moments(slot, kept[f"mean_{slot}"], kept[f"deviation_{slot}"])
