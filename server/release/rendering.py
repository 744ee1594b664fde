"""The card for readers: a Hugging Face README, an HTML page, an Applied Model Card, a TRIPOD+AI checklist."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from mmare.package.sealed import NOTICE
from mmare.study.choices import TaskName
from server.release.applied_card import applied_card
from server.release.card import NOT_STATED
from server.release.tripod import checklist

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["renderings"]

_HEADINGS: Final = {
    "Use": {
        "Intended use": "intended_use",
        "Intended users": "intended_users",
        "Population": "population",
        "Setting": "setting",
        "Out of scope": "out_of_scope",
        "Outcome": "outcome",
        "Known risks and limitations": "risks",
        "Known biases and ethical considerations": "biases",
    },
    "Makers": {
        "Developer": "developer",
        "Contact": "contact",
        "Licence": "licence",
        "Funding": "funding",
        "Ethical approval": "ethics",
        "Registration": "registration",
    },
}


def renderings(card: Mapping[str, Any]) -> dict[str, bytes]:
    """Files of a package by name, all of the same card."""
    import jinja2  # noqa: PLC0415 - only when a package is made

    plain = jinja2.Environment(
        loader=jinja2.PackageLoader("server.release"),
        autoescape=jinja2.select_autoescape(["html", "html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plain.filters.update(scores=_scores, cell=_cell)
    test = card["test"]
    point = card["decisions"]["report"].get("operating_point", {}).get("test")
    view = {
        "card": card,
        "title": _named(card["statements"]["title"], card["study"]),
        "headings": _HEADINGS,
        "metrics": card["metrics"],
        "front": _front_matter(card),
        "tested": [
            ("all sites", test["pooled"]),
            *test["sites"].items(),
            *((f"patients with {_held(card, pattern)}", row) for pattern, row in test["patterns"].items()),
        ],
        "called": [("all sites", point["pooled"]), *point["sites"].items()] if point else [],
        "items": checklist(card),
        "unknown": NOT_STATED,
        "notice": NOTICE,
    }
    pages = {
        name: plain.get_template(f"{name}.j2").render(view).encode()
        for name in ("README.md", "card.html", "tripod-ai.md")
    }
    return {**pages, "card.xml": applied_card(card)}


def _held(card: Mapping[str, Any], pattern: str) -> str:
    """The modalities of a presence pattern."""
    names = (each["modality"] for each in card["inputs"])
    return ", ".join(name for name, there in zip(names, pattern, strict=True) if there == "1")


def _named(text: str, instead: str) -> str:
    return instead if text == NOT_STATED else text


def _front_matter(card: Mapping[str, Any]) -> str:
    """YAML, each value as JSON, which is YAML too."""
    licence = card["statements"]["licence"]
    pooled = card["test"]["pooled"]
    found = [
        {"type": name, "name": title, "value": round(pooled[name][0], 4)}
        for name, title in card["metrics"].items()
        if pooled[name] is not None
    ]
    # Hugging Face has no task of times to an event
    kind = "tabular-classification" if card["task"] == TaskName.CLASSIFICATION else "tabular-regression"
    result = {
        "task": {"type": kind, "name": f"{card['task']} with missing modalities"},
        "dataset": {"type": "federated", "name": card["study"]},
        "metrics": found,
    }
    content: dict[str, Any] = {
        **({} if licence == NOT_STATED else {"license": licence.lower()}),
        "library_name": "mmare",
        "pipeline_tag": kind,
        "tags": ["federated-learning", "medical", "multimodal", "missing-modalities"],
        "model-index": [{"name": card["study"], "results": [result]}],
    }
    return "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in content.items())


def _scores(values: list[float] | None) -> str:
    """A value with its interval, to three decimals."""
    if values is None:
        return NOT_STATED
    value, *ends = (f"{each:.3f}" for each in values)
    return f"{value} ({ends[0]} to {ends[1]})" if ends else value


def _cell(text: object) -> str:
    """Text in a cell of a Markdown table."""
    plain = "".join(letter for letter in " ".join(str(text).split()) if letter.isprintable())
    return re.sub(r"([|<>`*_\[\]])", r"\\\1", plain)
