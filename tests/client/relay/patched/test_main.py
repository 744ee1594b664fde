import math
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from client.relay.patch_points import PatchPoint, apply_default, differences, named, replace
from client.relay.patched.__main__ import FOLDER_VARIABLE, unusable
from client.relay.patched.clientapp import reseed
from client.relay.patched.clock import PICKUP_S, AdaptiveClock
from client.relay.patched.supernode import MESSAGE_POLL_S, _Lifecycle


def test_the_installed_flower_is_supported():
    assert unusable("supernode") == []
    assert unusable("superexec") == []


@pytest.mark.parametrize(
    ("point", "said"),
    [
        pytest.param(PatchPoint("nowhere", "x"), "nowhere.x is not there", id="no module"),
        pytest.param(PatchPoint("json", "load.s"), "json.load.s is not there", id="no name"),
        pytest.param(
            PatchPoint("json", "load", kind=str), "json.load is a function, expected str", id="kind"
        ),
        pytest.param(PatchPoint("math", "pi", ""), "math.pi cannot be called", id="no function"),
        pytest.param(
            PatchPoint("bisect", "bisect", "a, x"),
            "bisect.bisect takes a, x, lo, hi, key; expected a, x",
            id="parameters",
        ),
        pytest.param(
            PatchPoint("bisect", "bisect", "a, x, lo, hi, key", ("key",)),
            "bisect.bisect has no default of key",
            id="default",
        ),
    ],
)
def test_what_differs_is_named(point, said):
    assert differences([PatchPoint("json", "loads"), point]) == [said]


def test_only_an_existing_name_is_replaced():
    with pytest.raises(AttributeError):
        replace("json", "of_nobody", 1)
    with pytest.raises(KeyError):
        apply_default("json", "dumps", "of_nobody", 1)
    before = named("json", "dumps").__kwdefaults__["indent"]
    try:
        apply_default("json", "dumps", "indent", 1)
        assert named("json", "dumps")([0]) == "[\n 0\n]"
    finally:
        apply_default("json", "dumps", "indent", before)


def test_pauses_are_short_with_work_and_grow_without():
    now, made, told = [0.0], [], []
    clock = AdaptiveClock(
        {3: 0.2, 0.1: 0.1}, {0.1: 1.0}, on_pause=told.append, now=lambda: now[0], wait=made.append
    )
    asked = (
        (0, 3),
        (1, 3),
        (2, 3),
        (10, 3),
        (29, 3),
        (31, 3),
        (500, 3),
        (0, 0.1),
        (5, 0.1),
        (500, 0.1),
        (500, 5),
    )
    for at, pause in asked:
        now[0] = at
        clock.sleep(pause)
    clock.worked()
    clock.sleep(3)
    clock.sleep(0.1)
    assert made == pytest.approx([0.2, 0.2, 0.2, 1.0, 2.9, 3, 3, 0.1, 0.5, 1.0, 5, 0.2, 0.1])
    assert told == [*(pause for _, pause in asked), 3, 0.1]
    assert clock.monotonic() > 0  # the rest is the module time


def drawn_by_forks(prepare) -> list[tuple[float, float]]:
    found = []
    for _ in range(2):
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            prepare()
            os.write(write, repr((np.random.random(), random.random())).encode())  # noqa: NPY002, S311 - the point
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as file:
            found.append(tuple(map(float, file.read().strip("()").split(","))))
        os.waitpid(pid, 0)
    return found


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_forks_draw_different_numbers():
    np.random.random()  # noqa: NPY002 - its state is made at its first use
    first, second = drawn_by_forks(lambda: None)
    assert first[0] == second[0]  # what forks do by themselves
    assert first[1] != second[1]  # Python's own generator needs no help
    first, second = drawn_by_forks(reseed)
    assert first[0] != second[0]
    assert not math.isnan(first[0])


@pytest.mark.slow
def test_any_end_of_the_main_thread_ends_the_process(tmp_path):
    """Such as on a full disk: another thread, as uvicorn's, would keep a process that does nothing."""
    code = """
import sys, threading, time
from client.relay.patched import __main__ as relay
def fails(role):
    threading.Thread(target=time.sleep, args=(600,)).start()
    raise OSError(28, "No space left on device")
relay._run = fails
sys.argv = ["x", "supernode"]
relay.main()
"""
    done = version_of(code, tmp_path)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr


SPOILED = """
import sys
import time
from {module} import {owner} as owner
del owner.{name}
from client.relay.patched.__main__ import main
sys.argv = ["warm", {role!r}, "--version"]
main()
"""


def version_of(code: str, folder) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FLWR_DISABLE_UPDATE_CHECK": "1", FOLDER_VARIABLE: str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("role", ["supernode", "superexec"])
def test_a_supported_flower_runs(role, tmp_path):
    code = "import sys; from client.relay.patched import __main__ as relay; "
    code += f"sys.argv = ['x', {role!r}, '--version']; relay.main()"
    done = version_of(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Flower version: ")
    assert "S403" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("role", "module", "owner", "name"),
    [
        pytest.param(
            "supernode", "flwr.supernode", "start_client_internal", "http_request_response", id="node"
        ),
        pytest.param("superexec", "flwr.supernode.runtime", "run_clientapp", "push_message", id="exec"),
        pytest.param("superexec", "flwr.supernode.runtime", "run_clientapp", "install_from_fab", id="bundle"),
    ],
)
def test_an_unsupported_flower_does_not_start(role, module, owner, name, tmp_path):
    code = SPOILED.format(role=role, module=module, owner=owner, name=name)
    for each in (role, "check"):
        done = version_of(code.replace(repr(role), repr(each)), tmp_path)
        assert done.returncode == 1, done.stderr
        assert "Flower version: " not in done.stdout
        assert (
            "S403: the installed Flower differs from the one that the relay was checked with" in done.stderr
        )
        assert f"{module}.{owner}.{name} is not there" in done.stderr
        assert "traceback" not in done.stderr.lower()


def test_the_relay_imports_neither_torch_nor_a_reader_of_scans():
    heavy = ("torch", "monai", "pandas", "pydicom", "nibabel", "SimpleITK")
    code = (
        "import sys\nfrom client.relay.patched import __main__, clientapp, superexec, supernode\n"
        "from client.relay.app import app\n"
        f"sys.exit(','.join(name for name in {heavy} if name in sys.modules) or 0)"
    )
    done = version_of(code, "")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def life(tmp_path, monkeypatch):
    """What a SuperNode does, its pauses, and a way to let it look for a message."""
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    found = _Lifecycle(tmp_path)
    return found, pauses, lambda message: found.receiving(lambda: message, pytest.fail)()


def test_a_node_stopped_during_a_message_stays_until_its_reply_is_picked_up(life):
    node, pauses, look = life
    assert look("a message") == "a message"
    node.finish(signal.SIGUSR1, None)
    with pytest.raises(SystemExit):
        look("another, which it does not ask for")
    assert pauses == [pytest.approx(PICKUP_S, abs=1.0)]


def test_a_node_that_has_just_replied_stays_as_long(life):
    node, pauses, look = life
    look("a message")
    look(None)  # the reply is sent
    with pytest.raises(SystemExit):
        node.finish(signal.SIGUSR1, None)
    assert pauses == [pytest.approx(PICKUP_S, abs=1.0)]


def test_a_waiting_node_shows_its_contact_and_a_line_an_hour(life, tmp_path, monkeypatch, caplog):
    node, *_ = life
    now = [began := time.monotonic()]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with caplog.at_level("INFO", "flwr.mmare"):
        for minute in range(125):
            now[0] = began + 60 * minute
            node.paused(MESSAGE_POLL_S)
    assert [record.message for record in caplog.records] == ["Connected; no message for an hour."] * 2
    (tmp_path / "contact").unlink()
    now[0] += 60
    node.in_contact()  # by the heartbeat, while a message is worked on
    assert (tmp_path / "contact").exists()


def test_a_full_disk_ends_no_node(tmp_path):
    node = _Lifecycle(tmp_path / "no folder")
    node.joined(7)
    node.in_contact()


def test_a_node_without_a_reply_leaves_at_once(life):
    node, pauses, look = life
    look(None)
    with pytest.raises(SystemExit):
        node.finish(signal.SIGUSR1, None)
    assert pauses == [0.0]
