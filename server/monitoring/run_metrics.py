"""The coordinator's metrics: names, kinds and labels, and their values for the state of a run.

Rules and dashboards (`deploy/`) rely on the names. Round numbers and names of patients, files and nodes are
never labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from mmare.host.metric_families import Kind, Metric, Sample
from server.monitoring.kit_metrics import KIT_METRICS
from server.monitoring.parts import SiteState, rows_ratios
from server.monitoring.run_state import PACKAGES, SITE_SCORES, RunState

__all__ = ["INFO_LABELS", "METRICS", "run_samples"]

INFO_LABELS: Final = (
    *("mode", "backend", "model", "strategy"),
    *(name.replace("-", "_") for name in PACKAGES),
)
_RUN: Final = ("study", "run")
_SITE: Final = (*_RUN, "site")
_C, _G = Kind.COUNTER, Kind.GAUGE

METRICS: Final = (
    Metric("mmare_runs_started_total", _C, "Starts of runs, including resumes.", ("study",)),
    Metric("mmare_runs_finished_total", _C, "Runs that finished.", ("study",)),
    Metric("mmare_runs_failed_total", _C, "Attempts at a run that failed, by reason.", ("study", "reason")),
    Metric("mmare_rounds_started_total", _C, "Rounds that started.", ("study",)),
    Metric(
        "mmare_rounds_finished_total", _C, "Rounds that were aggregated, or ended by patience.", ("study",)
    ),
    Metric("mmare_rounds_failed_total", _C, "Rounds that failed, by reason.", ("study", "reason")),
    Metric(
        "mmare_round_phase_duration_seconds",
        Kind.HISTOGRAM,
        "Duration of the phases of a round: wait, evaluate, aggregate, checkpoint.",
        ("study", "phase"),
    ),
    Metric("mmare_site_updates_total", _C, "Valid updates of a site.", ("study", "site")),
    Metric(
        "mmare_site_left_out_total",
        _C,
        "Times a site was left out of a round, by reason.",
        ("study", "site", "reason"),
    ),
    Metric("mmare_site_received_bytes_total", _C, "Bytes received from a site.", ("study", "site")),
    Metric("mmare_site_sent_bytes_total", _C, "Bytes sent to a site.", ("study", "site")),
    Metric("mmare_checkpoints_damaged_total", _C, "Checkpoints that could not be read.", ("study",)),
    Metric("mmare_run_info", _G, "Properties of a run and its software versions.", (*_RUN, *INFO_LABELS)),
    Metric("mmare_run_active", _G, "1 from a start of the run until it finishes or fails.", _RUN),
    Metric("mmare_run_failed", _G, "1 if the last attempt at the run failed.", (*_RUN, "reason")),
    Metric("mmare_run_started_timestamp_seconds", _G, "First start of the run.", _RUN),
    Metric("mmare_run_last_event_timestamp_seconds", _G, "Last write to the journal.", _RUN),
    Metric("mmare_round_current", _G, "Number of the current round, or of the last one.", _RUN),
    Metric("mmare_round_active", _G, "1 while a round is under way.", _RUN),
    Metric("mmare_rounds_planned", _G, "Maximum number of rounds.", _RUN),
    Metric("mmare_round_best", _G, "Best round so far, by training.select.", _RUN),
    Metric("mmare_round_deadline_seconds", _G, "How long a round waits for sites.", _RUN),
    Metric("mmare_sites_required", _G, "Minimum number of sites for a round.", _RUN),
    Metric("mmare_sites_expected", _G, "Sites admitted by the roll call.", _RUN),
    Metric("mmare_sites_in", _G, "Sites with a valid update in this round.", _RUN),
    Metric("mmare_sites_late", _G, "Sites that missed the deadline of this round.", _RUN),
    Metric("mmare_sites_refused", _G, "Sites whose answer in this round was refused.", (*_RUN, "reason")),
    Metric("mmare_sites_not_admitted", _G, "Sites refused by the roll call.", (*_RUN, "reason")),
    Metric("mmare_site_last_seen_timestamp_seconds", _G, "Last valid answer of a site.", _SITE),
    Metric("mmare_site_missed_rounds", _G, "Consecutive rounds from which a site was left out.", _SITE),
    Metric(
        "mmare_site_left_out_timestamp_seconds",
        _G,
        "Last time a site was left out for a reason.",
        (*_SITE, "reason"),
    ),
    Metric("mmare_site_samples", _G, "Training rows of a site; withheld if few.", _SITE),
    Metric("mmare_site_samples_ratio", _G, "These over the median of the other sites' rows.", _SITE),
    Metric("mmare_site_samples_change", _G, "These over what the site had said before in the run.", _SITE),
    Metric(
        "mmare_site_modality_samples",
        _G,
        "Training rows of a site with a modality; withheld if they, or the others, are few.",
        (*_SITE, "modality"),
    ),
    Metric("mmare_site_update_norm", _G, "L2 norm of the last update of a site.", _SITE),
    Metric("mmare_site_train_loss", _G, "Training loss of a site in its last update.", _SITE),
    Metric(
        "mmare_block_exposure_samples",
        _G,
        "Draws of training rows that gave a block a gradient in the last round; withheld if few.",
        (*_RUN, "block"),
    ),
    Metric(
        "mmare_block_starved_rounds", _G, "Consecutive rounds without exposure of a block.", (*_RUN, "block")
    ),
    Metric(
        "mmare_modality_absent_rounds",
        _G,
        "Consecutive rounds without an update of any site that has the modality.",
        (*_RUN, "modality"),
    ),
    Metric("mmare_score", _G, "A metric over the rows of all sites.", (*_RUN, "split", "metric")),
    Metric(
        "mmare_score_best",
        _G,
        "Pooled validation balanced accuracy, or concordance, of the best round so far.",
        _RUN,
    ),
    Metric("mmare_site_score", _G, "A metric over the rows of a site.", (*_SITE, "split", "metric")),
    Metric("mmare_score_worst_site", _G, "A metric at its worst site.", (*_RUN, "split", "metric")),
    Metric(
        "mmare_score_site_gap",
        _G,
        "Difference of a metric between its best and its worst site.",
        (*_RUN, "split", "metric"),
    ),
    Metric("mmare_checkpoint_timestamp_seconds", _G, "Time of the last checkpoint.", _RUN),
    Metric("mmare_checkpoint_bytes", _G, "Size of the last checkpoint.", _RUN),
    Metric("mmare_disk_free_bytes", _G, "Free space on the disk of the runs."),
    Metric("mmare_disk_size_bytes", _G, "Size of the disk of the runs."),
    *KIT_METRICS,
    Metric("mmare_exporter_info", _G, "Versions of the exporter.", ("federated_mmare", "python")),
    Metric("mmare_exporter_last_read_timestamp_seconds", _G, "Last read of the journals."),
    Metric("mmare_exporter_backlog_bytes", _G, "Bytes of journals left to read."),
    Metric("mmare_exporter_runs", _G, "Run folders that are followed."),
    Metric("mmare_exporter_events_total", _C, "Events that were read."),
    Metric("mmare_exporter_skipped_lines_total", _C, "Damaged or invalid lines of journals."),
)


def run_samples(state: RunState) -> Iterator[Sample]:
    """The gauges of a run."""
    labels = (state.study, state.run)
    for name, value in _facts(state).items():
        if value is not None:
            yield Sample(name, labels, value)
    yield Sample("mmare_run_info", (*labels, *(state.info.get(name, "other") for name in INFO_LABELS)), 1.0)
    if state.failed is not None:
        yield Sample("mmare_run_failed", (*labels, state.failed.value), 1.0)
    for name, table in _tables(state).items():
        for key, number in table.items():
            yield Sample(name, (*labels, key), number)
    for site_name, site in state.sites.items():
        yield from _site_samples((*labels, site_name), site)
    for site_name, ratio in rows_ratios(state.sites).items():
        yield Sample("mmare_site_samples_ratio", (*labels, site_name), ratio)
    yield from _score_samples(labels, state)


def _facts(state: RunState) -> dict[str, float | None]:
    checkpoint = state.checkpoint
    return {
        "mmare_run_active": float(state.active),
        "mmare_run_started_timestamp_seconds": state.started,
        "mmare_run_last_event_timestamp_seconds": state.last_event,
        "mmare_round_current": state.round,
        "mmare_round_active": float(state.round_started is not None),
        "mmare_rounds_planned": state.planned_rounds,
        "mmare_round_best": state.best_round or None,
        "mmare_score_best": state.best_score,
        "mmare_round_deadline_seconds": state.deadline_s,
        "mmare_sites_required": state.min_sites,
        "mmare_sites_expected": len(state.members),
        "mmare_sites_in": len(state.row.updates),
        "mmare_sites_late": len(state.late),
        "mmare_checkpoint_timestamp_seconds": None if checkpoint is None else checkpoint[0],
        "mmare_checkpoint_bytes": None if checkpoint is None else checkpoint[1],
    }


def _tables(state: RunState) -> dict[str, Mapping[str, int]]:
    return {
        "mmare_sites_refused": state.refused,
        "mmare_sites_not_admitted": state.not_admitted,
        "mmare_block_exposure_samples": state.exposure,
        "mmare_block_starved_rounds": state.starved,
        "mmare_modality_absent_rounds": state.absent,
    }


def _site_samples(labels: tuple[str, ...], site: SiteState) -> Iterator[Sample]:
    facts = {
        "mmare_site_last_seen_timestamp_seconds": site.last_seen or None,
        "mmare_site_missed_rounds": site.missed,
        "mmare_site_samples": site.samples,
        "mmare_site_samples_change": site.samples_change,
        "mmare_site_update_norm": site.norm,
        "mmare_site_train_loss": site.train_loss,
    }
    for name, value in facts.items():
        if value is not None:
            yield Sample(name, labels, value)
    for reason, time in site.left_out.items():
        yield Sample("mmare_site_left_out_timestamp_seconds", (*labels, reason), time)
    for modality, samples in site.modality_samples.items():
        yield Sample("mmare_site_modality_samples", (*labels, modality), samples)
    for split, scores in site.scores.items():
        for metric, score in scores.items():
            yield Sample("mmare_site_score", (*labels, split, metric), score)


def _score_samples(labels: tuple[str, ...], state: RunState) -> Iterator[Sample]:
    for split, scores in state.scores.items():
        for metric, score in scores.items():
            yield Sample("mmare_score", (*labels, split, metric), score)
        for metric in SITE_SCORES:
            worst = state.worst(split, metric)
            if worst is not None:
                yield Sample("mmare_score_worst_site", (*labels, split, metric), worst[1])
                yield Sample("mmare_score_site_gap", (*labels, split, metric), worst[2])
