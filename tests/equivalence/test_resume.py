"""A run that dies anywhere and is run again ends as if nothing had happened."""

import shutil

import pytest

from client.training.kept import state
from mmare.errors import RunError
from sites.federation import site_folders
from tests.federations import KilledError, all_events, events, outcome, run_nodes, tiny_federation

ROUNDS = 3
SHORT = (f"training.rounds={ROUNDS}",)


def killer(kind, number=None, occurrence=1):
    """Dies at an event: of a round, where one is given, and at its first occurrence unless told otherwise."""
    seen = []

    def listen(event):
        if event["event"] == kind and number in (None, event.get("round")):
            seen.append(event)
            if len(seen) == occurrence:
                raise KilledError

    return listen


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    return tiny_federation(tmp_path_factory.mktemp("federation") / "fed")


@pytest.fixture(scope="module")
def straight_run(federation, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "straight"
    run_nodes(federation, out, settings=SHORT)
    return out


@pytest.fixture(scope="module")
def straight(straight_run):
    found = outcome(straight_run)
    assert found["rounds_run"] == ROUNDS
    assert found["best_round"] > 1  # else the last rounds could be anything
    return found


def die(federation, out, *listeners: object, **options: object):
    with pytest.raises(KilledError):
        run_nodes(federation, out, listeners=listeners, settings=SHORT, **options)


MOMENTS = [
    ("scaling", None, 1),
    ("site_update", 3, 1),
    ("checkpoint", 3, 2),  # the training is over
]
MORE_MOMENTS = [
    ("validated", 2, 1),
    ("selected", None, 1),
    ("round_started", 3, 1),
    ("aggregated", 3, 1),
    ("checkpoint", 2, 1),
    ("run_finished", None, 1),
    ("run_started", None, 1),
    ("roll_call", None, 2),
    ("round_started", 1, 1),
    ("site_update", 1, 3),
    ("aggregated", 1, 1),
    ("checkpoint", 1, 1),
    ("validated", 1, 1),
    ("validated", 3, 1),
    ("tested", None, 1),
    ("states", None, 1),
]


@pytest.mark.parametrize(
    ("kind", "number", "occurrence"),
    [*MOMENTS, *(pytest.param(*moment, marks=pytest.mark.slow) for moment in MORE_MOMENTS)],
)
def test_a_run_killed_anywhere_ends_the_same(federation, straight, tmp_path, kind, number, occurrence):
    die(federation, tmp_path / "run", killer(kind, number, occurrence))
    run_nodes(federation, tmp_path / "run", settings=SHORT)
    assert outcome(tmp_path / "run") == straight
    assert not (tmp_path / "run" / "spool").exists()
    assert events(tmp_path / "run", "optimizer_state_lost") == []


def test_the_moments_are_all_there_are(straight_run):
    assert {event["event"] for event in all_events(straight_run)} == {
        kind for kind, _, _ in (*MOMENTS, *MORE_MOMENTS)
    }


@pytest.mark.slow
def test_a_run_killed_in_every_round_ends_the_same(federation, straight, tmp_path):
    for number in range(1, ROUNDS + 1):
        die(federation, tmp_path / "run", killer("checkpoint", number))
    run_nodes(federation, tmp_path / "run", settings=SHORT)
    assert outcome(tmp_path / "run") == straight
    resumed = [event["round"] for event in all_events(tmp_path / "run") if event["event"] == "resumed"]
    assert resumed == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("moment", [("scaling", None), ("site_update", 3)])
def test_what_sites_scale_by_their_own_survives(federation, tmp_path, moment):
    settings = (*SHORT, "modality.ct.scaling=site", "modality.wsi.scaling=combat")
    run_nodes(federation, tmp_path / "straight", settings=settings)
    with pytest.raises(KilledError):
        run_nodes(federation, tmp_path / "run", listeners=[killer(*moment)], settings=settings)
    run_nodes(federation, tmp_path / "run", settings=settings)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")


def test_every_round_is_in_the_journal_once_after_a_resume(federation, tmp_path):
    die(federation, tmp_path / "run", killer("aggregated", 3))
    run_nodes(federation, tmp_path / "run", settings=SHORT)
    for kind in ("round_started", "aggregated"):
        found = [event["round"] for event in events(tmp_path / "run", kind)]
        assert found == list(range(1, ROUNDS + 1)), kind
    validated = [(event["round"], event["metrics"]) for event in events(tmp_path / "run", "validated")]
    assert [number for number, _ in validated] == [1, 2, 2, 3]  # of the model that was resumed from
    assert validated[1] == validated[2]


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.slow
@pytest.mark.parametrize("harm", [flip, lambda path: path.write_bytes(b"")], ids=["flipped", "cut"])
@pytest.mark.parametrize("number", [2, 3])
def test_a_damaged_newest_checkpoint_is_noticed_and_the_one_before_used(
    federation, straight, tmp_path, harm, number
):
    out = tmp_path / "run"
    die(federation, out, killer("checkpoint", number))
    harm(out / "checkpoints" / f"round-{number:06d}.safetensors")
    run_nodes(federation, out, settings=SHORT)
    assert outcome(out) == straight
    resumed = events(out, "resumed")
    assert [event["round"] for event in resumed] == [number - 1]
    told = [event["files"] for event in all_events(out) if event["event"] == "checkpoint_damaged"]
    assert told == [[f"round-{number:06d}.safetensors"]]


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 3])
def test_without_a_whole_checkpoint_a_run_starts_again_and_ends_the_same(
    federation, straight, tmp_path, number
):
    out = tmp_path / "run"
    die(federation, out, killer("checkpoint", number))
    for path in (out / "checkpoints").iterdir():
        flip(path)
    run_nodes(federation, out, settings=SHORT)
    assert outcome(out) == straight


def kept_states(federation, site=None):
    state._WRITER.submit(lambda: None).result()  # after all that is still being written
    folders = [folder.cache / "runs" for folder in site_folders(federation) if site in (None, folder.id)]
    return [path for folder in folders for path in sorted(folder.glob("*/*.safetensors"))]


@pytest.fixture
def own_federation(tmp_path):
    return tiny_federation(tmp_path / "fed")


def own_straight(federation, folder):
    run_nodes(federation, folder / "straight", settings=SHORT)
    found = outcome(folder / "straight")
    shutil.rmtree(folder / "straight")
    return found


@pytest.mark.slow
def test_a_site_that_lost_its_newest_state_makes_the_run_step_back(own_federation, tmp_path):
    wanted = own_straight(own_federation, tmp_path)
    out = tmp_path / "run"
    die(own_federation, out, killer("checkpoint", 3))
    kept_states(own_federation, "birch")[-1].unlink()
    run_nodes(own_federation, out, settings=SHORT)
    assert outcome(out) == wanted
    assert [event["round"] for event in events(out, "resumed")] == [2]
    assert events(out, "optimizer_state_lost") == []


@pytest.mark.slow
def test_a_state_whose_write_was_lost_in_the_first_round_ends_the_same(own_federation, tmp_path):
    """States are written behind the answer: a power cut can come between the checkpoint and the state."""
    wanted = own_straight(own_federation, tmp_path)
    out = tmp_path / "run"
    die(own_federation, out, killer("checkpoint", 1))
    (state,) = kept_states(own_federation, "birch")
    state.unlink()
    run_nodes(own_federation, out, settings=SHORT)
    assert outcome(out) == wanted


@pytest.mark.slow
def test_a_site_that_lost_all_its_states_goes_on_and_the_journal_says_so(own_federation, tmp_path):
    wanted = own_straight(own_federation, tmp_path)
    out = tmp_path / "run"
    die(own_federation, out, killer("checkpoint", 2))
    for path in kept_states(own_federation, "birch"):
        path.unlink()
    result = run_nodes(own_federation, out, settings=SHORT)
    assert [event["sites"] for event in events(out, "optimizer_state_lost")] == [["birch"]]
    assert (result["rounds_run"], result["left_out"]) == (ROUNDS, [])
    assert outcome(out)["last"][1] != wanted["last"][1]  # the moments that are gone are gone


@pytest.mark.slow
def test_a_site_whose_state_is_damaged_while_the_run_goes_on_comes_back(own_federation, tmp_path):
    def damage(event):
        if event["event"] == "checkpoint" and event["round"] == 2:
            for path in kept_states(own_federation, "birch"):
                path.write_bytes(b"")

    result = run_nodes(own_federation, tmp_path / "run", listeners=(damage,), settings=("training.rounds=5",))
    assert [entry["round"] for entry in result["left_out"] if entry["site"] == "birch"] in ([], [3])
    back = {event["round"] for event in events(tmp_path / "run", "site_update") if event["site"] == "birch"}
    assert {4, 5} <= back


def test_sites_forget_a_run_that_is_finished(own_federation, tmp_path):
    die(own_federation, tmp_path / "run", killer("checkpoint", 3))
    assert len(kept_states(own_federation)) == 9
    run_nodes(own_federation, tmp_path / "run", settings=SHORT)
    assert kept_states(own_federation) == []


@pytest.fixture(scope="module", params=["centralised", "local"])
def other_mode(request, federation, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / request.param
    return request.param, run_nodes(federation, out, mode=request.param, settings=SHORT), out


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), [("aggregated", 2), ("validated", 3), ("tested", None)])
def test_the_other_modes_resume_too(federation, other_mode, tmp_path, kind, number):
    mode, wanted, straight_out = other_mode
    occurrence = 2 if mode == "local" else 1  # of the second site, once the first is finished
    die(federation, tmp_path / "run", killer(kind, number, occurrence), mode=mode)
    again = run_nodes(federation, tmp_path / "run", mode=mode, settings=SHORT)
    for key in ("rounds_run", "best_round", "metrics"):
        assert again.get(key) == wanted.get(key)
    assert {site: entry["metrics"] for site, entry in again.get("local", {}).items()} == {
        site: entry["metrics"] for site, entry in wanted.get("local", {}).items()
    }
    models = sorted(path.relative_to(straight_out) for path in straight_out.rglob("model.safetensors"))
    assert len(models) == (3 if mode == "local" else 1)
    for model in models:
        assert (tmp_path / "run" / model).read_bytes() == (straight_out / model).read_bytes()


def test_a_failed_run_and_its_end_are_in_one_journal(federation, tmp_path):
    def interrupt(event):
        if event["event"] == "round_started" and event["round"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(RunError, match="interrupted"):
        run_nodes(federation, tmp_path / "run", listeners=(interrupt,), settings=SHORT)
    run_nodes(federation, tmp_path / "run", settings=SHORT)
    kinds = [event["event"] for event in all_events(tmp_path / "run")]
    assert kinds.count("run_started") == 2
    assert kinds.count("run_failed") == kinds.count("run_finished") == 1
    assert len({event["run"] for event in all_events(tmp_path / "run")}) == 1
