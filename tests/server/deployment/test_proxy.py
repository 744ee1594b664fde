"""The public door: its configuration, and a real nginx with it before something that notes what passes."""

import http.client
import os
import re
import resource
import signal
import socket
import ssl
import subprocess
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mmare.errors import InputError, RunError
from mmare.host.console import run_command
from mmare.host.supervised import ProcessSupervisor, Program
from mmare.wire.joining import key_fingerprint
from server.cli import app
from server.deployment import proxy
from server.deployment.programs import programs, proxy_answers
from server.deployment.proxy import (
    CONFIG,
    KEY_HEADER,
    key_header,
    nginx_command,
    nginx_program,
    proxy_config,
    shared_proxy_config,
    write_proxy,
)
from server.deployment.services import Services
from server.membership.certificates import Pair, new_authority, new_server
from server.membership.kit import init_kit, load_kit
from server.membership.records import Admitted, SiteState, find, save
from tests.strange_servers import free_port, https_server
from tests.system.deployment import needs_nginx

HELLO = b"\x16\x03\x01\x02\x00\x01"  # of a handshake that is begun and never goes on

OPEN = (("GET", "/health"), ("POST", "/v1/fleet/pull-messages"), ("POST", "/v1/fleet/push-object"))

CLOSED = (  # paths that no site asks for
    "/",
    "/docs",
    "/openapi.json",
    "/redoc",
    "/health/",
    "/health?x=1",
    "/HEALTH",
    "//health",
    "/./health",
    "/v1/fleet",
    "/v1/fleet/",
    "/v1/fleet/pull-messages/",
    "/v1/fleet/pull-messages?x=/v1/control/list-runs",
    "/v1/fleet/pull-messages/x",
    "/v1/control/list-runs",
    "/v1/control/start-run",
    "/v1/runtime/acquire-task",
    "//v1/control/list-runs",
    "/v1//control/list-runs",
    "//v1/fleet/pull-messages",
    "/v1/fleet/../control/list-runs",
    "/v1/fleet/%2e%2e/control/list-runs",
    "/v1/fleet/%2E%2E%2Fcontrol/list-runs",
    "/v1/fleet/..%2fcontrol/list-runs",
    "/v1/fleet/%252e%252e/control/list-runs",
    "/v1/fleet/x/../../control/list-runs",
    "/v1/control/../fleet/pull-messages",
    "/v1/control/list-runs/../../fleet/pull-messages",
    "/v1/control/list-runs%2f..%2f..%2ffleet/pull-messages",
    "/v1/%63ontrol/list-runs",
    "/v1/fleet/pull%2dmessages",
    "/v1/fleet/%70ull-messages",
    "/v1/fleet/;/../control/list-runs",
    "/v1/fleet\\..\\control\\list-runs",
    "/./v1/control/list-runs",
    "/v1/fleet/pull-messages#",
    "/v1/FLEET/pull-messages",
    "http://localhost/v1/control/list-runs",
)


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    """A public door with something behind it; gives the kit and what was let through."""
    folder = tmp_path_factory.mktemp("door")
    port, asked = free_port(), []

    def superlink(method, path):
        asked.append((method, path))
        return 200, b"superlink"

    kit = init_kit(folder / "kit", "join.example.org", port)
    admit(kit, "ash")
    pair = Pair(kit.key.read_bytes(), kit.certificate.read_bytes())
    (folder / "behind").mkdir()
    with https_server(folder / "behind", pair, superlink) as behind, ProcessSupervisor() as processes:
        text = kit.config.read_text().replace("superlink_port = 9095", f"superlink_port = {behind}")
        kit.config.write_text(text)
        kit = load_kit(kit.folder)
        assert kit.superlink_port == behind
        write_proxy(kit)
        processes.keep(Program("nginx", nginx_command(kit), kit.logs / "proxy.log"))
        processes.poll()
        end = time.monotonic() + 20
        while not proxy_answers(kit):
            assert time.monotonic() < end, (kit.logs / "proxy.log").read_text()
            time.sleep(0.05)
        yield kit, asked, processes


def admit(kit, name):
    """Record a site with a key; gives the key."""
    key = generate_private_key(SECP384R1()).public_key()
    words = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    save(kit, Admitted(name, words, key_fingerprint(words), "2026-01-01T00:00:00+00:00", "0.1.0"))
    return words


def status(kit, verb, path, body=b"", port=None, timeout_s=10, key="ash", length=None):
    """Of an answer to a request that is sent letter by letter, with the key of a site or another one."""
    key = key_header(find(kit, key).public_key) if key == "ash" else key
    context = ssl.create_default_context(cafile=str(kit.ca_certificate))
    lines = (
        f"{verb} {path} HTTP/1.1",
        f"Host: {kit.host}",
        f"Content-Length: {len(body) if length is None else length}",
        "Connection: close",
        f"{KEY_HEADER}: {key}",
    )
    head = "\r\n".join(lines) + "\r\n\r\n"
    with (
        socket.create_connection(("127.0.0.1", port or kit.port), timeout=timeout_s) as plain,
        context.wrap_socket(plain, server_hostname=kit.host) as secured,
    ):
        secured.sendall(head.encode() + body)
        return int(secured.recv(4096).split()[1])


@pytest.mark.system
@needs_nginx
def test_sites_and_health_are_let_through_unchanged(door):
    kit, asked, _ = door
    asked.clear()
    assert status(kit, "GET", "/health") == 200
    assert status(kit, "POST", "/v1/fleet/pull-messages", b"x" * 300_000) == 200
    assert asked == [("GET", "/health"), ("POST", "/v1/fleet/pull-messages")]


@pytest.mark.system
@needs_nginx
@pytest.mark.parametrize("verb", ["GET", "POST", "PUT", "PROPFIND"])
def test_nothing_else_is(door, verb):
    kit, asked, _ = door
    asked.clear()
    answers = {path: status(kit, verb, path) for path in CLOSED}
    assert asked == []
    assert set(answers.values()) <= {400, 403, 404, 405}, answers


@pytest.mark.system
@needs_nginx
@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("POST", "/health"),
        ("DELETE", "/health"),
        ("GET", "/v1/fleet/pull-messages"),
        ("PUT", "/v1/fleet/push-object"),
    ],
)
def test_another_verb_is_refused(door, verb, path):
    kit, asked, _ = door
    asked.clear()
    assert status(kit, verb, path) == 403
    assert asked == []


@pytest.mark.system
@needs_nginx
def test_a_body_that_no_site_sends_is_refused_before_it_is_read(door):
    kit, asked, _ = door
    asked.clear()
    context = ssl.create_default_context(cafile=str(kit.ca_certificate))
    context.check_hostname = False
    connection = http.client.HTTPSConnection("127.0.0.1", kit.port, context=context, timeout=10)
    connection.putrequest("POST", "/v1/fleet/push-object")
    connection.putheader("content-length", str(17 * 2**20))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
    assert status(kit, "POST", "/v1/fleet/push-object", b"x" * (6 * 2**20)) == 200
    assert asked == [("POST", "/v1/fleet/push-object")]


@pytest.mark.system
@needs_nginx
def test_a_body_of_a_stranger_is_not_read_and_nothing_of_it_reaches_superlink(door):
    kit, asked, _ = door
    asked.clear()
    stranger = key_header(admit(init_kit(kit.folder.parent / "elsewhere", "localhost"), "ash"))
    for key in ("", "x", stranger):
        began = time.monotonic()
        assert status(kit, "POST", "/v1/fleet/push-object", b"x" * 1000, key=key, length=15 << 20) == 401
        assert time.monotonic() - began < 3.0  # it does not wait for the rest
    assert asked == []


@pytest.mark.system
@needs_nginx
def test_who_is_admitted_or_revoked_while_it_runs_is_let_in_or_not(door, tmp_path):
    kit, asked, _ = door
    with ProcessSupervisor() as processes:
        port = free_port()
        other = init_kit(tmp_path / "kit", "localhost", port, superlink_port=kit.superlink_port)
        for name in ("ca.crt", "ca.key", "server.crt", "server.key"):  # as what is behind trusts
            (other.folder / name).write_bytes((kit.folder / name).read_bytes())
        write_proxy(other)
        served = Services(other, processes, print)
        door_program = next(each for each in programs(other) if each.name == "proxy")
        processes.keep(door_program)
        words = admit(other, "birch")
        asked.clear()

        def until(code):
            end = time.monotonic() + 20
            while True:
                served.poll()
                try:
                    if (
                        status(kit, "POST", "/v1/fleet/pull-messages", port=port, key=key_header(words))
                        == code
                    ):
                        return
                except OSError:
                    pass
                assert time.monotonic() < end, (other.logs / "proxy.log").read_text()
                time.sleep(0.05)

        until(200)
        save(other, replace(find(other, "birch"), state=SiteState.REVOKED))
        until(401)
    assert set(asked) == {("POST", "/v1/fleet/pull-messages")}


@pytest.mark.system
@needs_nginx
def test_who_is_refused_is_noted_and_who_is_let_through_is_not(door):
    kit, _, _ = door
    status(kit, "GET", "/v1/control/notable")
    status(kit, "GET", "/health")
    log = (kit.logs / "proxy.log").read_text()
    assert re.search(r'127\.0\.0\.1 "GET /v1/control/notable HTTP/1\.1" 404', log)
    assert "/health HTTP" not in log.split("notable", 1)[1]


@pytest.mark.system
@needs_nginx
def test_strangers_who_never_finish_a_header_push_no_hospital_out(door):
    kit, *_ = door
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    with ExitStack() as strangers:
        strangers.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        context = ssl.create_default_context(cafile=str(kit.ca_certificate))
        for _ in range(
            100
        ):  # whose handshake is over, and their header begun: nginx does not let go of these
            plain = strangers.enter_context(socket.create_connection(("127.0.0.1", kit.port), timeout=10))
            secured = strangers.enter_context(context.wrap_socket(plain, server_hostname=kit.host))
            secured.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: ")
        for _ in range(1500):
            plain = strangers.enter_context(socket.create_connection(("127.0.0.1", kit.port), timeout=10))
            plain.sendall(HELLO)
        assert (
            status(kit, "POST", "/v1/fleet/pull-messages", timeout_s=4) == 200
        )  # they hold theirs for longer


@pytest.mark.system
@needs_nginx
def test_plain_text_and_old_tls_are_refused(door):
    kit, asked, _ = door
    asked.clear()
    connection = http.client.HTTPConnection("127.0.0.1", kit.port, timeout=10)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 400
    connection.close()
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(cafile=str(kit.ca_certificate))
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", kit.port), timeout=10) as plain,
        old.wrap_socket(plain, server_hostname=kit.host) as secured,
    ):
        assert secured.version() in ("TLSv1.2", "TLSv1.3")
    assert asked == []


@pytest.mark.system
@needs_nginx
def test_killed_with_its_worker_left_it_is_back_on_the_same_port(door):
    kit, _, processes = door
    pid = processes.pid("nginx")
    os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 20
    while processes.pid("nginx") in (None, pid) or not proxy_answers(kit):
        processes.poll()
        assert time.monotonic() < end, (kit.logs / "proxy.log").read_text()
        time.sleep(0.05)
    assert status(kit, "GET", "/health") == 200


@pytest.mark.system
@needs_nginx
def test_superlink_with_another_certificate_is_not_spoken_to(tmp_path):
    asked = []
    other = new_server(new_authority("somebody"), "localhost")
    with https_server(tmp_path, other, lambda *call: asked.append(call) or (200, b"")) as behind:
        kit = init_kit(tmp_path / "kit", "localhost", free_port(), superlink_port=behind)
        write_proxy(kit)
        with ProcessSupervisor() as processes:
            processes.keep(Program("nginx", nginx_command(kit), tmp_path / "nginx.log"))
            processes.poll()
            end = time.monotonic() + 20
            while True:
                try:
                    assert status(kit, "GET", "/health", key="") == 502
                    break
                except OSError:
                    assert time.monotonic() < end, (tmp_path / "nginx.log").read_text()
                    time.sleep(0.05)
    assert asked == []
    assert "certificate verify" in (tmp_path / "nginx.log").read_text()


@pytest.mark.system
@needs_nginx
def test_an_nginx_of_the_machine_takes_the_door_without_a_warning(tmp_path):
    folders = "".join(f"{name}_temp_path {tmp_path}/{name}; " for name in proxy.TEMPORARY[1:])
    main = f"pid {tmp_path}/pid; events {{ }}\nhttp {{ client_body_temp_path {tmp_path}/body; {folders}"
    (tmp_path / "nginx.conf").write_text(f"{main}include {tmp_path}/mmare.conf; }}\n")
    (tmp_path / "mmare.conf").write_text(shared_proxy_config(init_kit(tmp_path / "kit", "join.example.org")))
    done = subprocess.run(
        [nginx_program(), "-p", tmp_path, "-e", "stderr", "-c", tmp_path / "nginx.conf", "-t"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr


# The configuration

_LOCATION = re.compile(
    r"location (?:= (?P<exact>\S+)|~ (?P<pattern>\S+)) \{\n"
    r'\s+if \(\$request_uri (?:!=|!~) "(?P<uri>[^"]+)"\) \{ return 404; \}\n'
    r"\s+limit_except (?P<verb>[A-Z]+) \{ deny all; \}\n"
    r"(?:\s+if \(\$mmare_stranger\) \{ return 401 '[^']+'; \}\n)?"
    r"\s+proxy_pass https://mmare_superlink;\n\s+\}\n"
)


@pytest.fixture(params=["its own", "the machine's"])
def text(request, tmp_path):
    kit = init_kit(tmp_path / "kit", "join.example.org")
    return proxy_config(kit) if request.param == "its own" else shared_proxy_config(kit)


def test_what_is_let_through_is_asked_for_letter_by_letter(text):
    found = list(_LOCATION.finditer(text))
    assert len(found) == text.count("proxy_pass ")
    assert len(found) + 1 == text.count("location ")
    assert re.search(r"location / \{\s+return 404;\s+\}", text)
    for each in found:
        assert each["uri"] == (each["exact"] or each["pattern"])

    def passes(verb, path):
        return any(
            verb == each["verb"]
            and (path == each["uri"] if each["exact"] else re.search(each["uri"], path) is not None)
            for each in found
        )

    assert all(passes(verb, path) for verb, path in OPEN)
    assert not any(passes(verb, path) for verb in ("GET", "POST", "PUT") for path in CLOSED)
    assert not any(passes({"GET": "POST", "POST": "GET"}[verb], path) for verb, path in OPEN)


def test_the_way_to_superlink_is_checked_and_bodies_are_bounded(text, tmp_path):
    for line in ("proxy_ssl_verify on;", "client_max_body_size 16m;", "limit_conn mmare_connections 64;"):
        assert line in text
    assert f"proxy_ssl_trusted_certificate {tmp_path}/kit/ca.crt;" in text


def test_the_command_prints_the_door_for_an_nginx_of_the_machine(tmp_path, capsys):
    kit = init_kit(tmp_path / "kit", "join.example.org", 8443)
    words = ["kit", "nginx", "--kit", str(kit.folder)]
    with pytest.raises(SystemExit, match="0"):
        run_command(lambda given: app(given, standalone_mode=True), words)
    printed = capsys.readouterr().out
    assert printed == shared_proxy_config(kit)
    assert "    listen 8443 ssl;\n    server_name join.example.org;\n" in printed
    own = proxy_config(kit)
    door = [line for line in printed.splitlines() if line and not line.startswith("#")]
    assert [line for line in door if line not in own] == ["    server_name join.example.org;"]


def test_no_path_outside_the_kit_is_written_to(tmp_path):
    text = proxy_config(init_kit(tmp_path / "kit", "localhost"))
    paths = set(re.findall(r"(?<=\s)(/[^\s;]+)", text)) - {"/dev/stdout", "/health"}
    assert len(paths) == 10
    foreign = [path for path in paths if not path.startswith(str(tmp_path))]
    assert foreign == []
    assert "$$" not in text
    assert "user" not in text.split("events")[0]


def test_a_root_that_starts_it_gives_the_worker_its_own_user(tmp_path):
    text = proxy_config(init_kit(tmp_path / "kit", "localhost"), "mmare mmare", ipv6=True)
    assert "\nuser mmare mmare;\n" in text
    assert "listen [::]:443 ssl;" in text


def test_a_path_that_nginx_would_read_otherwise_is_refused(tmp_path):
    kit = init_kit(tmp_path / "the kit", "localhost")
    with pytest.raises(InputError, match="nginx accepts no path with blanks"):
        write_proxy(kit)


def test_where_nginx_is_missing_it_is_said_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(proxy.shutil, "which", lambda *_, **__: None)
    with pytest.raises(InputError, match=r"nginx: not installed.*--no-proxy"):
        write_proxy(init_kit(tmp_path / "kit", "localhost"))


@pytest.mark.system
@needs_nginx
def test_what_nginx_does_not_take_is_said_in_its_words(tmp_path):
    kit = init_kit(tmp_path / "kit", "localhost")
    kit.certificate.write_text("no certificate\n")
    with pytest.raises(RunError, match=rf"{CONFIG}: nginx rejects it: cannot load certificate"):
        write_proxy(kit)
    assert Path(kit.nginx / CONFIG).exists()
