"""A model package with typed access to its parts."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mmare.errors import InputError
from mmare.metrics.decisions import Calibration, Judgement, OperatingPoint, PredictionSets, judge
from mmare.models.registry import build_model
from mmare.package.answers import answers_of, values_of
from mmare.package.sealed import read_sealed, write_sealed
from mmare.package.start import INSTALLED
from mmare.package.weights import read_weights
from mmare.study.choices import TaskName
from mmare.study.encoding import Encoding, parse_encoding
from mmare.study.study import STUDY_FILE, parse_study
from mmare.study.tables import TableError, from_table
from mmare.wire.tensors import copy_tensors, global_tensors, layout_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from mmare.models.base import MultimodalModel
    from mmare.package.sealed import Facts, Sealed
    from mmare.study.study import Study

__all__ = [
    "CALIBRATION_FILE",
    "CARD_FILE",
    "ENCODERS_FILE",
    "ENCODING_PATH",
    "MOMENTS_FILE",
    "PATTERNS_FILE",
    "RESULTS_FILE",
    "WEIGHTS_FILE",
    "EncoderFact",
    "MomentsFact",
    "Package",
    "PatternCount",
    "install_package",
    "open_package",
    "read_package",
]

Fact = TypeVar("Fact")

WEIGHTS_FILE: Final = "weights.safetensors"
ENCODING_PATH: Final = "encodings/encoding.json"
ENCODERS_FILE: Final = "encoders.json"
MOMENTS_FILE: Final = "moments.json"
PATTERNS_FILE: Final = "patterns.json"
CALIBRATION_FILE: Final = "calibration.json"
RESULTS_FILE: Final = "results.json"
CARD_FILE: Final = "card.json"


@dataclass(frozen=True)
class EncoderFact:
    """What made a modality's vectors at the sites that have it; other vectors mean nothing to the model."""

    kind: str
    encoder: str
    fingerprint: str  # of encoder, weights and preprocessing, with their versions
    sites: tuple[str, ...]


@dataclass(frozen=True)
class MomentsFact:
    """Over which rows a modality's moments were pooled."""

    n: int | None
    sites: tuple[str, ...]


@dataclass(frozen=True)
class PatternCount:
    """Train rows with one presence pattern."""

    n: int  # of the sites that told
    withheld: int = 0  # sites that have such rows, too few to tell


@dataclass(frozen=True)
class _Decisions:
    """The part of the calibration file that predictions need."""

    calibration: Calibration | None = None
    operating_point: OperatingPoint | None = None
    prediction_sets: PredictionSets | None = None
    prior: tuple[float, ...] | None = None  # answers for a patient of whom nothing is known


@dataclass(frozen=True)
class Package:
    """A package that was checked against its seal.

    Args:
        sealed: Its files and facts.
        study: As it was trained.
        encoders: By modality; one that no site had is absent.
        moments: By modality; means and deviations are in `mean` and `deviation`.
        patterns: Train rows by presence pattern, ones and zeros in slot order; a pattern that is absent was
            never seen. ``None``: the run told no counts.
        encoding: Of the columns of tables; ``None`` where there is none.
        results: ``metrics`` of validation and test as in a run's result, ``left_out`` and ``notes``.
        card: The model card.
        report: How calibration, operating point and prediction sets were made, and how they did on test rows.
    """

    sealed: Sealed
    study: Study
    encoders: Mapping[str, EncoderFact]
    moments: Mapping[str, MomentsFact]
    patterns: Mapping[str, PatternCount] | None
    encoding: Encoding | None
    results: Mapping[str, Any]
    card: Mapping[str, Any]
    report: Mapping[str, Any]
    _decisions: _Decisions = field(default=_Decisions())

    @property
    def digest(self) -> str:
        """SHA-256 over everything in the package."""
        return self.sealed.digest

    @property
    def facts(self) -> Facts:
        """Where it comes from; ``not_stated`` says what the run did not tell, and why."""
        return self.sealed.facts

    @property
    def calibration(self) -> Calibration | None:
        """Of the probabilities."""
        return self._decisions.calibration

    @property
    def operating_point(self) -> OperatingPoint | None:
        """Where a call turns positive."""
        return self._decisions.operating_point

    @property
    def prediction_sets(self) -> PredictionSets | None:
        """Thresholds of the classes."""
        return self._decisions.prediction_sets

    @property
    def prior(self) -> tuple[float, ...] | None:
        """Answers on average, of times and numbers: where Shapley values start."""
        return self._decisions.prior

    @property
    def answers(self) -> tuple[str, ...]:
        """Names of what the model tells: `answers_of`."""
        return answers_of(self.study)

    @cached_property
    def model(self) -> MultimodalModel:
        """The model in evaluation mode, moments filled in."""
        model = build_model(self.study)
        copy_tensors(global_tensors(model), self.weights)
        return model.eval()

    def mean(self, modality: str) -> Tensor:
        """Means of a modality's vectors over the train rows, ``(W,)``."""
        return self.weights[f"scaling.mean_{self._slot(modality)}"]

    def deviation(self, modality: str) -> Tensor:
        """Standard deviations of them, ``(W,)``."""
        return self.weights[f"scaling.deviation_{self._slot(modality)}"]

    def values(self, outputs: Tensor) -> Tensor:
        """Answers ``(B, V)`` to outputs ``(B, K)``: calibrated probabilities, risks or a number."""
        if self.study.task is TaskName.CLASSIFICATION:
            return self.judge(outputs).probability
        return values_of(self.model.task, outputs)

    def judge(self, logits: Tensor) -> Judgement:
        """Calibrated probabilities, calls and prediction sets of logits ``(B, K)``."""
        made = self._decisions
        positive = self.study.positive_index
        return judge(logits, positive, made.calibration, made.operating_point, made.prediction_sets)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return read_weights(self.sealed.files[WEIGHTS_FILE], f"{self.sealed.source}: {WEIGHTS_FILE}")[0]

    def _slot(self, modality: str) -> int:
        return [each.name for each in self.study.modalities].index(modality)


def read_package(path: Path) -> Package:
    """Read a package, a folder or a zip.

    Raises:
        InputError: If it is none, was changed after it was sealed, or its parts do not fit each other; one
            sentence names the package and the file.
    """
    return open_package(read_sealed(path))


def open_package(sealed: Sealed) -> Package:
    """The parts of files that were checked; an `InputError` as of `read_package`."""
    try:
        package = _parsed(sealed)
    except KeyError as error:
        raise InputError(f"{sealed.source}: the package lacks {error}") from None
    except (TableError, ValueError) as error:
        raise InputError(f"{sealed.source}: {error}") from None
    _check_fit(package)
    return package


def install_package(package: Package, folder: Path) -> Path:
    """Keep a copy in ``models/`` of a site's folder, named by its digest; the copy's folder.

    Raises:
        InputError: If a copy there was changed.
    """
    kept = folder / INSTALLED / package.digest
    kept.parent.mkdir(exist_ok=True)
    write_sealed(package.sealed, kept)
    return kept


def _parsed(sealed: Sealed) -> Package:
    study = parse_study(
        tomllib.loads(sealed.files[STUDY_FILE].decode()), source=f"{sealed.source}: {STUDY_FILE}"
    )
    if study.hash != sealed.facts.study_hash:
        raise ValueError(f"{STUDY_FILE} has the hash {study.hash}, expected {sealed.facts.study_hash}")
    patterns, decisions = _json(sealed, PATTERNS_FILE), _json(sealed, CALIBRATION_FILE)
    text = sealed.files.get(ENCODING_PATH)
    return Package(
        sealed,
        study,
        _each(EncoderFact, _json(sealed, ENCODERS_FILE), ENCODERS_FILE),
        _each(MomentsFact, _json(sealed, MOMENTS_FILE), MOMENTS_FILE),
        None if patterns is None else _each(PatternCount, patterns, PATTERNS_FILE),
        None if text is None else parse_encoding(text.decode(), f"{sealed.source}: {ENCODING_PATH}"),
        _json(sealed, RESULTS_FILE),
        _json(sealed, CARD_FILE),
        decisions.pop("report", {}),
        from_table(_Decisions, decisions, CALIBRATION_FILE),
    )


def _json(sealed: Sealed, name: str) -> Any:  # noqa: ANN401 - JSON
    return json.loads(sealed.files[name])


def _each(made: type[Fact], table: Mapping[str, Any], where: str) -> dict[str, Fact]:
    return {name: from_table(made, entry, f"{where} {name}") for name, entry in table.items()}


def _check_fit(package: Package) -> None:
    """Compare the weights with the study's model, and the decisions with its classes."""
    found, wanted = package.weights, global_tensors(build_model(package.study))
    if set(layout_of(found).tensors) != set(layout_of(wanted).tensors):
        raise InputError(f"{package.sealed.source}: {WEIGHTS_FILE} has other tensors than the study's model")
    classes = len(package.study.classes)
    calibration, sets = package.calibration, package.prediction_sets
    sizes = {len(calibration.bias) if calibration else classes, len(sets.thresholds) if sets else classes}
    answers = len(package.answers)
    if sizes != {classes} or len(package.prior or package.answers) != answers:
        raise InputError(f"{package.sealed.source}: {CALIBRATION_FILE} is of other classes than the study")
