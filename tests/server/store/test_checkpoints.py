from pathlib import Path

import pytest
import torch

from server.store.checkpoint import DamagedCheckpointError
from server.store.checkpoints import CheckpointStore, Progress
from server.store.selection import Selection


def model(number):
    return {"model": torch.full((6,), number, dtype=torch.uint8)}


def progress(number, best=0):
    selection = Selection(best, (0.5, -0.5), number).to_dict() if best else {}
    return Progress(number, selection, {"ash": number}, {"total": 1.5}, 10, 20)


def names(folder):
    return sorted(path.name.removesuffix(".safetensors") for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path):
    """Rounds 1 to 5; the best are rounds 1, 2 and 4, each known one round later."""
    store = CheckpointStore(tmp_path)
    for number, best in ((1, 0), (2, 1), (3, 2), (4, 2), (5, 4)):
        if best and best != {3: 0, 4: 2}.get(number):
            store.hold_best(best, model(best))
        store.save(model(number), progress(number, best))
    return tmp_path


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_two_rounds_and_the_best_that_they_refer_to_are_kept(folder):
    assert names(folder) == ["best-000002", "best-000004", "round-000004", "round-000005"]


def test_a_new_store_keeps_the_same(folder):
    store = CheckpointStore(folder)
    store.usable()
    store.save(model(6), progress(6, 4))
    assert names(folder) == ["best-000004", "round-000005", "round-000006"]


def test_progress_comes_back_newest_first(folder):
    found = CheckpointStore(folder).usable()
    assert [state for _, state in found] == [progress(5, 4), progress(4, 2)]
    assert [tensors["model"][0].item() for tensors, _ in found] == [5, 4]
    assert CheckpointStore(folder).damaged() == []


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        pytest.param("round-000005", damage, id="round-flipped"),
        pytest.param("round-000005", empty, id="round-cut"),
        pytest.param("round-000005", Path.unlink, id="round-missing"),
        pytest.param("best-000004", damage, id="best-flipped"),
        pytest.param("best-000004", empty, id="best-cut"),
        pytest.param("best-000004", Path.unlink, id="best-missing"),
    ],
)
def test_the_round_before_is_used_where_the_newest_or_its_best_is_damaged(folder, file, harm):
    harm(folder / f"{file}.safetensors")
    store = CheckpointStore(folder)
    assert [state.round for _, state in store.usable()] == [4]
    lost = [] if not (folder / "round-000005.safetensors").exists() else ["round-000005.safetensors"]
    assert store.damaged() == lost
    assert store.load_best(2)["model"][0].item() == 2


def test_going_on_from_the_round_before_replaces_the_damaged_one(folder):
    damage(folder / "round-000005.safetensors")
    store = CheckpointStore(folder)
    store.usable()
    store.save(model(5), progress(5, 2))
    assert [state.round for _, state in CheckpointStore(folder).usable()] == [5, 4]
    assert names(folder) == ["best-000002", "round-000004", "round-000005"]


def test_going_on_from_the_round_before_the_last_removes_what_is_ahead(folder):
    store = CheckpointStore(folder)
    store.usable()
    store.save(model(4), progress(4, 2))
    assert [state.round for _, state in CheckpointStore(folder).usable()] == [4]


def test_a_whole_file_of_another_program_version_is_passed_over(folder):
    from server.store.checkpoint import write_checkpoint

    write_checkpoint(folder / "round-000006.safetensors", model(6), {"round": 6, "unheard": True})
    store = CheckpointStore(folder)
    assert [state.round for _, state in store.usable()] == [5, 4]
    assert store.damaged() == ["round-000006.safetensors"]


def test_an_empty_folder_has_nothing(tmp_path):
    assert CheckpointStore(tmp_path / "none").usable() == []
    with pytest.raises(DamagedCheckpointError):
        CheckpointStore(tmp_path / "none").load_best(1)
