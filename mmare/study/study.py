"""A study (``study.toml``): what is learned, from which modalities, how it is trained and federated.

A hospital approves its hash, which covers everything but the seed and the name. Unknown keys are errors: a
misspelt setting must not become a silent default.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from mmare.errors import StudyError
from mmare.study.choices import Hazard, MaskUse, Scans, TaskName
from mmare.study.outcome import SPECS, TASKS, RegressionSpec, SurvivalSpec
from mmare.study.recipes import recipe_of
from mmare.study.rules import check_study
from mmare.study.specs import FederationSpec, ModalitySpec, ModelSpec, PrivacySpec, TrainingSpec
from mmare.study.start import StartSpec
from mmare.study.tables import TableError, check_keys, convert, from_table, read_toml

__all__ = ["STUDY_FILE", "Study", "load_study", "parse_study"]

STUDY_FILE: Final = "study.toml"  # of a federation, a run, a kit
_MORE: Final = {**SPECS, "start": StartSpec}  # tables that most studies do not have
_CHOOSE_RECIPE: Final = {"model.name", "training.recipe"}


@dataclass(frozen=True)
class Study:
    """A checked study. Class index is label; modality order is slot order.

    Of other tasks than classification, ``classes`` are the strata of `mmare.study.outcome`.

    Raises:
        StudyError: If the parts contradict each other.

    Example:
        >>> from mmare.study.choices import Kind
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
    task: TaskName = TaskName.CLASSIFICATION
    survival: SurvivalSpec | None = None
    regression: RegressionSpec | None = None
    start: StartSpec | None = None

    def __post_init__(self) -> None:
        check_study(self)

    @cached_property
    def hash(self) -> str:
        """Hex digest of everything but ``seed`` and ``name``."""
        content = self.to_dict()
        del content["study"]["seed"], content["study"]["name"]
        canonical = json.dumps(_canonical(content), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def positive_index(self) -> int | None:
        """Label of the positive class, if one is named."""
        return None if self.positive is None else self.classes.index(self.positive)

    def to_dict(self) -> dict[str, Any]:
        """The study as the tables of ``study.toml``, without absent values; `parse_study` reverses it."""
        head = {"name": self.name, "positive": self.positive, "seed": self.seed}
        named = (
            {"classes": [*self.classes]}
            if self.task is TaskName.CLASSIFICATION
            else {"task": self.task.value}
        )
        return {
            "study": _present({**head, **named}),
            **{name: _spec_table(spec) for name, spec in vars(self).items() if name in _MORE and spec},
            "modality": [_modality_table(modality) for modality in self.modalities],
            "model": {"name": self.model.name, **asdict(self.model)["options"]},  # a copy however deep
            "training": _present(asdict(self.training)),
            "federation": _federation_table(self.federation),
            "privacy": {
                key: value for key, value in _present(asdict(self.privacy)).items() if value is not False
            },
        }

    def override(self, assignments: Sequence[str]) -> Study:
        """The study with settings applied, such as ``training.rounds=5`` or ``modality.ct.scaling=l2``.

        Values are read as TOML, else as text.

        Raises:
            StudyError: If a section or key does not exist, or the result contradicts itself.
        """
        content = self.to_dict()
        names = {assignment.partition("=")[0].strip() for assignment in assignments}
        recipe = recipe_of(self.model.name, self.training.recipe)[1]
        if "federation.strategy" in names and self.federation.options == recipe.federation.get("options"):
            del content["federation"]["options"]  # another strategy has others
        if names & _CHOOSE_RECIPE:
            _forget_recipe(content)
        for assignment in assignments:
            _assign(content, assignment)
        return parse_study(content, source="--set")


def load_study(path: Path) -> Study:
    """Read ``study.toml``.

    Raises:
        StudyError: If the file is missing, not TOML, or not a study.
    """
    try:
        content = read_toml(path, "study")
    except TableError as error:
        raise StudyError(str(error)) from None
    return parse_study(content, source=str(path))


def parse_study(content: Mapping[str, Any], source: str) -> Study:
    """Make a study from the tables of ``study.toml``.

    Raises:
        StudyError: If a table or key is unknown, missing or invalid; begins with ``source``.
    """
    try:
        return _from_tables(content)
    except (StudyError, TableError) as error:
        raise StudyError(f"{source}: {error}") from None


def _from_tables(content: Mapping[str, Any]) -> Study:
    tables = {"study", "modality", "model", "training", "federation", "privacy"}
    check_keys(content, tables | set(_MORE), "the file")
    head = _table(content, "study")
    check_keys(head, {"name", "task", "classes", "positive", "seed"}, "[study]")
    task = convert(head.get("task", TaskName.CLASSIFICATION), TaskName, "[study] task")
    strata = TASKS[task].strata
    if strata and "classes" in head:
        raise StudyError(f"[study] classes are of task classification, found task {task}")
    model = dict(_table(content, "model"))
    model_name = convert(model.pop("name", "mmare"), str, "[model] name")
    training = dict(_table(content, "training"))
    training["recipe"], recipe = recipe_of(
        model_name, convert(training.get("recipe"), str | None, "[training] recipe")
    )
    settings = {"select": TASKS[task].selects[0], **recipe.training, **training}
    modalities = content.get("modality", [])
    if not isinstance(modalities, Sequence) or not all(isinstance(entry, Mapping) for entry in modalities):
        raise StudyError("modality must be a list of [[modality]] tables")
    return Study(
        name=_required(head, "name", str),
        classes=strata or _required(head, "classes", tuple[str, ...]),
        positive=convert(head.get("positive"), str | None, "[study] positive"),
        seed=convert(head.get("seed", 0), int, "[study] seed"),
        modalities=tuple(from_table(ModalitySpec, entry, "[[modality]]") for entry in modalities),
        model=ModelSpec(name=model_name, options={**recipe.model, **model}),
        training=from_table(TrainingSpec, settings, "[training]"),
        federation=from_table(
            FederationSpec, recipe.federated_with(_table(content, "federation")), "[federation]"
        ),
        privacy=from_table(PrivacySpec, _table(content, "privacy"), "[privacy]"),
        task=task,
        **{
            name: from_table(kind, _table(content, name), f"[{name}]")
            for name, kind in _MORE.items()
            if name in content
        },
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
    """The tables with 6.0 written as 6: it is the same setting, so the same hash."""
    if isinstance(value, Mapping):
        return {key: _canonical(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _modality_table(modality: ModalitySpec) -> dict[str, Any]:
    """A modality's table without the defaults of keys that most have no use for."""
    table = _present(asdict(modality))
    for key, default in (("mask", MaskUse.NONE), ("crop_to_mask", False), ("scans", Scans.ONE)):
        if table[key] == default:
            del table[key]
    return table


def _spec_table(spec: Any) -> dict[str, Any]:  # noqa: ANN401 - a dataclass
    """Its table without the default of a key that is younger than the hashes of older studies."""
    table = _present(asdict(spec))
    if table.get("hazard") == Hazard.INTERVALS:
        del table["hazard"]
    return table


def _federation_table(federation: FederationSpec) -> dict[str, Any]:
    """Its table without the default of a key that is younger than the hashes of older studies."""
    table = {key: value for key, value in _present(asdict(federation)).items() if value != {}}
    if federation.max_share == 1:
        del table["max_share"]
    return table


def _present(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table without ``None``, which TOML cannot express, and empty tuples."""
    return {key: value for key, value in table.items() if value is not None and value != ()}


def _forget_recipe(content: dict[str, Any]) -> None:
    """Remove the values that come from the recipe, so that another recipe can set them."""
    model, training, federation = (content[name] for name in ("model", "training", "federation"))
    name, recipe = recipe_of(model["name"], training["recipe"])
    if name == recipe_of(model["name"], None)[0]:
        del training["recipe"]  # the next model's first recipe, too
    defaults = {**_present(asdict(TrainingSpec())), **recipe.training}
    for table, values in (
        (training, defaults),
        (model, recipe.model),
        (federation, {**_present(asdict(FederationSpec())), **recipe.federation}),
    ):
        for key, value in values.items():
            if table.get(key) == value:
                del table[key]


def _assign(content: dict[str, Any], assignment: str) -> None:
    """Apply one ``section.key=value`` to the tables of a study."""
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
