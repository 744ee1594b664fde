"""The card as an Applied Model Card of the Coalition for Health AI: XML by their schema v0.2.

https://mc.chai.org/v0.2/schema.xsd fixes elements and their order; texts are Markdown, values JSON.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree

from mmare.study.choices import TaskName
from server.release.card import NOT_STATED

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["applied_card"]

_SPACE: Final = "https://mc.chai.org/v0.2/schema.xsd"
_KEYWORDS: Final = ["federated learning", "missing modalities"]
_TESTED: Final = "on test rows of every site that took part in training, which trained nothing"


def applied_card(card: Mapping[str, Any]) -> bytes:
    """The document, UTF-8."""
    ElementTree.register_namespace("", _SPACE)
    root = ElementTree.Element(f"{{{_SPACE}}}AppliedModelCard")
    _fill(root, _content(card))
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)
    return text + b"\n"


def _fill(parent: ElementTree.Element, content: Mapping[str, Any]) -> None:
    for name, value in content.items():
        for each in value if isinstance(value, list) else [value]:
            element = ElementTree.SubElement(parent, f"{{{_SPACE}}}{name}")
            if isinstance(each, dict):
                _fill(element, each)
            else:
                element.text = "".join(
                    letter for letter in str(each) if letter.isprintable() or letter == "\n"
                )


def _content(card: Mapping[str, Any]) -> dict[str, Any]:
    said, training = card["statements"], card["training"]
    inputs = [f"{each['modality']} ({each['kind']}, {each['width']} numbers)" for each in card["inputs"]]
    encoders = {each["encoder"] for each in card["inputs"]} - {"given"}
    outcomes = f"{_outputs(card)}; outcome: {said['outcome']}"
    summary = _or(said["summary"], f"Tells {card['tells']}. For {card['notice']}.")
    return {
        "BasicInfo": {
            "ModelName": _or(said["title"], card["study"]),
            "ModelDeveloper": said["developer"],
            "DeveloperContact": said["contact"],
        },
        "ReleaseInfo": {
            "ReleaseStage": card["notice"],
            "ReleaseDate": training["trained"][:10],
            "ReleaseVersion": _or(said["version"], card["provenance"]["run"]),
            "GlobalAvailability": said["availability"],
        },
        "ModelSummary": {"Summary": summary, "Keywords": {"Keyword": _KEYWORDS}},
        "UsesAndDirections": {
            "IntendedUseAndWorkflow": said["intended_use"],
            "PrimaryIntendedUsers": said["intended_users"],
            "HowToUse": "mmare-site install, then mmare-site predict, at a site with the same encoders",
            "TargetedPatientPopulation": said["population"],
            "CautionedOutOfScopeSettings": said["out_of_scope"],
        },
        "Warnings": {
            "KnownRisksAndLimitations": "\n".join([said["risks"], *card["notes"]]),
            "KnownBiasesOrEthicalConsiderations": said["biases"],
            "ClinicalRiskLevel": said["risk_level"],
        },
        "TrustIngredients": {
            "AISystemFacts": {
                "OutcomesAndOutputs": outcomes,
                "ModelType": f"{card['model']['name']}, {card['model']['trainable']} parameters",
                "FoundationModels": ", ".join(sorted(encoders)) or "none",
                "InputDataSource": f"{len(training['rows'])} sites: {', '.join(training['rows'])}",
                "OutputAndInputDataTypes": f"input: {'; '.join(inputs)}; output: {_outputs(card)}",
                "DevelopmentDataCharacterization": _rows(training["rows"]),
                "BiasMitigationApproaches": said["fairness"],
                "OngoingMaintenance": said["maintenance"],
            },
            "TransparencyInformation": {
                "FundingSource": said["funding"],
                "StakeholdersConsulted": said["consulted"],
            },
        },
        "KeyMetrics": _metrics(card),
        "Resources": {
            "PeerReviewedPublications": said["publications"],
            "PatientConsentOrDisclosure": said["consent"],
        },
        "Bibliography": "",
    }


def _metrics(card: Mapping[str, Any]) -> dict[str, Any]:
    test = card["test"]
    headline = card["headline"]
    sites = [
        _result(f"{card['metrics'][headline]} at {site}", scores[headline])
        for site, scores in test["sites"].items()
    ]
    pooled = {name: _result(title, test["pooled"][name]) for name, title in card["metrics"].items()}
    ranks = ("auc", "balanced_accuracy", "concordance", "r2")
    useful = [pooled[name] for name in pooled if name.startswith(ranks)]
    safe = [pooled[name] for name in pooled if not name.startswith(ranks)]
    return {
        "UsefulnessUsabilityEfficacy": _key("to tell patients apart", useful, test),
        "FairnessEquity": _key("to serve every site alike", sites or [_result("by site", None)], test),
        "SafetyReliability": _key("to give answers that come true", safe, test),
    }


def _outputs(card: Mapping[str, Any]) -> str:
    if card["task"] == TaskName.CLASSIFICATION:
        return f"probabilities of {', '.join(card['classes'])}"
    return str(card["tells"])


def _key(goal: str, results: list[dict[str, str]], test: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "MetricGoal": goal,
        "Results": {"MetricResult": results},
        "Interpretation": NOT_STATED,
        "TestType": f"internal, {_TESTED}",
        "TestingDataDescription": f"{test['pooled']['n']} patients; sites: {', '.join(test['sites'])}",
        "ValidationProcessAndJustification": "all choices are made on validation rows",
    }


def _result(label: str, values: list[float] | None) -> dict[str, str]:
    if values is None:
        value: dict[str, Any] = {"kind": "string", "value": NOT_STATED}
    else:
        value = {"kind": "single", "value": round(values[0], 4), "unit": ""}
        label += f" (95 % interval {values[1]:.3f} to {values[2]:.3f})" if len(values) > 1 else ""
    return {"Label": label, "ValueJson": json.dumps(value)}


def _rows(rows: Mapping[str, Any]) -> str:
    found = []
    for site, splits in rows.items():
        sizes = splits.get("train") or {}
        told = ", ".join(f"{'withheld' if n is None else n} {name}" for name, n in sizes.items())
        found.append(f"{site}: {told or NOT_STATED}")
    return "train rows at " + "; ".join(found)


def _or(text: str, instead: str) -> str:
    return instead if text == NOT_STATED else text
