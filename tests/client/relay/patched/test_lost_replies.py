import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # a process of Flower's client each

REJOINED = ["deactivate-node", "send-node-heartbeat"]


def after(tmp_path, what, *answers):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.client.relay.patched.losing_coordinator",
            str(tmp_path),
            what,
            *answers,
        ],
        env={**os.environ, "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_TELEMETRY_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("answers", "came", "asked"),
    [
        pytest.param(["one"], True, [], id="a message"),
        pytest.param(["none"], False, [], id="none"),
        pytest.param(["ConnectError", "none"], False, [], id="never asked"),
        pytest.param(["ReadError", "none"], False, REJOINED, id="cut"),
        pytest.param(["RemoteProtocolError", "ConnectError", "none"], False, REJOINED, id="proxy killed"),
        pytest.param(["ReadTimeout", "none"], False, REJOINED, id="no answer in time"),
        pytest.param(["502", "none"], False, REJOINED, id="from the proxy"),
        pytest.param(["ReadError", "one"], True, [], id="cut, and a message after all"),
    ],
)
def test_a_node_goes_offline_only_if_a_message_may_be_lost(tmp_path, answers, came, asked):
    """Then the coordinator sends the message again."""
    assert after(tmp_path, "pull", *answers) == ["message" if came else None, asked]


@pytest.mark.parametrize(
    ("answers", "refused"),
    [
        pytest.param(["stored"], False, id="stored"),
        pytest.param(["ReadError", "stored"], False, id="cut on the way there"),
        pytest.param(["ReadError", "refused"], False, id="cut on the way back"),
        pytest.param(["ConnectError", "refused"], True, id="refused without a loss"),
        pytest.param(["refused"], True, id="refused"),
    ],
)
def test_a_part_of_a_reply_that_has_arrived_is_no_failure(tmp_path, answers, refused):
    assert after(tmp_path, "push", *answers) == ["refused" if refused else None, []]
