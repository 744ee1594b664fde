"""What the measured speed of a line means for a study."""

import pytest

from client.doctor.findings import Verdict
from client.doctor.speed import judge_speed
from tests.federations import tiny_study

MBIT = 1e6 / 8
MODEL = {"width": 512}  # a million parameters


@pytest.mark.parametrize(
    ("mbit", "deadline_s", "verdict"),
    [
        pytest.param(1, 40, Verdict.PROBLEM, id="every round would wait the whole deadline"),
        pytest.param(1, 100, Verdict.WARNING, id="little is left for the training"),
        pytest.param(50, 40, Verdict.OK, id="fast enough"),
    ],
)
def test_a_line_that_cannot_carry_the_model_in_time_is_named(mbit, deadline_s, verdict):
    study = tiny_study(model=MODEL, federation={"deadline_s": deadline_s})
    found = judge_speed(mbit * MBIT, study)
    assert found.verdict is verdict, found
    assert found.found.startswith(f"sends {mbit} Mbit/s to the coordinator: the model of ")
    assert ("federation.deadline_s should be" in found.advice) is (verdict is not Verdict.OK)


def test_half_the_bytes_are_half_the_way_up():
    plain, half = (
        judge_speed(MBIT, tiny_study(model=MODEL, federation={"wire": wire})).found
        for wire in ("float32", "float16")
    )
    seconds = [int(found.split(" takes ")[1].split(" s ")[0]) for found in (plain, half)]
    assert seconds[1] == pytest.approx(0.75 * seconds[0], abs=1)


def test_without_a_study_the_speed_is_only_told():
    assert judge_speed(2 * MBIT, None).found == "sends 2 Mbit/s to the coordinator"
