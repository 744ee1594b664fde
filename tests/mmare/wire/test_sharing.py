import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmare.errors import StudyError
from mmare.models.blocks import Block, all_samples, block_tensors, without_parameters
from mmare.models.registry import build_model
from mmare.study.choices import Wire
from mmare.wire.sharing import federated_blocks, from_wire, keeps_state, local_parameters, on_wire
from mmare.wire.tensors import trained_tensors
from tests.federations import tiny_study

HALF = 2.0**-11  # of a value: half precision keeps 11 bits of it
SMALLEST = 2.0**-25  # half of the smallest number of half precision
SINGLE = 2.0**-22  # of a value: float32 rounds the difference, and the sum again
MODERATE = st.floats(-100, 100, width=32)


def parts_of(*local: str):
    study = tiny_study(federation={"local": list(local)})
    return build_model(study), study


def test_without_local_parts_everything_is_federated():
    model, study = parts_of()
    assert local_parameters(model, study) == frozenset()
    assert [block.parameters for block in federated_blocks(model, study)] == [
        block.parameters for block in model.blocks()
    ]


@pytest.mark.parametrize(
    ("part", "prefixes"),
    [
        pytest.param("norms", ("conditioning.norm.",), id="norms"),
        pytest.param("head", ("head.",), id="head"),
        pytest.param("adapters", ("adapters.",), id="adapters"),
    ],
)
def test_a_part_is_its_modules(part, prefixes):
    model, study = parts_of(part)
    local = local_parameters(model, study)
    named = {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    assert named <= local
    if part != "norms":  # other modules have norms, too
        assert local == named
    owners = {path for path, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm)}
    if part == "norms":
        assert {name.rpartition(".")[0] for name in local} == owners


@pytest.mark.parametrize("local", [("norms",), ("head",), ("adapters",), ("norms", "head", "adapters")])
def test_local_and_federated_parameters_are_all_and_share_none(local):
    model, study = parts_of(*local)
    stay = local_parameters(model, study)
    blocks = federated_blocks(model, study)
    travel = {name for block in blocks for name in block.parameters}
    assert travel.isdisjoint(stay)
    assert travel | stay == {name for name, _ in model.named_parameters()}
    assert stay
    of_model = {block.name: block for block in model.blocks()}
    for block in blocks:
        assert (block.column, block.most) == (of_model[block.name].column, of_model[block.name].most)
        present = torch.tensor([[True, False], [True, True]])
        assert block.exposure(present) == of_model[block.name].exposure(present)


def test_a_part_that_the_model_does_not_have_is_refused_by_name():
    study = tiny_study(
        modality=[{"name": "ct", "kind": "features", "width": 16}], federation={"local": ["adapters"]}
    )
    with pytest.raises(StudyError, match=r"\[federation\] local names 'adapters', of which mmare has none"):
        federated_blocks(build_model(study), study)


def test_nothing_left_to_federate_is_refused_by_name():
    study = tiny_study(model={"name": "late-mean", "width": 16}, federation={"local": ["head", "adapters"]})
    with pytest.raises(StudyError, match=r"\[federation\] local keeps all of late-mean"):
        federated_blocks(build_model(study), study)


@pytest.mark.parametrize(
    ("state", "local", "kept"),
    [("keep", [], True), ("reset", [], False), ("reset", ["head"], True), ("keep", ["head"], True)],
)
def test_sites_keep_moments_or_local_parts_or_nothing(state, local, kept):
    study = tiny_study(training={"optimizer_state": state}, federation={"local": local})
    assert keeps_state(study) is kept


def test_a_block_without_parameters_vanishes():
    blocks = (Block("a", ("x", "y"), all_samples), Block("b", ("z",), all_samples, most=3))
    left = without_parameters(blocks, {"x", "z"})
    assert [(block.name, block.parameters) for block in left] == [("a", ("y",))]
    assert without_parameters(blocks, ()) == blocks


def test_tensors_of_blocks_are_views_of_the_model_that_cover_it_once():
    model = build_model(tiny_study())
    tensors = trained_tensors(model)
    found = block_tensors(model.blocks(), tensors)
    assert sum(value.numel() for value in found.values()) == sum(v.numel() for v in tensors.values())
    for value in found.values():
        value.fill_(7.0)
    assert all(bool((value == 7.0).all()) for value in model.parameters())


@given(values=st.lists(st.tuples(MODERATE, MODERATE), min_size=1, max_size=8))
def test_the_change_in_half_precision_errs_as_ieee_says(values):
    origin, changed = ({"w": torch.tensor(column)} for column in zip(*values, strict=True))
    sent = on_wire(changed, origin, Wire.FLOAT16)
    assert sent["w"].dtype == torch.float16
    back = from_wire(sent, origin, Wire.FLOAT16)["w"]
    change = (changed["w"] - origin["w"]).abs()
    largest = torch.maximum(changed["w"].abs(), origin["w"].abs())
    assert bool(((back - changed["w"]).abs() <= HALF * change + SMALLEST + SINGLE * largest).all())


@given(values=st.lists(MODERATE, min_size=1, max_size=8))
def test_unchanged_tensors_return_bit_for_bit(values):
    origin = {"w": torch.tensor(values)}
    assert torch.equal(
        from_wire(on_wire(origin, origin, Wire.FLOAT16), origin, Wire.FLOAT16)["w"], origin["w"]
    )


@given(values=st.lists(st.tuples(MODERATE, MODERATE), min_size=1, max_size=8))
def test_float32_travels_unchanged(values):
    origin, changed = ({"w": torch.tensor(column)} for column in zip(*values, strict=True))
    assert torch.equal(
        from_wire(on_wire(changed, origin, Wire.FLOAT32), origin, Wire.FLOAT32)["w"], changed["w"]
    )


def test_a_change_keeps_more_precision_than_its_parameter():
    """A change of a thousandth: halved by itself it keeps three digits, as part of the parameter none."""
    origin = {"w": torch.tensor([1.0])}
    changed = {"w": torch.tensor([1.0004])}
    back = from_wire(on_wire(changed, origin, Wire.FLOAT16), origin, Wire.FLOAT16)["w"]
    assert back.item() == pytest.approx(1.0004, abs=4e-7)
    assert changed["w"].half().float().item() == 1.0


def test_a_change_too_large_for_half_precision_is_not_finite():
    """So the server refuses it by name instead of taking another number."""
    sent = on_wire({"w": torch.tensor([1e6])}, {"w": torch.tensor([0.0])}, Wire.FLOAT16)
    assert not bool(sent["w"].isfinite())
