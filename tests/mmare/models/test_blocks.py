import pytest
import torch

from mmare.models.blocks import Block, all_samples, exposures, merges, samples_with, samples_without
from mmare.models.registry import build_model
from tests.mmare.models.examples import a_study, random_presence

PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])


@pytest.mark.parametrize(
    ("exposure", "expected"),
    [
        pytest.param(all_samples, 3, id="all"),
        pytest.param(samples_with(0), 2, id="with"),
        pytest.param(samples_without(0), 1, id="without"),
        pytest.param(merges, 2 + 1 + 0, id="merges"),
    ],
)
def test_exposures_by_hand(exposure, expected):
    assert exposures((Block("b", (), exposure),), PRESENT) == {"b": expected}
    assert exposures((Block("b", (), exposure),), PRESENT[:0]) == {"b": 0}


def test_exposures_of_mmare_equal_a_count_over_patients():
    model = build_model(a_study((16, 8, 16), width=16))
    present = random_presence(50, 3)
    patients = [set(row.nonzero().flatten().tolist()) for row in present]
    expected = {f"conditioning.m{slot}": sum(slot not in held for held in patients) for slot in range(3)}
    expected["adapter.m1"] = sum(1 in held for held in patients)
    expected["merge"] = sum(len(held) - 1 for held in patients)
    expected["shared"] = len(patients)
    assert exposures(model.blocks(), present) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"fusion": "mean"}, {"conditioning.m0", "conditioning.m1", "shared"}, id="mean"),
        pytest.param({"conditioning": False}, {"merge", "shared"}, id="unconditioned"),
    ],
)
def test_an_ablation_has_no_block_for_what_it_lacks(options, expected):
    model = build_model(a_study((16, 16), width=16, **options))
    blocks = model.blocks()
    assert {block.name for block in blocks} == expected
    named = {name for block in blocks for name in block.parameters}
    assert named == {name for name, _ in model.named_parameters()}
