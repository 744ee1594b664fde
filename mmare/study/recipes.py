"""Named training recipes: the settings of a model's authors, or ours.

A study's ``[training] recipe`` names one, by default the model's first; the study's own settings override it.
A model that is not listed is trained as MMARE is, so that a comparison is of models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from mmare.errors import StudyError

__all__ = ["RECIPES", "Recipe", "recipe_of"]


@dataclass(frozen=True)
class Recipe:
    """Defaults for ``[training]``, ``[model]`` and ``[federation]``, which the study may override."""

    training: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    federation: Mapping[str, Any] = field(default_factory=dict)

    def federated_with(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """``[federation]`` of a study over the recipe's; the options are of the recipe's own strategy."""
        other = "strategy" in own and own["strategy"] != self.federation.get("strategy")
        return {**({} if other else self.federation), **own}


_MMARE: Final[dict[str, Recipe]] = {
    "thesis": Recipe(),  # the defaults of `TrainingSpec` and `MMAREOptions`
    "robust": Recipe(  # a weak modality must not drag a strong one down; evidence in simulation/RESULTS.md
        {"learning_rate": 3e-4, "weight_decay": 1e-2, "modality_dropout": "subset", "select": "loss"},
        {"width": 64, "merge": "symmetric", "embedding_dropout": 0.5},
    ),
    # Many small sites, any table: an additive model, from which a small deep one departs while that helps on
    # validation; steps along the pooled gradient, so that sites of any number and size learn alike
    "table": Recipe(
        {
            "optimizer": "adamw",
            "learning_rate": 1e-2,  # damped: 1e-3 for 400 rows, 8e-3 for 16,000
            "weight_decay": 1e-2,
            "batch_size": 4096,
            "rounds": 300,
            "patience": 100,
            "select": "loss",
        },
        {
            "width": 32,
            "merge": "symmetric",
            "embedding_dropout": 0.5,
            "linear": True,
            "even": True,
            "numeric": "piecewise",
            "clip": 5.0,
        },
        {"strategy": "fedsgd", "options": {"damping": 4000.0}},
    ),
}
_OTHERS: Final = {name: replace(recipe, model={}) for name, recipe in _MMARE.items()}

# Thesis 5.3 and the repository; batches of one patient there (`models.md` 2.1)
_HYPERMM: Final = {"weight_decay": 5e-4, "rounds": 150, "schedule": "plateau"}

RECIPES: Final[dict[str, dict[str, Recipe]]] = {
    "adacomed": {  # the repository's command line; 30 rounds for the small model, 100 for the large one
        "thesis": Recipe({"weight_decay": 0.0, "batch_size": 128, "rounds": 130, "schedule": "cosine"})
    },
    "drim": {  # the repository's; it keeps the last round, we keep the best of all
        "thesis": Recipe(
            {
                "optimizer": "adamw",
                "learning_rate": 1e-3,
                "weight_decay": 1e-2,
                "batch_size": 24,
                "rounds": 30,
                "patience": 30,
                "schedule": "cosine",
            }
        )
    },
    "hypermm": {"thesis": Recipe(_HYPERMM)},
    "hypermm-embedding": {"thesis": Recipe(_HYPERMM)},
    "linear": {"table": _OTHERS["table"]},
    "mmare": _MMARE,
    "unilmmv": {  # the repository's, but for a step size and batch that learn from hundreds of patients
        "thesis": Recipe({"optimizer": "adamw", "weight_decay": 1e-3, "clip_norm": 1.0})
    },
}


def recipe_of(model: str, name: str | None) -> tuple[str, Recipe]:
    """The name and recipe of a model, by default its first.

    Raises:
        StudyError: If the model has no recipe of that name.

    Example:
        >>> recipe_of("mmare", "thesis")[0]
        'thesis'
    """
    known = RECIPES.get(model, _OTHERS)
    chosen = next(iter(known)) if name is None else name
    if chosen not in known:
        raise StudyError(f"[training] recipe of {model} must be one of {', '.join(known)}, found {chosen!r}")
    return chosen, known[chosen]
