import pickle
import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest
import tomli_w

from mmare.errors import InputError, StudyError
from mmare.study.choices import Mode
from server.run.request import RunRequest, default_config
from tests.federations import tiny_study

SETTINGS = ("training.rounds=5", 'model.name="late-mean"')


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(tomli_w.dumps(tiny_study().to_dict()))
    return path


def test_the_keys_of_the_app_are_the_fields_and_have_their_defaults():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    config = project["tool"]["flwr"]["app"]["config"]
    assert config == default_config()
    assert config.keys() == {field.name for field in fields(RunRequest)} - {"study"}
    assert {key: type(value) for key, value in config.items()} == {
        key: type(value) for key, value in default_config().items()
    }


def test_it_passes_flowers_edge_unchanged(study, tmp_path):
    request = RunRequest(study, tmp_path / "run", Mode.LOCAL, SETTINGS, True, "ash", 3, "ray", True)
    config = request.to_config()
    assert {type(value) for value in config.values()} <= {str, int, bool}
    assert config["set"] == ";".join(SETTINGS)
    assert RunRequest.from_config(config) == request
    assert RunRequest.from_config(config).study == request.study
    assert request.study.training.rounds == 5


def test_an_empty_configuration_is_the_defaults(study):
    request = RunRequest.from_config({"federation": str(study), "set": " ; training.rounds=5 ;"})
    assert request == RunRequest(study, set=("training.rounds=5",))
    assert request.out == Path("runs/tiny-federated-seed3").absolute()


def test_the_study_is_read_once(study, tmp_path):
    request = RunRequest(study.parent, tmp_path / "run", set=SETTINGS)
    study.unlink()
    assert replace(request, nodes=3).study is request.study
    assert pickle.loads(pickle.dumps(request)).study == request.study  # noqa: S301 - just written
    with pytest.raises(StudyError, match=r"study\.toml"):
        RunRequest(study, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param({"mode": "central"}, "mode must be one of federated, .*, found 'central'", id="mode"),
        pytest.param({"set": "training.rond=5"}, "unknown key 'rond'", id="set"),
        pytest.param({"federation": "no/such"}, "no/such", id="federation"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(study, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        RunRequest.from_config({"federation": str(study), **changes})


def test_a_setting_that_would_be_read_as_two_is_refused(study):
    with pytest.raises(InputError, match=r"--set 'study.name=a;b': a value must not hold a semicolon"):
        RunRequest(study, set=("study.name=a;b",))
