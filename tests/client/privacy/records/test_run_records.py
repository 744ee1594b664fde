from hypothesis import given
from hypothesis import strategies as st

from client.privacy.records.audit_log import AuditLog, Entry, Event
from client.privacy.records.run_records import OrderError, RunRecord, RunRecords, request_digest
from mmare.wire.messages import Request, Split, Task

REQUESTS = st.builds(
    lambda number, kind: Request(
        Task.TRAIN if kind == "train" else Task.EVALUATE,
        "run",
        {},
        round=number,
        train=kind == "train",
        final=kind == "final",
        splits=(Split.VAL,),
    ),
    st.integers(0, 5),
    st.sampled_from(["train", "evaluate", "final"]),
)


@given(st.lists(st.tuples(REQUESTS, st.sampled_from([b"", b"1"])), max_size=12))
def test_training_never_goes_back_and_no_round_is_answered_twice_differently(asked):
    record, answered, trained, over = RunRecord(), {}, [], False
    for request, payload in asked:
        digest = request_digest(request, payload)
        key = request.task, request.round, request.final
        try:
            record.check(request, digest)
        except OrderError:
            assert answered.get(key) != digest  # an identical request always passes
            continue
        assert answered.get(key, digest) == digest
        if key not in answered:
            assert not over
            if request.train:
                assert all(earlier < request.round for earlier in trained)
                trained.append(request.round)
        answered[key] = digest
        over |= request.final
        record.add((request.task.value, request.round, request.final), digest)


def test_records_are_those_of_the_log(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    log.append(Entry(Event.RELEASED, "train", "a", "one", 3, asked="x"))
    log.append(Entry(Event.RELEASED, "evaluate", "a", "two", 2, asked="y", final=True))
    log.append(Entry(Event.REFUSED, "train", "a", "one", 9))
    records = RunRecords(log)
    assert records.of("one") == RunRecord({("train", 3, False): "x"}, 3, 3)
    assert records.of("two") == RunRecord({("evaluate", 2, True): "y"}, final=True)
    assert records.of("three") == RunRecord()


def test_a_coordinator_cannot_fill_the_memory_with_names(tmp_path):
    records = RunRecords(AuditLog(tmp_path / "audit.jsonl"))
    for number in range(1100):
        records.of(f"run-{number}")
    assert len(records._runs) == 1000
