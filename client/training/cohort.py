"""What a site tells of its patients before a run: counts and scaling moments, small groups left out."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

from client.privacy.records.moments_record import patient_marks
from client.training.evaluate import groups_of, pattern_names
from mmare.models.adapters import moment_rows
from mmare.study.choices import Scaling
from mmare.study.outcome import N_TIMES
from mmare.tasks.registry import task_of
from mmare.wire.messages import EVENT_TIMES, Counts, Moments, Split

if TYPE_CHECKING:
    from torch import Tensor

    from client.data.dataset import SiteData
    from client.data.site_table import SiteTable
    from mmare.study.specs import ModalitySpec
    from mmare.study.study import Study

__all__ = ["counts_of", "events_of", "moments_of"]


def counts_of(study: Study, data: SiteData, limit: int) -> Counts:
    """Patients by split and class, and by split and presence pattern; None for what is withheld."""
    splits: dict[str, dict[str, int | None]] = {}
    patterns: dict[str, dict[str, int | None]] = {}
    task = task_of(study)
    for split in Split:
        rows = data.rows[split]
        labels = Counter(task.stratum(data.label[rows]).tolist())
        shown = groups_of(data, split, task, limit)
        splits[split] = {
            name: None if index in shown.classes else labels[index]
            for index, name in enumerate(study.classes)
        }
        patterns[split] = {
            name: None if name in shown.patterns else count
            for name, count in sorted(Counter(pattern_names(data.present[rows])).items())
        }
    return Counts(splits, patterns)


def moments_of(study: Study, data: SiteData, limit: int, table: SiteTable) -> tuple[Moments, ...]:
    """Sums for the scaling, of the train split; zeros where fewer than ``limit`` patients have a modality.

    Of a modality that each site scales by its own, nothing is told.

    A feature that fewer than ``limit`` have is left out, too. One that fewer than ``limit`` lack is told as
    if they had the mean and the mean square of the others: their number stays here.
    """
    rows = data.rows[Split.TRAIN]
    found = []
    for slot, modality in enumerate(study.modalities):
        if modality.scaling is Scaling.SITE:
            found.append(_no_moments(modality))
            continue
        chosen = rows[data.present[rows, slot]]
        values = moment_rows(data.embedding[slot][chosen], modality.scaling)  # (n, W)
        if len(values) < limit or study.privacy.dp is not None:  # sums have no noise
            values = values[:0]
        moments = _sums(modality.name, values, limit)
        if len(values) > 0 and limit > 1:
            patients = [data.patients[row] if data.patients else str(row) for row in chosen.tolist()]
            marks = patient_marks(patients, values, table.secret())
            moments = table.record.settle(moments, marks, limit)
        found.append(moments if moments.n >= limit else _no_moments(modality))
    return tuple(found)


def events_of(study: Study, data: SiteData, limit: int, table: SiteTable) -> Moments | None:
    """Events of the train split by bin of the time, for the cuts of hazards; None where there are no times.

    Neighbouring bins are joined until each holds ``limit`` events; zeros where there are fewer.
    """
    if study.survival is None:
        return None
    rows = data.rows[Split.TRAIN]
    chosen = rows[data.label[rows] % 2 == 1]
    time = torch.div(data.label[chosen], 2, rounding_mode="floor")
    if len(chosen) < limit:
        chosen = time = time[:0]
    counts = torch.zeros(N_TIMES)
    for group in time.sort().values.tensor_split(max(len(time) // max(limit, 1), 1)):
        if len(group):
            counts[int(group.double().mean().round())] += len(group)
    moments = Moments(EVENT_TIMES, len(time), tuple(counts.tolist()), tuple(counts.tolist()))
    if len(time) > 0 and limit > 1:
        patients = [data.patients[row] if data.patients else str(row) for row in chosen.tolist()]
        marks = patient_marks(patients, torch.nn.functional.one_hot(time, N_TIMES).double(), table.secret())
        moments = table.record.settle(moments, marks, limit)
    return moments


def _sums(name: str, values: Tensor, limit: int) -> Moments:
    """Of ``(n, W)``, NaN where blank."""
    n = len(values)
    there = (~values.isnan()).sum(dim=0)  # (W,)
    few = there < limit
    over = torch.where(n - there < limit, n, there).masked_fill(few, 0)
    factor = (over / there.clamp_min(1)).double()  # 1 unless few are blank
    total, squares = (tuple((each.nansum(dim=0) * factor).tolist()) for each in (values, values.square()))
    counts = tuple(over.tolist())
    return Moments(name, n, total, squares, () if set(counts) <= {n} else counts)


def _no_moments(modality: ModalitySpec) -> Moments:
    zeros = (0.0,) * modality.width
    return Moments(modality.name, 0, zeros, zeros)
