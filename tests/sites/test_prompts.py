"""The template language, and the MMIST prompt for every gap in the release."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmare.errors import StudyError
from mmare.study.choices import PromptMode
from sites.datasets.mmist import MMIST_PROMPT
from sites.prompts import compile_prompt

OMIT, EXPLICIT = PromptMode.OMIT, PromptMode.EXPLICIT

FULL = {
    "sex": "male",
    "race": "White",
    "age": "70-79",
    "vhl": "a VHL mutation",
    "pbrm1": "a PBRM1 mutation",
    "ttn": "without a TTN mutation",
    "pt": "T3",
    "pn": "NX",
    "pm": "MX",
    "stage": "III",
    "grade": "G3",
}
GENES = ("vhl", "pbrm1", "ttn")

# Doubled spaces and signs, leftovers of the template, a sentence that ends in the middle.
BROKEN = re.compile(r" {2}| [,.]|[,.]{2}|[{}\[\]|]| (and|with|of|the|include) ?[.,]")

WHO = "The patient is a male of White race, diagnosed at age 70-79"
HAS_GENES = ", who has a VHL mutation and a PBRM1 mutation without a TTN mutation."
NO_GENES = ", whose VHL, PBRM1 and TTN mutation status is not available."
TUMOR = (
    " Tumor characteristics include tumor stage T3 with node involvement at stage NX"
    " and pathological metastasis at stage MX."
)
NO_TUMOR = " The tumor, node and metastasis stages are not available."
STAGE = " The overall tumor stage is III and the tumor grade is G3."
GRADE_ONLY = " The tumor grade is G3."
NO_STAGE = " The overall tumor stage is not available and the tumor grade is G3."

# Every combination of missing fields that the release has, with the whole text in omit and in explicit mode.
GOLDEN = {
    (): (WHO + HAS_GENES + TUMOR + STAGE, WHO + HAS_GENES + TUMOR + STAGE),
    GENES: (WHO + "." + TUMOR + STAGE, WHO + NO_GENES + TUMOR + STAGE),
    ("stage", *GENES): (WHO + "." + TUMOR + GRADE_ONLY, WHO + NO_GENES + TUMOR + NO_STAGE),
    ("pm",): (
        WHO
        + HAS_GENES
        + " Tumor characteristics include tumor stage T3 with node involvement at stage NX."
        + STAGE,
        WHO
        + HAS_GENES
        + " Tumor characteristics include tumor stage T3 with node involvement at stage NX"
        + " and pathological metastasis at a stage that is not available."
        + STAGE,
    ),
    ("pt", "pn", "pm"): (WHO + HAS_GENES + STAGE, WHO + HAS_GENES + NO_TUMOR + STAGE),
    ("race",): (
        "The patient is a male, diagnosed at age 70-79" + HAS_GENES + TUMOR + STAGE,
        "The patient is a male whose race is not available, diagnosed at age 70-79"
        + HAS_GENES
        + TUMOR
        + STAGE,
    ),
    ("race", *GENES): (
        "The patient is a male, diagnosed at age 70-79." + TUMOR + STAGE,
        "The patient is a male whose race is not available, diagnosed at age 70-79"
        + NO_GENES
        + TUMOR
        + STAGE,
    ),
    ("age", "pt", "pn", "pm", "stage"): (
        "The patient is a male of White race" + HAS_GENES + GRADE_ONLY,
        "The patient is a male of White race, whose age at diagnosis is not available"
        + HAS_GENES
        + NO_TUMOR
        + NO_STAGE,
    ),
}


def without(missing):
    return {name: None if name in missing else value for name, value in FULL.items()}


@pytest.mark.parametrize("missing", [pytest.param(key, id="+".join(key) or "none") for key in GOLDEN])
def test_mmist_prompt_reads_for_every_gap_of_the_release(missing):
    prompt = compile_prompt(MMIST_PROMPT)
    omit, explicit = GOLDEN[missing]
    assert prompt.render(without(missing), OMIT) == omit
    assert prompt.render(without(missing), EXPLICIT) == explicit


def test_mmist_prompt_reads_for_every_possible_gap():
    """All 2047 combinations: clean punctuation, no value lost, explicit names what omit passes over."""
    prompt = compile_prompt(MMIST_PROMPT)
    assert set(prompt.fields) == set(FULL)
    for size in range(len(FULL)):
        for missing in itertools.combinations(FULL, size):
            values = without(missing)
            for mode in PromptMode:
                text = prompt.render(values, mode)
                assert text.startswith("The patient is a ")
                assert text.endswith(".")
                assert not re.search(
                    r" {2}| [,.]|[,.]{2}|,\.|[{}\[\]|]| (and|with|of|the|include)[ ]?[.,]", text
                ), text
                for name, value in values.items():
                    assert value is None or value in text, (name, text)
            explicit = prompt.render(values, EXPLICIT)
            assert bool(missing) == bool(re.search("not available|unknown", explicit)), explicit
            assert not re.search("not available|unknown", prompt.render(values, OMIT))


def test_without_any_field_there_is_no_text():
    prompt = compile_prompt("A [b {c}||no c].")
    assert prompt.render({}, EXPLICIT) is None
    assert prompt.render({"c": "  ", "d": "1"}, OMIT) is None
    assert prompt.render({"c": "1"}, OMIT) == "A b 1."


@pytest.mark.parametrize(
    ("template", "values", "omit", "explicit"),
    [
        pytest.param("{a} {b}", {"a": "1"}, "1 not available", "1 not available", id="outside-a-group"),
        pytest.param("{a}[, {b}]", {"a": "1"}, "1", "1, not available", id="no-wording"),
        pytest.param("{a}[, {b}||, b?]", {"a": "1"}, "1", "1, b?", id="wording"),
        pytest.param("[{a}-{b}|{a}|{b}]", {"b": "2"}, "2", "2", id="first-complete-alternative"),
        pytest.param("[{a}-{b}|{a}|{b}]", {"a": "1", "b": "2"}, "1-2", "1-2", id="alternatives-in-order"),
        pytest.param("[x[ {a}] {b}]", {"b": "2"}, "x 2", "x not available 2", id="inner-missing"),
        pytest.param("[x[ {a}] {b}]c", {"a": "1"}, "c", "x 1 not availablec", id="outer-missing"),
        pytest.param("{a}[ {b}||]", {"a": "1"}, "1", "1", id="empty-wording"),
        pytest.param("{a}[ {b}|| ([{c}||no c])]", {"a": "1"}, "1", "1 (no c)", id="group-in-wording"),
        pytest.param(
            "{ age at onset }", {"age at onset": "[5|{x}]"}, "[5|{x}]", "[5|{x}]", id="values-are-text"
        ),
    ],
)
def test_rendering(template, values, omit, explicit):
    prompt = compile_prompt(template)
    assert prompt.render(values, OMIT) == omit
    assert prompt.render(values, EXPLICIT) == explicit


def test_fields_are_named_once_in_order():
    assert compile_prompt("{b}[{a}|{b}[{d}]||{c}]").fields == ("b", "a", "d", "c")


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        pytest.param("{a", "'{' that is not closed, at character 1", id="open-brace"),
        pytest.param("a {b{c}}", "'{' that is not closed, at character 3", id="nested-brace"),
        pytest.param("a}", "'}' without the sign that opens it, at character 2", id="closing-brace"),
        pytest.param("[{a}", r"'\[' that is not closed, at character 1", id="open-bracket"),
        pytest.param("{a}]", "']' without the sign that opens it, at character 4", id="closing-bracket"),
        pytest.param("{a}|b", r"'\|' outside a group, at character 4", id="bar-outside"),
        pytest.param("{ }", "a field without a name, at character 1", id="no-name"),
        pytest.param("{a}[b]", "group that uses no field, at character 4", id="group-without-field"),
        pytest.param("[{a}|]", "empty alternative, at character 1", id="empty-alternative"),
        pytest.param("[{a}||b|c]", r"'\|' after the wording", id="alternative-after-wording"),
        pytest.param("[{a}||b||c]", r"'\|' after the wording", id="two-wordings"),
        pytest.param("nothing", "uses no field", id="no-field"),
        pytest.param("", "uses no field", id="empty"),
    ],
)
def test_malformed_templates_are_refused(template, sentence):
    with pytest.raises(StudyError, match=sentence):
        compile_prompt(template)


@given(st.text(alphabet="ab {}[]|", max_size=20))
def test_any_text_compiles_or_raises_a_study_error(template):
    try:
        prompt = compile_prompt(template)
    except StudyError:
        return
    values = dict.fromkeys(prompt.fields, "v")
    for mode in PromptMode:
        assert "not available" not in prompt.render(values, mode)
        assert prompt.render({}, mode) is None
