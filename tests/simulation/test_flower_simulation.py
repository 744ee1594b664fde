from pathlib import Path

import pytest

from mmare.errors import InputError
from simulation.flower_simulation import _backend, _config

ROOT = Path(__file__).parents[2]


def test_values_go_over_the_defaults_of_the_app():
    config = _config(
        ROOT, 'federation="/a b/fed" overwrite=true nodes=3 set="training.rounds=5;model.width=8"'
    )
    assert config["federation"] == "/a b/fed"
    assert config["overwrite"] is True
    assert config["nodes"] == 3
    assert config["set"] == "training.rounds=5;model.width=8"
    assert config["mode"] == "federated"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("federaton=x", "unknown key 'federaton'", id="unknown"),
        pytest.param("federation", "unknown key 'federation' in 'federation'", id="no-value"),
        pytest.param("overwrite=yes", "overwrite must be true or false, found 'yes'", id="not-a-bool"),
        pytest.param("nodes=many", "nodes must be a whole number, found 'many'", id="not-a-number"),
        pytest.param('out="x', "No closing quotation", id="quotes"),
    ],
)
def test_bad_run_config_is_one_sentence(text, sentence):
    with pytest.raises(InputError, match=sentence):
        _config(ROOT, text)


def test_a_folder_without_the_app_is_refused(tmp_path):
    with pytest.raises(InputError, match="no Flower app"):
        _config(tmp_path, "")


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_bad_backend_config_is_refused(text):
    with pytest.raises(InputError, match="--backend-config"):
        _backend(text)
    assert _backend("") == {}
