"""What can be known without a SuperLink; with a real one: `tests/system/test_kit.py`."""

import pytest

from mmare.errors import InputError, RunError
from server.membership.flower_nodes import (
    register,
    register_admitted,
    registered,
    superlink_answers,
)
from server.membership.kit import Kit, init_kit
from server.membership.records import admit, find, revoke
from tests.kits import asked, free_port, served

WELL = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ILL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
def kit(tmp_path) -> Kit:
    return init_kit(tmp_path / "coordinator", "localhost", superlink_port=free_port())


def on_port(kit: Kit, port: int) -> Kit:
    return Kit(kit.folder, kit.federation, kit.host, kit.port, port)


@pytest.mark.parametrize(
    ("answer", "answers"), [pytest.param(WELL, True, id="well"), pytest.param(ILL, False, id="ill")]
)
def test_superlink_answers_when_its_health_page_does(kit, answer, answers):
    with served(kit.certificate, kit.key, answer) as port:
        assert superlink_answers(on_port(kit, port)) is answers


def test_nobody_and_somebody_else_are_no_superlink_of_this_kit(kit, tmp_path):
    assert not superlink_answers(kit)
    other = init_kit(tmp_path / "other", "localhost")
    with served(other.certificate, other.key, WELL) as port:
        assert not superlink_answers(on_port(kit, port))


@pytest.mark.slow
def test_without_superlink_there_is_a_sentence_and_no_change(kit, tmp_path):
    admit(kit, asked(tmp_path)[1])
    record = find(kit, "ash")
    for ask in (registered, register_admitted, lambda kit: register(kit, "ash")):
        with pytest.raises(
            RunError, match=rf"SuperLink on 127\.0\.0\.1:{kit.superlink_port} does not list"
        ) as raised:
            ask(kit)
        assert "\n" not in str(raised.value)
    assert find(kit, "ash") == record


def test_only_admitted_sites_are_registered(kit, tmp_path):
    with pytest.raises(InputError, match="no site 'ash' was admitted"):
        register(kit, "ash")
    admit(kit, asked(tmp_path)[1])
    revoke(kit, "ash")
    with pytest.raises(InputError, match="'ash' is revoked"):
        register(kit, "ash")
