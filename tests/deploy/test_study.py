"""The example of a study for real hospitals: the coordinator takes it, and it fits the example of a site."""

import shutil
from pathlib import Path

import pytest

from client.privacy.study_summary import study_in_words
from mmare.study.study import load_study
from server.run.folder import check_run
from server.run.request import RunRequest
from sites.config import load_site
from sites.prompts import compile_prompt

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture
def site(tmp_path):
    shutil.copy(DEPLOY / "systemd" / "site.toml", tmp_path)
    return load_site(tmp_path / "site.toml")


def test_the_example_can_be_run():
    check_run(RunRequest(DEPLOY / "study.toml"))


def test_it_fits_the_example_of_a_site(site):
    study = load_study(DEPLOY / "study.toml")
    assert {each.name for each in study.modalities} == set(site.modalities)
    prompts = [compile_prompt(each.prompt) for each in study.modalities if each.prompt is not None]
    columns = {name for held in site.modalities.values() for name in held.columns}
    assert {field for prompt in prompts for field in prompt.fields} == columns
    assert "tell alive from dead" in study_in_words(study, site, 1)
