"""What a study cannot have whose coordinator needs sums over sites only: gradients, secure sums."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mmare.errors import StudyError
from mmare.study.choices import ExtraAnswer, Select, Wire
from mmare.study.strategy_options import FedAvgOptions, FedSGDOptions

if TYPE_CHECKING:
    from mmare.study.study import Study

__all__ = ["SECURE_SITES", "check_gradients", "check_secure_sum"]

SECURE_SITES: Final = 3  # fewest in a secure sum


def check_gradients(study: Study, options: FedSGDOptions) -> None:
    """Refuse what a site that makes no step of its own cannot do."""
    training, federation = study.training, study.federation
    refused = {
        f"local_epochs {training.local_epochs} are steps of a site; expected 1": training.local_epochs > 1,
        f"clip_norm {training.clip_norm:g} limits steps of a site; expected 0": training.clip_norm > 0,
        "options gap_step needs models that sites trained; expected 0": options.gap_step > 0,
        f"local {', '.join(federation.local)} would never be trained; expected none": bool(federation.local),
        "wire float16 is too coarse for gradients; expected float32": federation.wire is not Wire.FLOAT32,
    }
    for reason, applies in refused.items():
        if applies:
            raise StudyError(f"[federation] strategy fedsgd makes its steps at the coordinator, but {reason}")


def check_secure_sum(study: Study, options: Any) -> None:  # noqa: ANN401 - each strategy has its own
    """Refuse what needs the numbers of single sites."""
    federation = study.federation
    summed = {ExtraAnswer.CALIBRATION, ExtraAnswer.SHAPLEY}
    single_extra = [each for each in study.privacy.extra if each not in summed]
    single = {
        f"strategy {federation.strategy} compares single updates": not isinstance(options, FedAvgOptions),
        "options gap_step needs each site's validation loss": getattr(options, "gap_step", 0.0) > 0,
        "max_share needs each site's weight": federation.max_share < 1,
        "wire float16 is a format of single updates": federation.wire is not Wire.FLOAT32,
        "select worst_site needs each site's metrics": study.training.select is Select.WORST_SITE,
        f"extra {', '.join(single_extra)} is an answer of single sites": bool(single_extra),
        f"min_sites {federation.min_sites} is too few, expected at least {SECURE_SITES}: of two sites each "
        "knows the other": federation.min_sites < SECURE_SITES,
    }
    for reason, applies in single.items():
        if applies:
            raise StudyError(f"[privacy] secure_sum hides the answers of single sites, but {reason}")
