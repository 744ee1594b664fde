import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mmare.host.signals import StopSignal, stop_on_signals

NUMBERS = (signal.SIGTERM, signal.SIGINT)

# Runs the handler after the first step of `wait`, then after the second, and so on.
AT_EVERY_STEP = """
import sys
{imports}
last = 0
while True:
    stop, steps = make(), 0

    def step(_frame, _event, _argument):
        global steps
        steps += 1
        if steps == last + 1:
            sys.settrace(None)
            stop.set()
        return step

    sys.settrace(step)
    stop.wait(0.001)
    sys.settrace(None)
    if steps <= last:
        break
    assert stop.wait(60)
    last += 1
print(last)
"""


def interrupted_at_every_step(imports, timeout_s):
    code = AT_EVERY_STEP.format(imports=imports)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout_s, check=True
    )
    return int(done.stdout)


def test_a_signal_at_any_moment_stops():
    assert interrupted_at_every_step("from mmare.host.signals import StopSignal as make", 60) > 3


def test_an_event_would_hang():
    """Why `StopSignal` exists."""
    with pytest.raises(subprocess.TimeoutExpired):
        interrupted_at_every_step("from threading import Event as make", 0.5)


@pytest.mark.parametrize("number", NUMBERS)
def test_signals_stop_and_their_handlers_are_restored(number):
    before = [signal.getsignal(each) for each in NUMBERS]
    with stop_on_signals() as stop:
        assert not stop.is_set()
        assert not stop.wait(0.01)
        os.kill(os.getpid(), number)
        assert stop.wait(5)
        assert stop.wait()
        assert stop.is_set()
    assert [signal.getsignal(each) for each in NUMBERS] == before


def test_setting_wakes_a_waiting_thread():
    stop = StopSignal()
    threading.Timer(0.05, stop.set).start()
    began = time.monotonic()
    assert stop.wait(10)
    assert time.monotonic() - began < 5
    stop.close()


def test_setting_never_blocks_on_a_full_pipe():
    stop = StopSignal()
    for _ in range(100_000):
        stop.set()
    assert stop.wait()
    stop.close()


def test_a_given_stop_is_returned_and_signals_stay():
    given = threading.Event()
    before = [signal.getsignal(each) for each in NUMBERS]
    with stop_on_signals(given) as stop:
        assert stop is given
        assert [signal.getsignal(each) for each in NUMBERS] == before
