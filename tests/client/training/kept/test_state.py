import pytest
import torch

from client.training.kept.state import StateStore


@pytest.fixture
def store(tmp_path):
    return StateStore(tmp_path)


def state(number):
    return {"0.exp_avg": torch.full((3,), float(number)), "0.step": torch.tensor(float(number))}


def file(folder, number, run="run"):
    return folder / "runs" / run / f"{number:06d}.safetensors"


def save_rounds(store, *rounds: int, run="run"):
    """Each round starts from the one before, as when every update is accepted."""
    accepted = None
    for number in rounds:
        store.save(run, number, state(number), accepted)
        accepted = number


def test_what_was_saved_is_loaded(store):
    store.save("run", 1, state(1), None)
    found = store.load("run", 1)
    assert found.keys() == state(1).keys()
    assert all(torch.equal(found[name], value) for name, value in state(1).items())


def test_the_newest_and_two_to_step_back_to_are_kept(store):
    save_rounds(store, 1, 2, 3, 4, 5)
    assert store.held("run") == (3, 4, 5)


def test_a_round_that_the_server_did_not_accept_is_forgotten(store):
    save_rounds(store, 1, 2, 3)
    store.save("run", 4, state(4), 2)  # round 3 was late
    assert store.held("run") == (1, 2, 4)
    store.save("run", 5, state(5), 2)  # and so was round 4
    assert store.held("run") == (1, 2, 5)


def test_stepping_back_forgets_what_was_ahead(store):
    save_rounds(store, 1, 2, 3, 4)
    store.save("run", 3, state(33), 2)
    assert store.held("run") == (2, 3)
    assert store.load("run", 3)["0.step"].item() == 33


def test_a_fresh_start_keeps_itself_only(store):
    save_rounds(store, 1, 2, 3)
    store.save("run", 1, state(1), None)
    assert store.held("run") == (1,)


@pytest.mark.parametrize("harm", ["cut", "empty", "garbage", "missing", "folder"])
def test_a_damaged_state_is_no_state(store, tmp_path, harm):
    save_rounds(store, 1, 2)
    assert store.held("run") == (1, 2)
    path = file(tmp_path, 2)
    whole = path.read_bytes()
    path.unlink()
    if harm == "folder":
        path.mkdir()
    elif harm != "missing":
        path.write_bytes({"cut": whole[:-1], "empty": b"", "garbage": b"\xff" * 64}[harm])
    assert store.load("run", 2) is None
    assert store.load("run", 1) is not None


def test_runs_do_not_see_each_other(store):
    save_rounds(store, 1, 2, run="one")
    save_rounds(store, 7, run="two")
    assert (store.held("one"), store.held("two"), store.held("three")) == ((1, 2), (7,), ())
    store.drop("one")
    assert (store.held("one"), store.held("two")) == ((), (7,))
    store.drop("never-there")


def test_another_store_of_the_same_folder_finds_it_and_nothing_half_written(store, tmp_path):
    save_rounds(store, 1, 2, 3)
    store.held("run")  # waits for what is still being written
    assert StateStore(tmp_path).held("run") == (1, 2, 3)
    assert sorted(path.name for path in (tmp_path / "runs" / "run").iterdir()) == [
        "000001.safetensors",
        "000002.safetensors",
        "000003.safetensors",
    ]


def test_a_disk_that_cannot_be_written_shows_and_the_state_before_stays(store, tmp_path):
    save_rounds(store, 1)
    store.held("run")
    (tmp_path / "runs" / "other").write_text("in the way")
    store.save("other", 1, state(1), None)
    with pytest.raises(OSError, match="other"):
        store.held("other")
    assert store.held("run") == (1,)


def test_rounds_that_are_not_kept_stay_in_memory_until_they_are_not_needed(tmp_path):
    store = StateStore(tmp_path, keeps=lambda _run, number: number in (1, 4))
    save_rounds(store, 1, 2, 3)
    assert [store.load("run", number)["0.step"].item() for number in (2, 3)] == [2, 3]
    assert store.held("run") == (1,)
    store.save("run", 4, state(4), 3)
    assert store.load("run", 2) is None
    assert store.held("run") == (1, 4)
    store.drop("run")
    assert store.load("run", 3) is None
