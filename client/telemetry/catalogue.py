"""The metrics of a site worker: names, kinds and labels.

They are for the hospital's own Prometheus and never leave the hospital. Rules and dashboards (`deploy/`)
depend on the names. Names of patients, files and runs are never labels.
"""

from __future__ import annotations

from typing import Final

from mmare.host.metric_families import Kind, Metric

__all__ = ["INFO_PACKAGES", "PHASE_SECONDS", "PREFIX", "SITE_METRICS"]

PREFIX: Final = "mmare_site_worker_"
PHASE_SECONDS: Final = f"{PREFIX}phase_duration_seconds"
INFO_PACKAGES: Final = ("federated-mmare", "flwr", "torch")


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(PREFIX + name, Kind.GAUGE, text, ("site", *labels))


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(PREFIX + name, Kind.COUNTER, text, ("site", *labels))


_VERSIONS: Final = (*(name.replace("-", "_") for name in INFO_PACKAGES), "python")

SITE_METRICS: Final = (
    _gauge("info", "Software versions of the worker.", *_VERSIONS),
    _gauge("start_timestamp_seconds", "When the worker was started."),
    _counter("messages_total", "Messages from the coordinator since the start."),
    _gauge("last_contact_timestamp_seconds", "When the coordinator last sent a message; absent before."),
    _counter("busy_seconds_total", "Seconds spent on messages."),
    _gauge("run_open", "1 from the first answer to a run until the one that ends it."),
    _gauge("round_deadline_seconds", "How long a round of the latest run waits for sites."),
    _gauge("relay_contact_timestamp_seconds", "When the coordinator last answered the worker's relay."),
    _gauge("program_up", "1 while a program supervised by mmare-site start is running.", "program"),
    _counter("program_starts_total", "Times that mmare-site start has started a program.", "program"),
    Metric(
        PHASE_SECONDS,
        Kind.HISTOGRAM,
        "Duration of the phases of a round at the site: evaluate, train.",
        ("site", "study", "phase"),
    ),
    _gauge("train_loss", "Mean train loss of the last round.", "study"),
    _gauge("approvals", "Studies that the hospital has approved."),
    _counter("releases_total", "Answers released, by task, from the audit log.", "task"),
    _counter("refusals_total", "Messages answered with an error code, from the audit log.", "code"),
    _counter("released_bytes_total", "Bytes released, from the audit log."),
    _gauge("releases_used", "Answers released for an approved study since its approval.", "study"),
    _gauge(
        "releases_allowed", "Answers that an approved study may release before it must be renewed.", "study"
    ),
    _gauge("epsilon_spent", "Differential privacy that the runs of a study have cost.", "study"),
    _gauge("epsilon_limit", "Differential privacy that all studies may cost; absent without a limit."),
    _gauge("ledger_intact", "Whether no line of the privacy ledger is missing or was changed."),
    _gauge("audit_log_bytes", "Size of the audit log."),
    _gauge("audit_log_intact", "Whether no line of the audit log is missing or was changed."),
    _counter(
        "predictions_total",
        "Predictions of a model, by class called, rounded down to the smallest count.",
        "model",
        "class",
    ),
    _counter(
        "predictions_by_pattern_total",
        "Predictions by presence pattern, rounded down to the smallest count.",
        "model",
        "pattern",
    ),
    _gauge(
        "unseen_pattern_ratio",
        "Share of the latest 500 inputs, from 100 on, whose presence pattern training never had.",
        "model",
    ),
    _gauge(
        "pattern_drift_ratio",
        "Total variation of their presence patterns from those of training, 0 to 1.",
        "model",
    ),
    _gauge(
        "input_distance",
        "Root mean square distance of their vectors from the training mean, in training deviations.",
        "model",
        "modality",
    ),
    _gauge(
        "scored_predictions", "Predictions whose outcome was known at the last scoring, from 100 on.", "model"
    ),
    _gauge("scored_auc", "AUC of them.", "model"),
    _gauge("scored_tested_auc", "AUC of the model's own test, as its package says.", "model"),
    _gauge("scored_brier", "Brier score of them.", "model"),
    _gauge("scored_log_loss", "Log-loss of them, nats.", "model"),
    _gauge("scored_ece", "Expected calibration error of them.", "model"),
    _gauge(
        "calibration_gap",
        "Share of a class among their outcomes, less its mean probability.",
        "model",
        "class",
    ),
    _gauge(
        "calibration_gap_error", "Standard error of the gap if the probabilities were true.", "model", "class"
    ),
    _gauge("scans", "Scans in the manifest; withheld if few.", "modality"),
    _gauge("scans_done", "Scans known to be usable or not, rounded down to the smallest count.", "modality"),
    _gauge("scans_usable", "Scans with an embedding; withheld if they, or the others, are few.", "modality"),
    _gauge(
        "scans_refused",
        "Scans that cannot be used, by reason; withheld if they, or the others, are few.",
        "modality",
        "reason",
    ),
    _gauge(
        "scan_refused_timestamp_seconds",
        "When a scan was last read and refused for a reason.",
        "modality",
        "reason",
    ),
    _counter("cache_hits_total", "Scans found in the cache, rounded down to the smallest count.", "modality"),
    _counter(
        "cache_misses_total", "Scans that had to be read, rounded down to the smallest count.", "modality"
    ),
    _gauge("embedding_active", "1 while mmare-site embed encodes scans; stays 1 if it was killed."),
    _gauge("embedding_timestamp_seconds", "When mmare-site embed last reported its progress."),
    _gauge("cache_bytes", "Size of a part of the cache.", "part"),
    _gauge("disk_free_bytes", "Free space on the disk of the cache or the audit log.", "place"),
    _gauge("disk_size_bytes", "Size of the disk of the cache or the audit log.", "place"),
    _gauge("gpu_memory_used_bytes", "Memory of a GPU in use, by any program.", "gpu"),
    _gauge("gpu_memory_size_bytes", "Memory of a GPU.", "gpu"),
    _gauge("gpu_busy_ratio", "Share of the last sampling period in which a GPU was busy, 0 to 1.", "gpu"),
    _gauge("gpu_reserved_bytes", "GPU memory reserved by the worker itself."),
)
