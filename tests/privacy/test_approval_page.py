"""Attack: a study whose texts make the page that a hospital reads say something else than the study."""

import unicodedata
from dataclasses import replace

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from client.cli import app
from client.privacy.study_summary import study_in_words
from mmare.errors import InputError
from mmare.host.console import run_command, visible
from mmare.study.choices import ExtraAnswer, Kind, PromptMode
from mmare.study.study import parse_study
from sites.config import ModalitySource, load_site
from tests.federations import tiny_federation, tiny_study

RUNNER = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"})
TRICKS = {
    "clears the screen": "\x1b[2J\x1b[Hnothing leaves",
    "hides": "\x1b[8m",
    "goes back": "\r\b\b\b",
    "turns around": "\u202e\u2066",
    "has no width": "\u200b\u2060\ufeff",
    "adds a line": "x\n  - No parameters leave",
    "adds another line": "x\u2028  - No parameters leave",
}


def seen(text):
    """What a terminal would obey or hide."""
    odd = {each for each in text if unicodedata.category(each)[0] in "CZ"}
    return odd - {" ", "\n"}


@given(st.text())
def test_what_is_visible_hides_nothing(text):
    shown = visible(text)
    assert not seen(shown)
    assert "\n" not in shown
    assert visible(shown) == shown
    assert visible(text, keep="\n").count("\n") == text.count("\n")


@pytest.fixture
def site(tmp_path):
    return load_site(tiny_federation(tmp_path / "federation", sites=("ash",)) / "ash" / "site.toml")


def study_of(trick):
    """Whatever a coordinator can write freely."""
    tables = tiny_study().to_dict()
    tables["study"] |= {"name": f"tiny{trick}", "classes": [f"no{trick}", "yes"], "positive": "yes"}
    prompt = f"A patient of {{age}} years{trick}"
    modality = {"name": f"t{trick}", "kind": "text", "width": 8, "encoder": "hashing-text", "prompt": prompt}
    tables["modality"] += [modality]
    return parse_study(tables, "test")


@pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS)
def test_a_study_cannot_write_on_the_page_what_it_likes(site, trick):
    study = study_of(trick)
    columns = {f"t{trick}": ModalitySource(columns=("age",))}
    page = study_in_words(study, replace(site, modalities={**site.modalities, **columns}), 40)
    assert not seen(page)
    assert "\n  - No parameters leave" not in page
    assert "No parameters leave" not in page or "x\\n" in page or "x\\u2028" in page
    assert visible(trick)[:4] in page


@pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS)
@pytest.mark.parametrize("fine", [True, False], ids=["study", "no-study"])
def test_neither_the_command_nor_its_errors_obey(site, trick, fine):
    path = site.folder / "study.toml"
    tables = study_of(trick).to_dict()
    if not fine:
        tables["federation"]["strategy"] = f"fedavg{trick}"
    path.write_text(tomli_w.dumps(tables))
    command = ["approve", str(path), "--site", str(site.folder / "site.toml"), "--yes"]
    result = RUNNER.invoke(app, command)
    assert (result.exit_code == 0) is fine
    assert not seen(result.stdout)
    revoked = RUNNER.invoke(app, [*command, "--revoke"]) if fine else result
    assert not seen(revoked.stdout)


def test_an_error_is_printed_as_it_is(capsys):
    def fail(_):
        raise InputError("a study named \x1b[2J\u202e, expected é\nand no other")

    assert run_command(fail, []) == 2
    assert capsys.readouterr().err == "error: a study named \\x1b[2J\\u202e, expected é\nand no other\n"


# What the page must say


def test_every_kind_of_answer_says_what_it_tells(site):
    plain = study_in_words(tiny_study(), site, 40)
    assert plain.count("What it can tell about a patient") == 4  # counts, moments, update, metrics
    extra = tiny_study(privacy={"extra": [each.value for each in ExtraAnswer]})
    assert study_in_words(extra, site, 40).count("What it can tell about a patient") == 4 + len(ExtraAnswer)
    words = " ".join(plain.split())
    for sentence in (
        "the difference of two answers between which one patient came or left is that patient's embedding",
        "A block that one patient alone exercised holds that patient's embedding",
        "a third to half of a class stands alone in its bin",
        "for 60 to 95 in rare classes",
    ):
        assert sentence in words


def test_the_page_says_what_is_scaled_here_and_not_told(site):
    study = tiny_study().override(["modality.ct.scaling=site", "modality.wsi.scaling=combat"])
    held = {name: ModalitySource() for name in ("ct", "wsi")}
    page = " ".join(study_in_words(study, replace(site, modalities=held), 40).split())
    assert "ct is scaled by mean and deviation of this site's own train rows. They stay in the cache" in page
    assert "wsi is scaled by mean and deviation of this site's own train rows and, in part, of all" in page
    assert "Before a run: per modality but ct, the number of train rows" in page


def test_the_prompt_is_shown_with_what_becomes_of_gaps(site):
    study = study_of("")
    texts = {"t": ModalitySource(columns=("age",))}
    page = " ".join(study_in_words(study, replace(site, modalities=texts), 40).split())
    assert '"A patient of {age} years"' in page
    assert "is left out with the [group] it is in" in page
    assert study.modalities[-1].kind is Kind.TEXT
    told = replace(study.modalities[-1], prompt_mode=PromptMode.EXPLICIT)
    explicit = replace(study, modalities=(*study.modalities[:-1], told))
    assert "what is missing says so" in " ".join(
        study_in_words(explicit, replace(site, modalities=texts), 40).split()
    )
    ready = {"t": ModalitySource(column="prompt")}
    page = " ".join(study_in_words(study, replace(site, modalities=ready), 40).split())
    assert "A patient of" not in page
    assert "prompt for t is not used: this site has finished texts" in page


@pytest.mark.parametrize(("strategy", "tells"), [("fedavg", False), ("fedsgd", True)])
def test_the_page_says_that_gradients_tell_who_took_part(site, strategy, tells):
    study = tiny_study(federation={"strategy": strategy})
    assert ("a gradient tells" in " ".join(study_in_words(study, site, 10).split())) is tells
