import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmare.wire.messages import Layout, TensorSpec, WireError
from mmare.wire.tensors import (
    copy_tensors,
    global_tensors,
    is_finite,
    layout_of,
    pack,
    trained_tensors,
    unpack,
)
from tests.mmare.models.examples import generator

DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.bool: "bool",
}


@st.composite
def named_tensors(draw):
    """Up to six tensors of mixed dtypes and shapes, scalars and empty ones among them."""
    tensors = {}
    for index in range(draw(st.integers(0, 6))):
        dtype = draw(st.sampled_from(list(DTYPES)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        values = 100 * torch.randn(shape, generator=generator(index))
        tensors[f"t{index}"] = values > 0 if dtype is torch.bool else values.to(dtype)
    return tensors


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert torch.equal(found[name], value)


@given(named_tensors())
def test_pack_and_unpack_round_trip(tensors):
    run = pack(tensors)
    assert run.dtype == torch.uint8
    assert run.shape == (layout_of(tensors).size,)
    assert_same(unpack(run, layout_of(tensors)), tensors)


@given(named_tensors())
def test_layout_names_each_tensor_in_order(tensors):
    assert [(spec.name, spec.dtype, spec.shape) for spec in layout_of(tensors).tensors] == [
        (name, DTYPES[value.dtype], tuple(value.shape)) for name, value in tensors.items()
    ]


def test_mixed_dtypes_lie_where_the_layout_says():
    tensors = {
        "weight": torch.tensor([1.5, -2.0, 3.0]),
        "steps": torch.tensor(7),
        "frozen": torch.tensor([True, False, True]),
        "bias": torch.tensor([0.25]),
    }
    layout, run = layout_of(tensors), bytes(pack(tensors).tolist())
    assert layout.offsets == (0, 16, 24, 32, 40)
    assert run[:16] == b"\0\0\xc0\x3f\0\0\0\xc0\0\0\x40\x40" + bytes(4)
    assert run[16:24] == (7).to_bytes(8, "little")
    assert run[24:32] == b"\1\0\1" + bytes(5)
    assert run[32:] == b"\0\0\x80\x3e" + bytes(4)


def test_special_values_keep_their_bits():
    values = torch.tensor([math.nan, math.inf, -0.0, 1e-45, 3.4e38])
    again = unpack(pack({"w": values}), layout_of({"w": values}))["w"]
    assert torch.equal(again.view(torch.int32), values.view(torch.int32))


def test_unpack_gives_views_and_pack_a_copy():
    weight = torch.ones(2, 2)
    run = pack({"w": weight})
    weight.zero_()
    view = unpack(run, layout_of({"w": weight}))["w"]
    assert view.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    run.zero_()
    assert not view.any()


def test_a_transposed_tensor_is_packed_in_its_own_order():
    weight = torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(unpack(pack({"w": weight}), layout_of({"w": weight}))["w"], weight)


LAYOUT = Layout((TensorSpec("w", "float32", (2,)),))


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(torch.zeros(7, dtype=torch.uint8), id="short"),
        pytest.param(torch.zeros(9, dtype=torch.uint8), id="long"),
        pytest.param(torch.zeros(0, dtype=torch.uint8), id="empty"),
        pytest.param(torch.zeros(2, 4, dtype=torch.uint8), id="two dimensions"),
        pytest.param(torch.zeros(8), id="floats"),
    ],
)
def test_a_run_of_another_length_is_refused(run):
    with pytest.raises(WireError, match="expected 8"):
        unpack(run, LAYOUT)


def test_copy_tensors_by_name():
    into = {"a": torch.zeros(2), "b": torch.zeros((), dtype=torch.int64)}
    kept = into["a"]
    copy_tensors(into, {"b": torch.tensor(3), "a": torch.tensor([1.0, 2.0]), "c": torch.tensor(9.0)})
    assert kept.tolist() == [1.0, 2.0]
    assert into["b"].item() == 3


def module_with_everything():
    module = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.BatchNorm1d(1))
    module[0].bias.requires_grad_(requires_grad=False)
    return module


def test_the_server_sends_everything_and_a_site_returns_what_it_trained():
    module = module_with_everything()
    sent, returned = global_tensors(module), trained_tensors(module)
    assert list(sent) == list(module.state_dict())
    assert list(returned) == ["0.weight", "0.bias", "1.weight", "1.bias"]  # frozen in a phase or not
    assert not any(value.requires_grad for value in (*sent.values(), *returned.values()))
    assert list(global_tensors(module, without={"0.bias"})) == [name for name in sent if name != "0.bias"]
    assert_same(unpack(pack(sent), layout_of(sent)), sent)  # an int64 scalar among them


def test_named_tensors_share_memory_with_the_model():
    module = module_with_everything()
    copy_tensors(
        trained_tensors(module), {name: value + 1 for name, value in trained_tensors(module).items()}
    )
    before = module[0].weight.detach().clone()
    global_tensors(module)["0.weight"].add_(1.0)
    assert torch.equal(module[0].weight, before + 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("place", [0, 500, 999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_value_that_is_not_finite_is_found(bad, place, dtype):
    values = torch.randn(1000, generator=generator(), dtype=dtype)
    tensors = {"first": torch.zeros(3), "steps": torch.tensor(5), "values": values}
    assert is_finite(tensors)
    values[place] = bad
    assert not is_finite(tensors)


def test_infinities_of_both_signs_do_not_cancel():
    assert not is_finite({"w": torch.tensor([math.inf, 1.0, -math.inf])})


@pytest.mark.parametrize(
    "tensors",
    [{}, {"n": torch.tensor(2**62)}, {"w": torch.zeros(0)}, {"flag": torch.tensor([True])}],
    ids=["nothing", "whole number", "empty", "bool"],
)
def test_what_cannot_be_infinite_is_finite(tensors):
    assert is_finite(tensors)
