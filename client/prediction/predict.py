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
from mmare.models.shapley import MOST_MODALITIES, explain_modalities
from mmare.wire.messages import Split

if TYPE_CHECKING:
    from torch import Tensor

    from client.prediction.inputs import PatientInputs
    from mmare.metrics.decisions import Judgement
    from mmare.package.package import Package

__all__ = ["Predictions", "predict", "training_prior"]

FAR: Final = 3.0  # standard deviations, root mean square; at most a ninth of the train rows can lie further


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of N patients.

    Args:
        package: The model.
        inputs: The patients.
        logits: ``(N, K)``.
        judgement: Probabilities, calls, sets.
        prior: ``(K,)``, class frequencies of the train rows; alike for all classes where they were not told.
        shares: ``(N, M, K)``, Shapley values of the modalities on the scale of ``judgement.probability``:
            they sum over M to the probability less the prior. ``None`` if they were not asked for.
        distance: ``(N, M)``, of the vectors from those of training (`InputScaling.distances`); NaN where
            a modality is absent or its moments are not known.
    """

    package: Package
    inputs: PatientInputs
    logits: Tensor
    judgement: Judgement
    prior: Tensor
    shares: Tensor | None
    distance: Tensor

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
        if package.patterns is None:
            found.append("how often a combination of modalities was seen in training was not told")
        if training_prior(package) is None:
            found.append("class frequencies in training were not told: shares start from equal ones")
        if self.shares is None and len(package.study.modalities) > MOST_MODALITIES:
            found.append(f"no Shapley values: more than {MOST_MODALITIES} modalities")
        return tuple(found)


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
    judgement = package.judge(logits)
    classes = len(package.study.classes)
    prior = training_prior(package)
    if prior is None:
        prior = torch.full((classes,), 1 / classes, dtype=torch.float64)
    shares = None
    if explain and inputs.present.shape[1] <= MOST_MODALITIES:
        shares = explain_modalities(
            lambda seen: model(
                Batch(tuple(part.to(device) for part in seen.embedding), seen.present.to(device))
            ).cpu(),
            Batch(inputs.embedding, model.scaling.visible(inputs.present, someone=True)),
            judgement.probability,
            prior,
            lambda hidden: package.judge(hidden).probability,
        )
    told = {name for name, moments in package.moments.items() if moments.n != 0}
    known = torch.tensor([modality.name in told for modality in package.study.modalities])
    with torch.inference_mode():
        distance = model.scaling.distances([part.to(device) for part in inputs.embedding]).cpu()
    distance = torch.where(inputs.present & known, distance, torch.nan)
    return Predictions(package, inputs, logits, judgement, prior, shares, distance)


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
