"""A study: what is learned, from which modalities, how it is trained and federated.

One TOML file (``study.toml``) is one `Study`. Its hash, which a hospital approves, covers everything but
the seed and the name. Unknown keys are errors: a misspelt setting must not become a silent default.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mmare.choices import (
    Kind,
    MaskUse,
    OptimizerName,
    OptimizerState,
    PromptMode,
    Scaling,
    Schedule,
    Select,
    Untouched,
    Wire,
)
from mmare.errors import StudyError
from mmare.recipes import recipe_of
from mmare.study_rules import check_study
from mmare.tables import TableError, check_keys, convert, from_table, read_toml

__all__ = [
    "FederationSpec",
    "Kind",
    "MaskUse",
    "ModalitySpec",
    "ModelSpec",
    "OptimizerName",
    "OptimizerState",
    "PrivacySpec",
    "PromptMode",
    "Scaling",
    "Schedule",
    "Select",
    "Study",
    "TrainingSpec",
    "Untouched",
    "Wire",
    "load_study",
    "parse_study",
]


@dataclass(frozen=True)
class ModalitySpec:
    """One slot of the missing vector.

    Args:
        name: Unique in the study; sites refer to it.
        kind: What a site holds.
        width: Of the embedding that the encoder gives.
        encoder: Key of the encoder registry; ``given`` for features that were extracted before.
        scaling: Applied to the embedding, with moments pooled over sites for ``zscore``.
        prompt: For text: template over the columns of the site's manifest.
        prompt_mode: For text: what is said of missing fields.
        size: For volumes: slices, rows and columns to resize to; empty for the encoder's default.
        mask: For volumes: what becomes of voxels outside the site's mask; ``strip`` makes them background.
        crop_to_mask: For volumes: whether they are cut to the box around the mask first, as around an organ.
        window: For volumes: lowest and highest intensity that is kept (CT, in HU); empty for all.
    """

    name: str
    kind: Kind
    width: int
    encoder: str = "given"
    scaling: Scaling = Scaling.ZSCORE
    prompt: str | None = None
    prompt_mode: PromptMode = PromptMode.OMIT
    size: tuple[int, ...] = ()
    window: tuple[float, ...] = ()
    mask: MaskUse = MaskUse.NONE
    crop_to_mask: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """Which model of the registry, and its own options."""

    name: str = "mmare"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingSpec:
    """What a site does in a round, and when rounds end.

    Args:
        rounds: Upper bound; ``patience`` usually ends a run before.
        local_epochs: Passes over the site's train rows in one round.
        optimizer: ``adam`` adds weight decay to the gradient (L2), as the thesis does; ``adamw`` decouples
            it.
        batch_size: Patients per step.
        learning_rate: Step size.
        weight_decay: L2 factor.
        optimizer_state: ``keep`` leaves the moments on the site's disk between rounds.
        patience: Rounds without a better validation score (``select``) after which a run ends.
        oversample: Sampling weight per class name (absent classes weigh 1), ``balanced``, or nothing.
        noise_probability: Share of train patients per step whose embeddings get Gaussian noise, of 0.1
            times each feature's standard deviation over the train rows.
        recipe: Named settings of the model that stand where the study says nothing (`mmare.recipes`).
        schedule: ``cosine`` brings the step size to nearly nothing over ``rounds``; ``plateau`` multiplies it
            by 0.3 after three rounds without a lower validation loss.
        clip_norm: Largest L2 norm of a step's gradient; 0 leaves it as it is.
        select: What the selected round is best in; ties by lower loss.
        modality_dropout: Probability that a modality which a train patient has is hidden in a step, at least
            one stays: one number, a table by modality (absent ones 0), or ``subset``: a patient keeps a
            subset whose size is drawn evenly from one to all. In the last phase of a model only.
        distillation: Weight of what the hidden patient must agree on with the whole one, beside both losses;
            0 trains on the hidden patient alone.
    """

    rounds: int = 200
    local_epochs: int = 1
    optimizer: OptimizerName = OptimizerName.ADAM
    batch_size: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    optimizer_state: OptimizerState = OptimizerState.KEEP
    patience: int = 25
    oversample: Mapping[str, float] | str | None = None
    noise_probability: float = 0.0
    recipe: str = "thesis"
    schedule: Schedule = Schedule.CONSTANT
    clip_norm: float = 0.0
    select: Select = Select.BALANCED_ACCURACY
    modality_dropout: Mapping[str, float] | float | str = 0.0
    distillation: float = 0.0


@dataclass(frozen=True)
class FederationSpec:
    """How sites are brought together.

    Args:
        strategy: How updates are brought together: a key of `mmare.strategies.STRATEGY_OPTIONS`.
        min_sites: Fewest good updates that a round may go on with.
        deadline_s: Longest that the server waits for a site, in seconds.
        options: Of the strategy.
        local: Parts of the model that stay at each site: ``norms``, ``head``, ``adapters``.
        wire: Numbers that updates travel in; ``float16`` sends the change at half the bytes.
        untouched: Whether parameters that none of a site's samples exercised ``stay`` what the server sent
            and do not travel back, or ``drift`` with weight decay and moments, as in plain averaging.
        max_norm: Longest update (L2 norm of a round's change) that a site may send; 0 for any finite one.
    """

    strategy: str = "fedavg"
    min_sites: int = 2
    deadline_s: float = 600.0
    options: Mapping[str, Any] = field(default_factory=dict)
    local: tuple[str, ...] = ()
    wire: Wire = Wire.FLOAT32
    untouched: Untouched = Untouched.STAY
    max_norm: float = 0.0


@dataclass(frozen=True)
class PrivacySpec:
    """What may be said of small groups: ``min_count`` is the smallest whose size leaves a site."""

    min_count: int = 5


@dataclass(frozen=True)
class Study:
    """What is learned, and how. Class index is label; modality order is slot order.

    Raises:
        StudyError: If the parts contradict each other.

    Example:
        >>> ct = ModalitySpec(name="ct", kind=Kind.FEATURES, width=512)
        >>> study = Study(name="vital", classes=("dead", "alive"), modalities=(ct,), positive="alive")
        >>> study.hash == Study("again", study.classes, study.modalities, "alive", seed=7).hash
        True
    """

    name: str
    classes: tuple[str, ...]
    modalities: tuple[ModalitySpec, ...]
    positive: str | None = None
    seed: int = 0
    model: ModelSpec = field(default_factory=ModelSpec)
    training: TrainingSpec = field(default_factory=TrainingSpec)
    federation: FederationSpec = field(default_factory=FederationSpec)
    privacy: PrivacySpec = field(default_factory=PrivacySpec)

    def __post_init__(self) -> None:
        check_study(self)

    @cached_property
    def hash(self) -> str:
        """Hex digest of everything but ``seed`` and ``name``: what a hospital approves."""
        content = self.to_dict()
        del content["study"]["seed"], content["study"]["name"]
        canonical = json.dumps(_canonical(content), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def positive_index(self) -> int | None:
        """Label of the positive class, or nothing where none is named."""
        return None if self.positive is None else self.classes.index(self.positive)

    def to_dict(self) -> dict[str, Any]:
        """The study as the tables of ``study.toml``, without absent values; `parse_study` reverses it."""
        return {
            "study": _present(
                {
                    "name": self.name,
                    "classes": list(self.classes),
                    "positive": self.positive,
                    "seed": self.seed,
                }
            ),
            "modality": [_modality_table(modality) for modality in self.modalities],
            "model": {"name": self.model.name, **asdict(self.model)["options"]},  # a copy however deep
            "training": _present(asdict(self.training)),
            "federation": {
                key: value for key, value in _present(asdict(self.federation)).items() if value != {}
            },
            "privacy": asdict(self.privacy),
        }

    def override(self, assignments: Sequence[str]) -> Study:
        """The study with ``section.key=value`` settings applied; values are read as TOML, else as text.

        Args:
            assignments: Such as ``training.rounds=5`` or ``training.oversample={dead=6.0}``; a modality is
                addressed by its name: ``modality.ct.scaling=l2``.

        Raises:
            StudyError: If a section or key does not exist, or the result contradicts itself.
        """
        content = self.to_dict()
        if any(assignment.partition("=")[0].strip() in _CHOOSE_RECIPE for assignment in assignments):
            _forget_recipe(content)
        for assignment in assignments:
            _assign(content, assignment)
        return parse_study(content, source="--set")


_CHOOSE_RECIPE = {"model.name", "training.recipe"}


def load_study(path: Path) -> Study:
    """Read ``study.toml``.

    Raises:
        StudyError: If the file is missing, is not TOML, or is not a study.
    """
    try:
        content = read_toml(path, "study")
    except TableError as error:
        raise StudyError(str(error)) from None
    return parse_study(content, source=str(path))


def parse_study(content: Mapping[str, Any], source: str) -> Study:
    """Make a study from the tables of ``study.toml``.

    Args:
        content: As `tomllib` or `Study.to_dict` gives it.
        source: Named in errors: a file, or where else the tables come from.

    Raises:
        StudyError: If a table or key is unknown, missing, or has a value of the wrong kind.
    """
    try:
        return _from_tables(content)
    except (StudyError, TableError) as error:
        raise StudyError(f"{source}: {error}") from None


def _from_tables(content: Mapping[str, Any]) -> Study:
    check_keys(content, {"study", "modality", "model", "training", "federation", "privacy"}, "the file")
    head = _table(content, "study")
    check_keys(head, {"name", "classes", "positive", "seed"}, "[study]")
    model = dict(_table(content, "model"))
    model_name = convert(model.pop("name", "mmare"), str, "[model] name")
    training = dict(_table(content, "training"))
    training["recipe"], recipe = recipe_of(
        model_name, convert(training.get("recipe"), str | None, "[training] recipe")
    )
    modalities = content.get("modality", [])
    if not isinstance(modalities, Sequence) or not all(isinstance(entry, Mapping) for entry in modalities):
        raise StudyError("modality must be a list of [[modality]] tables")
    return Study(
        name=_required(head, "name", str),
        classes=_required(head, "classes", tuple[str, ...]),
        positive=convert(head.get("positive"), str | None, "[study] positive"),
        seed=convert(head.get("seed", 0), int, "[study] seed"),
        modalities=tuple(from_table(ModalitySpec, entry, "[[modality]]") for entry in modalities),
        model=ModelSpec(name=model_name, options={**recipe.model, **model}),
        training=from_table(TrainingSpec, {**recipe.training, **training}, "[training]"),
        federation=from_table(FederationSpec, _table(content, "federation"), "[federation]"),
        privacy=from_table(PrivacySpec, _table(content, "privacy"), "[privacy]"),
    )


def _table(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = content.get(name, {})
    if not isinstance(table, Mapping):
        raise StudyError(f"{name} must be a table, found {table!r}")
    return table


def _required(table: Mapping[str, Any], key: str, kind: Any) -> Any:  # noqa: ANN401 - a type form and its value
    if key not in table:
        raise StudyError(f"[study] lacks the key {key!r}")
    return convert(table[key], kind, f"[study] {key}")


def _canonical(value: Any) -> Any:  # noqa: ANN401 - plain tables
    """The same tables with whole numbers written one way: 6 and 6.0 are one setting, so one hash."""
    if isinstance(value, Mapping):
        return {key: _canonical(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _modality_table(modality: ModalitySpec) -> dict[str, Any]:
    """A modality's table; what only volumes have is left out where it says nothing."""
    table = _present(asdict(modality))
    for key, silent in (("mask", MaskUse.NONE), ("crop_to_mask", False)):
        if table[key] == silent:
            del table[key]
    return table


def _present(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table without absent and empty values, which TOML cannot write or need not."""
    return {key: value for key, value in table.items() if value is not None and value != ()}


def _forget_recipe(content: dict[str, Any]) -> None:
    """Take out what the study has from its recipe, so that other values can stand there."""
    model, training = content["model"], content["training"]
    name, recipe = recipe_of(model["name"], training["recipe"])
    if name == recipe_of(model["name"], None)[0]:
        del training["recipe"]  # the next model's first recipe, too
    standing = {**_present(asdict(TrainingSpec())), **recipe.training}
    for table, values in ((training, standing), (model, recipe.model)):
        for key, value in values.items():
            if table.get(key) == value:
                del table[key]


def _assign(content: dict[str, Any], assignment: str) -> None:
    """Put one ``section.key=value`` into the tables of a study."""
    path, equals, text = assignment.partition("=")
    keys = path.strip().split(".")
    if not equals or len(keys) < 2:  # noqa: PLR2004 - a section and a key
        raise StudyError(f"--set {assignment!r}: expected section.key=value, such as training.rounds=5")
    table: Any = content
    for key in keys[:-1]:
        if isinstance(table, list):
            table = next((entry for entry in table if entry["name"] == key), None)
        else:
            table = table.get(key) if table is content else table.setdefault(key, {})
        if not isinstance(table, dict | list):
            raise StudyError(f"--set {assignment!r}: there is no section {key!r}")
    if isinstance(table, list):
        raise StudyError(f"--set {assignment!r}: expected modality.NAME.key=value")
    try:
        table[keys[-1]] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        table[keys[-1]] = text.strip()
