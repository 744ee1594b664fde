"""What a site tells of the times of events: whole patients in groups that are large enough."""

import pytest

from client.privacy.extra_answers import check_events
from mmare.study.outcome import N_TIMES
from mmare.wire.messages import EVENT_TIMES, Moments
from tests.federations import survival_study, tiny_study


def told(*counts, n=None, **changes):
    """Events in the first bins."""
    sums = tuple(map(float, (*counts, *[0] * (N_TIMES - len(counts)))))
    found = {"modality": EVENT_TIMES, "n": sum(counts) if n is None else n, "total": sums, "squares": sums}
    return Moments(**(found | changes))


def test_groups_that_are_large_enough_pass():
    check_events(told(5, 0, 7), survival_study(), 5)
    check_events(told(1, 1), survival_study(), 0)
    check_events(told(), survival_study(), 5)


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        (None, "missing"),
        (told(5, 4), "too small"),
        (told(5.5, n=5), "other bins or rows"),
        (told(2.5, 2.5, n=5), "no number of patients"),
        (told(-5, 10), "too small"),
        (told(5, n=6), "other bins or rows"),
        (told(5, total=(5.0,), squares=(5.0,)), "other bins or rows"),
        (told(5, squares=(25.0,) * N_TIMES), "another form"),
        (told(5, modality="ct"), "another form"),
        (told(5, counts=(5,) * N_TIMES), "another form"),
    ],
)
def test_others_are_held_back(events, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_events(events, survival_study(), 2 if events is None or events.n != 9 else 5)


def test_another_task_tells_none():
    with pytest.raises(ValueError, match="of another task"):
        check_events(told(5), tiny_study(), 0)
