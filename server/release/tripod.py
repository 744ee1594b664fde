"""A model's card by the items of TRIPOD+AI (Collins et al., BMJ 2024;385:e078378), for its reporting.

Item numbers are the checklist's, topics are paraphrased; what neither run nor makers tell is not stated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmare.study.choices import TaskName
from server.release.card import NOT_STATED

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["checklist"]

_TABLES = "tables in README.md and results.json"


def checklist(card: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Item, topic, and what the package says of it."""
    said, training, test = card["statements"], card["training"], card["test"]
    report = card["decisions"]["report"]
    inputs = "; ".join(
        f"{each['modality']}: {each['kind']}, {each['encoder']} ({each['fingerprint']})"
        for each in card["inputs"]
    )
    sites = ", ".join(training["rows"])
    calibrated = "temperature and shift by summed losses" if "calibration" in report else NOT_STATED
    point = card["decisions"].get("operating_point")
    called = f"{card['tells']}"
    if card["task"] == TaskName.CLASSIFICATION:
        called = f"probabilities of {', '.join(card['classes'])}; " + (
            f"called by {point['rule']}" if point else "the most probable class is called"
        )
    return [
        ("1", "Title", said["title"]),
        ("2", "Abstract", said["summary"]),
        ("3a", "Context in health care", said["setting"]),
        ("3b", "Target population and users", _joined(said["population"], said["intended_users"])),
        ("3c", "Health inequalities", said["biases"]),
        ("4", "Objectives", said["intended_use"]),
        ("5a", "Sources of data", f"{len(training['rows'])} sites: {sites}"),
        ("5b", "Dates of data", said["dates"]),
        ("6a", "Setting", said["setting"]),
        ("6b", "Eligibility", said["eligibility"]),
        ("6c", "Treatments", said["treatments"]),
        ("7", "Preparation of data", "encoders.json, encodings/, moments.json"),
        ("8a-c", "Outcome and its assessment", said["outcome"]),
        ("9a-c", "Predictors and their measurement", inputs),
        ("10", "Sample size", said["sample_size"]),
        ("11", "Missing data", "nothing is imputed; the model takes which modalities a patient has"),
        ("12a", "Use of data", "training, validation and test rows of every site"),
        (
            "12b",
            "Handling of predictors",
            "scaling by moments pooled over the sites (moments.json), or as card.json says",
        ),
        (
            "12c",
            "Type and building of the model",
            f"{card['model']['name']}, {training['strategy']}; study.toml",
        ),
        ("12d", "Heterogeneity between sites", "each site is tested on its own, the worst is named"),
        ("12e", "Measures of performance", ", ".join(card["metrics"].values())),
        ("12f", "Updating of the model", calibrated),
        ("12g", "Calculation of predictions", "weights.safetensors, calibration.json"),
        ("13", "Class imbalance", f"oversampling of train rows: {training['oversample']}"),
        ("14", "Fairness", said["fairness"]),
        ("15", "Output of the model", called),
        ("16", "Development and evaluation data", "the same sites, other patients"),
        ("17", "Ethical approval", said["ethics"]),
        ("18a", "Funding", said["funding"]),
        ("18b", "Conflicts of interest", said["conflicts"]),
        ("18c", "Protocol", said["protocol"]),
        ("18d", "Registration", said["registration"]),
        ("18e", "Sharing of data", said["data_sharing"]),
        ("18f", "Sharing of code", said["code"]),
        ("19", "Involvement of patients and public", said["consulted"]),
        ("20a", "Flow of participants", _flow(card)),
        ("20b-c", "Characteristics of participants", said["population"]),
        ("21", "Participants and outcomes in each analysis", "table of rows in README.md"),
        ("22", "Specification of the model", "study.toml, weights.safetensors"),
        ("23a", "Performance with intervals", _TABLES),
        ("23b", "Heterogeneity of performance", f"{_TABLES}; worst site: {test['worst_site'] or NOT_STATED}"),
        ("24", "Results of updating", "calibration in README.md" if "calibration" in report else NOT_STATED),
        ("25", "Interpretation", said["summary"]),
        ("26", "Limitations", said["risks"]),
        ("27a", "Poor or missing input", "other encoders are refused; unseen patterns are named"),
        ("27b", "Skills of users", said["intended_users"]),
        ("27c", "Next steps", said["maintenance"]),
    ]


def _joined(*texts: str) -> str:
    told = [text for text in texts if text != NOT_STATED]
    return "; ".join(told) or NOT_STATED


def _flow(card: Mapping[str, Any]) -> str:
    left = card["left_out"]
    return (
        f"{len(left)} times a site was left out, with the reason in results.json"
        if left
        else "no site was left out"
    )
