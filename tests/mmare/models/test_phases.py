import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmare.errors import StudyError
from mmare.models.phases import Objective, Phase, last_phase_start, phase_at
from mmare.models.registry import build_model
from tests.federations import tiny_study

LENGTHS = st.lists(st.integers(1, 5), max_size=4)


def phases_of(lengths):
    return (*(Phase(f"p{index}", (), rounds) for index, rounds in enumerate(lengths)), Phase("last", ()))


@given(lengths=LENGTHS, number=st.integers(1, 40))
def test_rounds_belong_to_phases_in_order(lengths, number):
    phases = phases_of(lengths)
    listed = [phase for phase, rounds in zip(phases, lengths, strict=False) for _ in range(rounds)]
    wanted = listed[number - 1] if number <= len(listed) else phases[-1]
    assert phase_at(phases, number) is wanted


@given(lengths=LENGTHS)
def test_the_last_phase_starts_where_the_others_end(lengths):
    phases = phases_of(lengths)
    start = last_phase_start(phases)
    assert phase_at(phases, start) is phases[-1]
    assert start == 1 or phase_at(phases, start - 1) is phases[-2]


def test_a_phases_blocks_are_those_of_its_objectives():
    def loss(scaled, _present, _label, _generator):
        return scaled.sum()

    phase = Phase("both", (Objective(loss, ("a", "b")), Objective(loss, ("c",))))
    assert phase.blocks == {"a", "b", "c"}


def test_a_model_is_one_phase_of_all_its_blocks_unless_it_says_otherwise():
    model = build_model(tiny_study())
    (phase,) = model.phases()
    (objective,) = phase.objectives
    assert phase.blocks == {block.name for block in model.blocks()}
    assert dict(objective.training) == {}
    batch = (torch.zeros(2, 24), torch.ones(2, 2, dtype=torch.bool), torch.tensor([0, 1]))
    model.eval()
    source = torch.Generator().manual_seed(0)
    assert torch.equal(objective.loss(*batch, source), model.loss(*batch, source))


@pytest.mark.parametrize("early", [1, 4])
def test_rounds_must_reach_the_last_phase(early):
    model = {"name": "hypermm-embedding", "width": 16, "phase_rounds": early}
    build_model(tiny_study(model=model, training={"rounds": early + 1}))
    with pytest.raises(StudyError, match=rf"must be more than the {early} .* found {early}"):
        build_model(tiny_study(model=model, training={"rounds": early}))
