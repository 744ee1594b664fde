"""Predict, explain and warn: what a package's model says of patients and how far to trust it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import torch

from client.training.evaluate import logits_of, pattern_names
from mmare.errors import RunError, SiteError
from mmare.models.batch import Batch
from mmare.models.hiding.shapley import MOST_MODALITIES, explain_modalities
from mmare.package.answers import answers_of
from mmare.study.choices import TaskName
from mmare.wire.messages import Split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from client.prediction.inputs import PatientInputs
    from mmare.metrics.decisions import Judgement
    from mmare.package.package import Package
    from mmare.study.study import Study

__all__ = ["Predictions", "horizons_of", "predict", "training_prior"]

FAR: Final = 3.0  # standard deviations, root mean square; at most a ninth of the train rows can lie further


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of N patients.

    Args:
        package: The model.
        inputs: The patients.
        logits: ``(N, K)``.
        values: ``(N, V)``, answers as of `Package.values`.
        prior: ``(V,)``, answers where nothing is known: class frequencies of the train rows, alike for all
            classes where they were not told; of times and numbers those of the package. ``None``: not told.
        shares: ``(N, M, V)``, Shapley values of the modalities on the scale of ``values``: they sum over M to
            the value less the prior. ``None`` if they were not asked for, or without a prior.
        distance: ``(N, M)``, of the vectors from those of training (`InputScaling.distances`); NaN where
            a modality is absent or its moments are not known.
    """

    package: Package
    inputs: PatientInputs
    logits: Tensor
    values: Tensor
    prior: Tensor | None
    shares: Tensor | None
    distance: Tensor

    @cached_property
    def judgement(self) -> Judgement:
        """Of classes: probabilities, calls, sets."""
        return self.package.judge(self.logits)

    @cached_property
    def curves(self) -> Tensor:
        """Of times: probability ``(N, T + 1)`` of no event until each edge of their bins."""
        with torch.no_grad():
            curve: Tensor = self.package.model.task.prediction(self.logits.double())
        return curve

    @cached_property
    def patterns(self) -> list[str]:
        """Presence of each patient's modalities, ones and zeros in slot order."""
        return pattern_names(self.inputs.present)

    @cached_property
    def seen(self) -> list[int | None]:
        """Train rows with the patient's pattern; 0: never, None: too few to be told, or not told."""
        return [_seen(self.package, pattern) for pattern in self.patterns]

    @cached_property
    def distances(self) -> list[dict[str, float]]:
        """Each patient's known distances by modality."""
        names = [modality.name for modality in self.package.study.modalities]
        rows = [zip(names, far, strict=True) for far in self.distance.tolist()]
        return [{name: value for name, value in row if not math.isnan(value)} for row in rows]

    @cached_property
    def seen_shares(self) -> list[float | None]:
        """The same as a share of the train rows that sites told of."""
        total = sum(count.n for count in (self.package.patterns or {}).values())
        return [0.0 if seen == 0 else None if seen is None else seen / total for seen in self.seen]

    @cached_property
    def warnings(self) -> list[tuple[str, ...]]:
        """What a reader of each prediction must know, in sentences."""
        found = []
        for row, (seen, distances) in enumerate(zip(self.seen, self.distances, strict=True)):
            sentences = list(self.inputs.remarks.get(row, ()))
            if seen == 0:
                sentences.append("this combination of modalities was never seen in training")
            elif seen is None and self.package.patterns is not None:
                sentences.append("this combination of modalities was seen in very few patients in training")
            sentences += [
                f"{name} lies {far:.1f} standard deviations from the training mean, outside the usual range"
                for name, far in distances.items()
                if far > FAR
            ]
            found.append(tuple(sentences))
        return found

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What holds for all predictions, in sentences."""
        package = self.package
        found = [package.facts.notice, *self.inputs.notes]
        if package.study.task is not TaskName.CLASSIFICATION:
            return (*found, *self._notes_of_numbers())
        if package.calibration is None:
            found.append("the probabilities are not calibrated: the package has no calibration")
        elif caution := package.report.get("calibration", {}).get("caution"):
            found.append(caution)
        if package.operating_point is None:
            found.append("called is the most probable class: the package has no operating point")
        if package.prediction_sets is not None:
            bounds = zip(package.study.classes, package.prediction_sets.thresholds, strict=True)
            always = [name for name, bound in bounds if bound is None]
            if always:
                found.append(
                    f"every prediction set holds {', '.join(always)}: validation has too few of them"
                )
        found += self._notes_of_patterns()
        if training_prior(package) is None:
            found.append("class frequencies in training were not told: shares start from equal ones")
        if self.shares is None and len(package.study.modalities) > MOST_MODALITIES:
            found.append(f"no Shapley values: more than {MOST_MODALITIES} modalities")
        return tuple(found)

    def _notes_of_patterns(self) -> list[str]:
        told = self.package.patterns is not None
        return [] if told else ["how often a combination of modalities was seen in training was not told"]

    def _notes_of_numbers(self) -> Iterator[str]:
        package = self.package
        if package.study.survival is not None:
            test = package.results["metrics"].get("test", {}).get("pooled", {})
            for name, time, unit in horizons_of(package.study):
                ratio = test.get(f"calibration_{time}")
                if ratio is not None:
                    yield (
                        f"until {time} {unit} the test rows had {ratio:.2f} events for each one that {name} "
                        "expected"
                    )
        yield from self._notes_of_patterns()
        if self.shares is None:
            yield (
                f"no Shapley values: more than {MOST_MODALITIES} modalities"
                if package.prior is not None
                else "no Shapley values: what is answered on average was not told"
            )


def horizons_of(study: Study) -> list[tuple[str, str, str]]:
    """Name of the answer, time as text and unit of each horizon."""
    assert study.survival is not None  # noqa: S101 - of task survival
    return [(name, name.removeprefix("risk_"), study.survival.unit) for name in answers_of(study)]


def predict(
    package: Package,
    inputs: PatientInputs,
    device: torch.device | None = None,
    *,
    explain: bool = True,
) -> Predictions:
    """Predict as a run evaluates: the same rows give the same logits.

    Raises:
        RunError: If the model's output is not finite.
    """
    device = device or torch.device("cpu")
    model = package.model.to(device)
    try:
        logits = logits_of(model, inputs.embedding, torch.arange(len(inputs.present)), inputs.present)
    except SiteError:
        raise RunError("the model gives values that are not finite for these patients") from None
    values = package.values(logits)
    prior = _prior(package)
    shares = None
    if explain and prior is not None and inputs.present.shape[1] <= MOST_MODALITIES:
        shares = explain_modalities(
            lambda seen: model(
                Batch(tuple(part.to(device) for part in seen.embedding), seen.present.to(device))
            ).cpu(),
            Batch(inputs.embedding, model.scaling.visible(inputs.present, someone=True)),
            values,
            prior,
            package.values,
        )
    told = {name for name, moments in package.moments.items() if moments.n != 0}
    known = torch.tensor([each.name in told or each.scaling.is_own for each in package.study.modalities])
    with torch.inference_mode():
        distance = model.scaling.distances([part.to(device) for part in inputs.embedding]).cpu()
    distance = torch.where(inputs.present & known, distance, torch.nan)
    return Predictions(package, inputs, logits, values, prior, shares, distance)


def _prior(package: Package) -> Tensor | None:
    """What is answered where nothing is known, ``(V,)`` float64."""
    if package.study.task is not TaskName.CLASSIFICATION:
        return None if package.prior is None else torch.tensor(package.prior, dtype=torch.float64)
    classes = len(package.study.classes)
    prior = training_prior(package)
    return torch.full((classes,), 1 / classes, dtype=torch.float64) if prior is None else prior


def training_prior(package: Package) -> Tensor | None:
    """Class frequencies ``(K,)`` float64 of the train rows that sites told of; None if none did."""
    counts = torch.zeros(len(package.study.classes), dtype=torch.float64)
    for splits in package.card["training"]["rows"].values():
        told = splits.get(Split.TRAIN, {})
        counts += torch.tensor([told.get(name) or 0 for name in package.study.classes], dtype=torch.float64)
    return counts / counts.sum() if counts.sum() > 0 else None


def _seen(package: Package, pattern: str) -> int | None:
    if package.patterns is None:
        return None
    found = package.patterns.get(pattern)
    if found is None:
        return 0
    return None if found.n == 0 and found.withheld else found.n
