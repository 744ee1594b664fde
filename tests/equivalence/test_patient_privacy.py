"""A run under differential privacy: the same bits on every way to its end, and paid for once."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from mmare.errors import InputError, RunError
from tests.federations import SITES, KilledError, events, outcome, request_of, run_nodes, tiny_federation
from tests.privacy.private import private_study

SETTINGS = ("federation.deadline_s=300", "training.rounds=3", "privacy.min_count=0")


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    return tiny_federation(tmp_path_factory.mktemp("federation") / "fed", private_study(), patients=80)


@pytest.fixture(scope="module")
def straight(federation, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "straight"
    run_nodes(federation, out, settings=SETTINGS)
    return out


def charges(federation, out):
    """Lines of the ledgers on a run, by site."""
    run = events(out)[0]["run"]
    return {
        site: sum(
            run in line for line in (federation / site / "cache" / "budget.jsonl").read_text().splitlines()
        )
        for site in SITES
    }


def killed_at(number, kind):
    def listener(event):
        if event["event"] == kind and event.get("round") == number:
            raise KilledError

    return listener


@pytest.mark.slow
@pytest.mark.parametrize(("number", "kind"), [(2, "site_update"), (2, "aggregated"), (3, "validated")])
def test_a_killed_run_ends_with_the_same_bits_and_is_charged_once(
    federation, straight, tmp_path, number, kind
):
    with pytest.raises(KilledError):
        run_nodes(federation, tmp_path / "run", settings=SETTINGS, listeners=(killed_at(number, kind),))
    run_nodes(federation, tmp_path / "run", settings=SETTINGS)
    assert outcome(tmp_path / "run") == outcome(straight)
    assert charges(federation, tmp_path / "run") == dict.fromkeys(SITES, 1)


@pytest.mark.slow
def test_gradients_are_private_in_one_step_of_all_rows_a_round(federation, tmp_path):
    models = {}
    for kind in ("one", "again"):
        run_nodes(federation, tmp_path / kind, settings=[*SETTINGS, "federation.strategy=fedsgd"])
        models[kind] = load_file(tmp_path / kind / "model" / "model.safetensors")
    assert all(np.array_equal(value, models["again"][name]) for name, value in models["one"].items())
    assert charges(federation, tmp_path / "one") == dict.fromkeys(SITES, 1)


def test_the_last_rounds_model_is_the_result_and_alone_is_validated(straight):
    assert [line["round"] for line in events(straight, "validated")] == [3]
    result = json.loads((straight / "result.json").read_text())
    assert (result["best_round"], result["rounds_run"], result["left_out"]) == (3, 3, [])
    assert set(result["metrics"]["test"]["sites"]) == set(SITES)
    assert result["metrics"]["test"]["patterns"] == {}


def test_nothing_but_noisy_numbers_is_in_the_journal(straight):
    for line in events(straight, "roll_call"):
        assert line["counts"] == {"splits": {}, "patterns": {}}
        assert line["samples"] % 10 == 0
    assert {line["train_loss"] for line in events(straight, "site_update")} == {None}
    assert {line["n"] for line in events(straight, "scaling")} == {0}
    for line in events(straight, "aggregated"):
        assert len(set(line["exposure"].values())) == 1


@pytest.mark.slow
def test_secure_sums_of_noisy_updates_are_their_mean(federation, straight, tmp_path):
    secure = [*SETTINGS, "privacy.secure_sum=true", "federation.min_sites=3"]
    run_nodes(federation, tmp_path / "run", settings=secure)
    assert events(tmp_path / "run", "aggregated")[0]["train_loss"] is None
    found, plain = (load_file(out / "model" / "model.safetensors") for out in (tmp_path / "run", straight))
    assert found.keys() == plain.keys()
    assert all(np.isfinite(value).all() for value in found.values())
    assert charges(federation, tmp_path / "run") == dict.fromkeys(SITES, 1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["local", "centralised"])
def test_other_modes_are_private_too(federation, tmp_path, mode):
    run_nodes(federation, tmp_path / "run", mode=mode, settings=SETTINGS)
    assert {line["train_loss"] for line in events(tmp_path / "run", "site_update")} <= {None}


def test_a_site_whose_budget_is_spent_is_left_out_by_its_code(tmp_path):
    folder = tiny_federation(tmp_path / "fed", private_study(), patients=80)
    for site in SITES[:2]:
        file = folder / site / "site.toml"
        file.write_text(file.read_text().replace("[policy]\n", "[policy]\nepsilon_limit = 4.0\n"))
    with pytest.raises(RunError, match="1 sites with training rows took part in the roll call"):
        run_nodes(folder, tmp_path / "run", settings=SETTINGS)
    refused = [line for line in events(tmp_path / "run", "roll_call") if not line["accepted"]]
    assert {line["code"] for line in refused} == {"S310"}
    assert not (folder / SITES[0] / "cache" / "budget.jsonl").exists()


def test_subsets_are_refused_before_the_run(federation, tmp_path):
    with pytest.raises(InputError, match="a study with dp tells no metrics of subsets"):
        request_of(federation, tmp_path / "run", settings=SETTINGS, subsets=True)
