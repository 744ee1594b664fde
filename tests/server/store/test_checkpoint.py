import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.store.checkpoint import DamagedCheckpointError, read_checkpoint, write_checkpoint
from tests.properties import examples

TENSORS = {
    "model": torch.arange(40, dtype=torch.uint8),
    "w": torch.tensor([[1.5, float("nan")], [-0.0, 4.0]]),
}
STATE = {"round": 3, "selection": {"score": [0.5, None]}, "text": 'é "quoted" \\ '}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "round.safetensors"
    size = write_checkpoint(path, TENSORS, STATE)
    assert size == path.stat().st_size
    return path, path.read_bytes()


def is_what_was_written(tensors, state):
    return (
        state == STATE
        and tensors.keys() == TENSORS.keys()
        and all(
            (tensors[name].dtype, tensors[name].shape) == (value.dtype, value.shape)
            and tensors[name].numpy().tobytes() == value.numpy().tobytes()
            for name, value in TENSORS.items()
        )
    )


def test_what_was_written_is_read(written):
    assert is_what_was_written(*read_checkpoint(written[0]))


def test_a_tensor_of_one_number_counts_as_contiguous_whatever_its_stride(tmp_path):
    column = torch.arange(6.0).view(1, 6)[:, 2]  # as of a parameter of one output: stride 6
    write_checkpoint(tmp_path / "one.safetensors", {"column": column}, {})
    assert torch.equal(read_checkpoint(tmp_path / "one.safetensors")[0]["column"], column)


def test_replacing_leaves_one_whole_file(tmp_path):
    path = tmp_path / "deep" / "round.safetensors"
    write_checkpoint(path, {"w": torch.zeros(2)}, {"round": 1})
    write_checkpoint(path, {"w": torch.ones(2)}, {"round": 2})
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert read_checkpoint(path)[1] == {"round": 2}


def test_a_state_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "round.safetensors"
    write_checkpoint(path, {"w": torch.zeros(2)}, {"round": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_checkpoint(path, {"w": torch.ones(2)}, {"round": float("nan")})
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert read_checkpoint(path)[1] == {"round": 1}


def read_changed(folder, content):
    """What the reader makes of other bytes: nothing where it says that they are damaged."""
    path = folder / "changed.safetensors"
    path.write_bytes(content)
    try:
        return read_checkpoint(path)
    except DamagedCheckpointError:
        return None


@given(position=st.integers(min_value=0), flip=st.integers(1, 255))
@settings(examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_is_found_or_changes_nothing(written, position, flip):
    path, whole = written
    content = bytearray(whole)
    content[position % len(content)] ^= flip
    found = read_changed(path.parent, bytes(content))
    assert found is None or is_what_was_written(*found)  # JSON has more than one kind of blank


def test_every_changed_byte_of_a_tensor_is_found(written):
    path, whole = written
    for position in range(len(whole) - 40 - 16, len(whole)):
        content = bytearray(whole)
        content[position] ^= 1
        assert read_changed(path.parent, bytes(content)) is None


@pytest.mark.parametrize(("found", "made"), [(b'"F32"', b'"I32"'), (b'"U8"', b'"I8"'), (b"[2,2]", b"[4,1]")])
def test_another_type_or_shape_over_the_same_bytes_is_found(written, found, made):
    path, whole = written
    assert whole.count(found) == 1
    assert read_changed(path.parent, whole.replace(found, made)) is None


@given(st.data())
@settings(examples(100), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_cut_file_is_found(written, data):
    path, whole = written
    assert read_changed(path.parent, whole[: data.draw(st.integers(0, len(whole) - 1))]) is None


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DamagedCheckpointError, match="round-000001"):
        read_checkpoint(tmp_path / "round-000001.safetensors")
