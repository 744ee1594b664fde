"""What a worker has seen: never half of a change, whoever looks when."""

import threading

from client.telemetry.seen import WorkerActivity


def test_time_at_work_never_goes_back_while_messages_come_and_go():
    seen, over, looks = WorkerActivity(), threading.Event(), []

    def look():
        while not over.is_set():
            looks.append(seen.busy_s)

    looker = threading.Thread(target=look)
    looker.start()
    for _ in range(20_000):
        seen.begin()
        seen.end()
    over.set()
    looker.join()
    assert looks == sorted(looks)
    assert seen.busy_for_s is None
    assert seen.busy_s >= looks[-1]


def test_the_message_in_hand_is_told_until_it_is_done():
    seen = WorkerActivity()
    assert seen.busy_for_s is None
    seen.begin()
    assert seen.busy_for_s >= 0
    seen.end()
    seen.end()  # given up after it was answered
    assert seen.busy_for_s is None
