"""The metrics of a site worker: their names, kinds and labels.

They are for the hospital's own Prometheus; nothing of them leaves the hospital. The names are a promise to
rules and dashboards (`deploy/`). Names of patients, files and runs are never labels.
"""

from __future__ import annotations

from typing import Final

from mmare.host.metric_families import Kind, Metric

__all__ = ["INFO_PACKAGES", "PHASE_SECONDS", "SITE_METRICS"]

PHASE_SECONDS: Final = "mmare_site_worker_phase_duration_seconds"
INFO_PACKAGES: Final = ("federated-mmare", "flwr", "torch")
_C, _G = Kind.COUNTER, Kind.GAUGE
_SITE: Final = ("site",)
_STUDY: Final = ("site", "study")
_MODALITY: Final = ("site", "modality")
_PLACE: Final = ("site", "place")
_GPU: Final = ("site", "gpu")

SITE_METRICS: Final = (
    Metric(
        "mmare_site_worker_info",
        _G,
        "Versions that the worker of a site runs on.",
        (*_SITE, *(name.replace("-", "_") for name in INFO_PACKAGES), "python"),
    ),
    Metric("mmare_site_worker_start_timestamp_seconds", _G, "When the worker was started.", _SITE),
    Metric("mmare_site_worker_messages_total", _C, "Messages of the coordinator since the start.", _SITE),
    Metric(
        "mmare_site_worker_last_contact_timestamp_seconds",
        _G,
        "When the coordinator last asked; nothing before it has.",
        _SITE,
    ),
    Metric("mmare_site_worker_busy_seconds_total", _C, "Seconds at work on messages.", _SITE),
    Metric(
        "mmare_site_worker_run_open",
        _G,
        "1 from the first answer to a run until the one that ends it.",
        _SITE,
    ),
    Metric(
        "mmare_site_worker_round_deadline_seconds",
        _G,
        "How long a round of the run that asked last waits for sites.",
        _SITE,
    ),
    Metric(
        "mmare_site_worker_relay_contact_timestamp_seconds",
        _G,
        "When the coordinator last answered the relay beside the worker.",
        _SITE,
    ),
    Metric(
        "mmare_site_worker_program_up",
        _G,
        "1 while a program that mmare-site start keeps running is there.",
        (*_SITE, "program"),
    ),
    Metric(
        "mmare_site_worker_program_starts_total",
        _C,
        "Times that mmare-site start has started a program.",
        (*_SITE, "program"),
    ),
    Metric(
        PHASE_SECONDS,
        Kind.HISTOGRAM,
        "Duration of the phases of a round at the site: evaluate, train.",
        (*_STUDY, "phase"),
    ),
    Metric("mmare_site_worker_train_loss", _G, "Mean train loss of the last round.", _STUDY),
    Metric("mmare_site_worker_approvals", _G, "Studies that the hospital has approved.", _SITE),
    Metric(
        "mmare_site_worker_releases_total",
        _C,
        "Answers that left, by what was asked for, as the audit log has them.",
        (*_SITE, "task"),
    ),
    Metric(
        "mmare_site_worker_refusals_total",
        _C,
        "Messages that were answered by a code, as the audit log has them.",
        (*_SITE, "code"),
    ),
    Metric(
        "mmare_site_worker_released_bytes_total", _C, "Bytes that left, as the audit log has them.", _SITE
    ),
    Metric(
        "mmare_site_worker_releases_used",
        _G,
        "Answers that left for an approved study since its approval.",
        _STUDY,
    ),
    Metric(
        "mmare_site_worker_releases_allowed",
        _G,
        "Answers that may leave for an approved study until it must be approved again.",
        _STUDY,
    ),
    Metric("mmare_site_worker_audit_log_bytes", _G, "Size of the audit log.", _SITE),
    Metric("mmare_site_worker_scans", _G, "Scans that the manifest names; none where few.", _MODALITY),
    Metric(
        "mmare_site_worker_scans_done",
        _G,
        "Scans of which embedding knows whether they can be used, in steps of the smallest count.",
        _MODALITY,
    ),
    Metric(
        "mmare_site_worker_scans_usable",
        _G,
        "Scans with an embedding; none where they, or the others, are few.",
        _MODALITY,
    ),
    Metric(
        "mmare_site_worker_scans_refused",
        _G,
        "Scans that cannot be used, by reason; none where they, or the others, are few.",
        (*_MODALITY, "reason"),
    ),
    Metric(
        "mmare_site_worker_scan_refused_timestamp_seconds",
        _G,
        "When a scan was last read and refused for a reason.",
        (*_MODALITY, "reason"),
    ),
    Metric(
        "mmare_site_worker_cache_hits_total",
        _C,
        "Scans that embedding found in the cache, in steps of the smallest count.",
        _MODALITY,
    ),
    Metric(
        "mmare_site_worker_cache_misses_total",
        _C,
        "Scans that embedding had to read, in steps of the smallest count.",
        _MODALITY,
    ),
    Metric(
        "mmare_site_worker_embedding_active",
        _G,
        "1 while mmare-site embed encodes scans; it stays 1 where it was killed.",
        _SITE,
    ),
    Metric(
        "mmare_site_worker_embedding_timestamp_seconds",
        _G,
        "When mmare-site embed last said how far it is.",
        _SITE,
    ),
    Metric("mmare_site_worker_cache_bytes", _G, "Size of a part of the cache.", (*_SITE, "part")),
    Metric(
        "mmare_site_worker_disk_free_bytes", _G, "Space left where the cache or the audit log lies.", _PLACE
    ),
    Metric(
        "mmare_site_worker_disk_size_bytes", _G, "Size of the disk where the cache or the log lies.", _PLACE
    ),
    Metric(
        "mmare_site_worker_gpu_memory_used_bytes",
        _G,
        "Memory of a GPU that is in use, by whatever program.",
        _GPU,
    ),
    Metric("mmare_site_worker_gpu_memory_size_bytes", _G, "Memory of a GPU.", _GPU),
    Metric(
        "mmare_site_worker_gpu_busy_ratio",
        _G,
        "Share of the last moment in which a GPU computed, 0 to 1.",
        _GPU,
    ),
    Metric("mmare_site_worker_gpu_reserved_bytes", _G, "GPU memory that the worker itself has taken.", _SITE),
)
