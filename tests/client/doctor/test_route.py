"""The connection to the coordinator: each step's row against real servers and proxies on loopback."""

import os
import socket
import ssl
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from client.doctor import route
from client.doctor.certificates import EXPIRED, Certificate, certificate_obstacle
from client.doctor.findings import Obstacle, Verdict
from client.doctor.network import check_network, clock_finding
from client.doctor.proxies import proxy_for
from client.doctor.route import Answer
from mmare.wire.joining import Coordinator
from server.membership.certificates import new_authority, new_server
from tests.strange_servers import connect_proxy, flower, free_port, https_server, plain_server

RUNTIME_PORT = 9094
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def authority():
    return new_authority("north")


@pytest.fixture
def ca(authority, tmp_path):
    path = tmp_path / "ca.crt"
    path.write_bytes(authority.certificate)
    return path


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(route, "STEP_S", 0.5)  # loopback answers at once, or never


def look(port, ca, proxies=None, host="localhost", tell_speed=lambda _: None):
    with environment(proxies or {}):
        return check_network(Coordinator("north", host, port, "elm"), ca, RUNTIME_PORT, tell_speed)


@contextmanager
def environment(proxies):
    """The variables that name proxies, and no others of that kind."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            patch.delenv(name)
        for name, value in proxies.items():
            patch.setenv(name, value)
        yield


def by_check(findings):
    return {finding.check: finding for finding in findings}


def only_problem(findings):
    bad = [finding for finding in findings if finding.verdict is not Verdict.OK]
    assert [finding.verdict for finding in bad] == [Verdict.PROBLEM]
    assert bad == findings[-1:]  # nothing is tried after it
    assert bad[0].advice
    return bad[0]


def through(proxy, login=""):
    return {"HTTPS_PROXY": f"http://{login}127.0.0.1:{proxy.port}"}


def test_a_good_coordinator_has_seven_good_rows(authority, ca, tmp_path):
    asked = []

    def reply(method, path):
        asked.append((method, path))
        return flower(method, path)

    with https_server(tmp_path, new_server(authority, "localhost"), reply) as port:
        speeds = []
        findings = look(port, ca, tell_speed=speeds.append)
    assert len(speeds) == 1
    assert speeds[0] > 1e6  # of loopback
    assert [finding.check for finding in findings] == [
        *("proxy", "name", "connection", "TLS", "coordinator", "clock", "fleet"),
    ]
    assert {finding.verdict for finding in findings} == {Verdict.OK}
    assert asked == [("GET", "/health"), *[("POST", "/v1/fleet/pull-messages")] * 2]
    tls = by_check(findings)["TLS"].found
    assert tls.startswith("TLSv1.3")
    assert "396 more days" in tls


@pytest.mark.parametrize(
    ("start", "days", "words"),
    [
        pytest.param(NOW - timedelta(days=400), 397, "certificate expired on", id="expired"),
        pytest.param(NOW + timedelta(days=2), 397, "is valid only from", id="not yet valid"),
    ],
)
def test_an_expired_certificate_names_the_clock(authority, ca, tmp_path, start, days, words):
    pair = new_server(authority, "localhost", days=days, start=start)
    with https_server(tmp_path, pair) as port:
        row = only_problem(look(port, ca))
    assert row.check == "TLS"
    assert f"the coordinator's {words.removeprefix('certificate ')}" in row.found.replace("certificate ", "")
    assert f"this machine's clock says {NOW:%Y-%m-%d}" in row.found
    assert "mmare-server kit renew" in row.advice


def test_an_expired_authority_asks_for_a_new_bundle():
    error = ssl.SSLCertVerificationError("verify failed")
    error.verify_code = EXPIRED
    year = timedelta(days=365)
    shown = Certificate("CN=localhost", "CN=north authority", NOW - year, NOW + year, ("localhost",))
    authority = Certificate("CN=north authority", "CN=north authority", NOW - 10 * year, NOW - year, ())
    row = certificate_obstacle(error, shown, authority, "localhost")
    assert "the federation's authority in the kit expired" in row.found
    assert "new bundle" in row.advice


def test_few_days_left_is_a_warning(authority, ca, tmp_path):
    with https_server(tmp_path, new_server(authority, "localhost", days=12)) as port:
        row = by_check(look(port, ca))["TLS"]
    assert row.verdict is Verdict.WARNING
    assert "valid for 11 more days" in row.found


def test_an_authority_that_ends_soon_is_a_warning(tmp_path):
    old = new_authority("north", start=NOW - timedelta(days=3653 - 60))
    (tmp_path / "ca.crt").write_bytes(old.certificate)
    with https_server(tmp_path, new_server(old, "localhost")) as port:
        rows = [row for row in look(port, tmp_path / "ca.crt") if row.verdict is Verdict.WARNING]
    assert [row.found for row in rows] == ["the federation's authority expires in 59 days"]


def test_another_address_than_the_certificates_is_named(authority, ca, tmp_path):
    pair = new_server(authority, "fed.example.org")
    with https_server(tmp_path, pair, address="127.0.0.2") as port:
        row = only_problem(look(port, ca, host="127.0.0.2"))
    assert row.found == "the certificate is for fed.example.org, localhost, 127.0.0.1, not for 127.0.0.2"


def test_another_name_than_the_certificates_is_named(authority, ca, tmp_path):
    with (
        https_server(tmp_path, new_server(authority, "fed.example.org")) as port,
        connect_proxy(port) as proxy,
    ):
        row = only_problem(look(443, ca, through(proxy), host="other.example.org"))
    assert (
        row.found == "the certificate is for fed.example.org, localhost, 127.0.0.1, not for other.example.org"
    )


def test_a_firewall_that_intercepts_tls_is_named(ca, tmp_path):
    firewall = new_authority("Gate Inspection")
    asked = []
    with https_server(tmp_path, new_server(firewall, "localhost"), lambda *it: asked.append(it)) as port:
        row = only_problem(look(port, ca))
    assert asked == []  # not even while its certificate is read
    assert "issued by CN=Gate Inspection authority" in row.found
    assert "the federation's authority is CN=north authority" in row.found
    assert "if CN=Gate Inspection authority is a proxy or firewall of this hospital" in row.advice


def test_a_new_authority_of_the_same_name_asks_for_a_new_bundle(ca, tmp_path):
    with https_server(tmp_path, new_server(new_authority("north"), "localhost")) as port:
        row = only_problem(look(port, ca))
    assert "signed by another CN=north authority than the kit's" in row.found
    assert "new bundle" in row.advice


@pytest.mark.parametrize("content", [None, b"", b"not a certificate"], ids=["missing", "empty", "text"])
def test_a_kit_without_an_authority_is_reported(authority, tmp_path, content):
    ca = tmp_path / "ca.crt"
    if content is not None:
        ca.write_bytes(content)
    with https_server(tmp_path, new_server(authority, "localhost")) as port:
        row = only_problem(look(port, ca))
    assert row.found.startswith(f"{ca} holds no certificate")
    assert "mmare-site kit install" in row.advice


def test_a_port_without_tls_is_reported(ca):
    with plain_server(b"SSH-2.0-OpenSSH_9.2\r\n") as port:
        row = only_problem(look(port, ca))
    assert (row.check, row.found) == ("TLS", "the program that answers does not speak TLS")


def test_a_silent_server_is_reported(ca):
    with plain_server(b"", hold=True) as port:
        row = only_problem(look(port, ca))
    assert row.found == "the connection opens, but the TLS handshake gets no answer"
    assert "inspects TLS" in row.advice


def test_a_closed_port_is_reported(ca):
    row = only_problem(look(free_port(), ca))
    assert row.check == "connection"
    assert "refuses the connection" in row.found
    assert "mmare-server start" in row.advice


def test_an_unknown_name_is_reported(ca):
    row = only_problem(look(443, ca, host="nobody.invalid"))
    assert row.check == "name"
    assert row.found.startswith(("nobody.invalid has no address", "no name server answers"))


def test_a_silent_name_server_times_out(ca, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(5) or [])
    before = time.monotonic()
    row = only_problem(look(443, ca, host="fed.example.org"))
    assert time.monotonic() - before < 3
    assert row.found == "no name server answers for fed.example.org"


def test_an_address_that_does_not_answer_beside_one_that_does_is_a_warning(
    authority, ca, tmp_path, monkeypatch
):
    both = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.3", "127.0.0.1")
    ]
    real = socket.getaddrinfo

    def found(host, *arguments, **options):
        return both if host == "localhost" else real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", found)
    with https_server(tmp_path, new_server(authority, "localhost")) as port:
        findings = look(port, ca)
    row = by_check(findings)["connection"]
    assert row.verdict is Verdict.WARNING
    assert row.found == f"TCP port {port} answers at 127.0.0.1, but not at 127.0.0.3"
    assert by_check(findings)["fleet"].verdict is Verdict.OK  # over the one that does


# What the coordinator answers


@pytest.mark.parametrize(
    ("path", "status", "body", "check", "words"),
    [
        pytest.param("/health", 404, b"", "coordinator", "/health answers 404, expected 200", id="no health"),
        pytest.param(
            "/health", 502, b"", "coordinator", "SuperLink behind it does not run", id="no superlink"
        ),
        pytest.param("/v1", 404, b"", "fleet", "/v1/fleet/ answers 404, expected 401", id="no fleet"),
        pytest.param(
            "/v1", 401, b"<html>", "fleet", "/v1/fleet/ answers 401, expected 401 of Flower", id="login"
        ),
        pytest.param("/v1", 403, b"{}", "fleet", "/v1/fleet/ answers 403", id="forbidden"),
        pytest.param("/v1", 503, b"", "fleet", "SuperLink behind it does not run", id="superlink gone"),
    ],
)
def test_a_wrong_answer_is_a_problem(authority, ca, tmp_path, path, status, body, check, words):
    def reply(method, asked):
        return (status, body) if asked.startswith(path) else flower(method, asked)

    with https_server(tmp_path, new_server(authority, "localhost"), reply) as port:
        rows = [row for row in look(port, ca) if row.verdict is Verdict.PROBLEM]
    assert [row.check for row in rows] == [check]
    assert words in rows[0].found


def test_a_fleet_that_asks_for_no_key_is_a_warning(authority, ca, tmp_path):
    with https_server(tmp_path, new_server(authority, "localhost"), lambda *_: (200, b"")) as port:
        row = by_check(look(port, ca))["fleet"]
    assert row.verdict is Verdict.WARNING
    assert "node authentication is off" in row.advice


@pytest.mark.parametrize(
    ("clock_s", "verdict", "words"),
    [
        pytest.param(1, Verdict.OK, "agrees", id="one second"),
        pytest.param(-60, Verdict.PROBLEM, "60 s ahead of", id="a minute ahead"),
        pytest.param(60, Verdict.WARNING, "60 s behind", id="a minute behind"),
        pytest.param(400, Verdict.PROBLEM, "400 s behind", id="too far behind"),
    ],
)
def test_the_clock_is_compared_with_the_coordinators(authority, ca, tmp_path, clock_s, verdict, words):
    with https_server(tmp_path, new_server(authority, "localhost"), clock_s=clock_s) as port:
        row = by_check(look(port, ca))["clock"]
    assert row.verdict is verdict
    said = (
        row.found.replace("61 s", "60 s")
        .replace("59 s", "60 s")
        .replace("401 s", "400 s")
        .replace("399", "400")
    )
    assert words in said


@pytest.mark.parametrize(
    ("ahead_s", "verdict"),
    [
        (-400, "problem"),
        (-304, "warning"),
        (-29, "ok"),
        (1.4, "ok"),
        (4, "warning"),
        (5.4, "warning"),
        (7, "problem"),
    ],
)
def test_a_clock_is_a_problem_only_where_flower_surely_refuses_it(ahead_s, verdict):
    there = 1_700_000_000
    date = datetime.fromtimestamp(there, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    now = there + ahead_s + 0.5  # the date was cut to whole seconds
    assert clock_finding(Answer(200, {"date": date}, b"", now - 0.01, now + 0.01)).verdict.value == verdict


def test_the_tolerance_is_flowers():
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

    from client.doctor.network import MOST_AHEAD_S, MOST_BEHIND_S

    assert MOST_AHEAD_S == SYSTEM_TIME_TOLERANCE
    assert MOST_BEHIND_S == TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE


def test_an_invalid_date_is_a_warning():
    row = clock_finding(Answer(200, {"date": "yesterday"}, b"", 0.0, 0.0))
    assert row.verdict is Verdict.WARNING


# Proxies


def test_everything_goes_through_the_proxy(authority, ca, tmp_path):
    with (
        https_server(tmp_path, new_server(authority, "fed.example.org")) as port,
        connect_proxy(port, login="Basic bWFyeTpzM0AgcHc=") as proxy,
    ):
        findings = look(8443, ca, through(proxy, "mary:s3%40%20pw@"), host="fed.example.org")
    assert {finding.verdict for finding in findings} == {Verdict.OK}
    assert by_check(findings)["tunnel"].found == "the proxy connects to fed.example.org:8443"
    assert all(head.startswith("CONNECT fed.example.org:8443 HTTP/1.1\r\n") for head in proxy.asked)
    assert len(proxy.asked) == 3  # questions, each on a connection of its own
    said = " ".join(f"{finding.found} {finding.advice}" for finding in findings)
    assert "HTTPS_PROXY: 127.0.0.1" in said
    assert not [secret for secret in ("s3", "mary", "bWFyeTp") if secret in said]


BASIC, NTLM = b"Proxy-Authenticate: Basic realm=x\r\n", b"Proxy-Authenticate: NTLM\r\n"


def answered(status, headers=b""):
    return b"HTTP/1.1 %d No\r\n%s\r\n" % (status, headers)


@pytest.mark.parametrize(
    ("refusal", "login", "words", "advice"),
    [
        pytest.param(answered(407, BASIC), "", "asks for a user name", "USER:", id="login"),
        pytest.param(answered(407), "mary:no@", "does not accept the user name", "%40", id="wrong login"),
        pytest.param(answered(407, NTLM), "", "a login by ntlm", "without a login", id="ntlm"),
        pytest.param(answered(403), "", "answers 403: it does not connect", "allow CONNECT", id="forbidden"),
        pytest.param(
            answered(503), "", "answers 503: it does not reach", "check the address", id="no way on"
        ),
        pytest.param(b"220 mail ESMTP\r\n\r\n", "", "does not answer as a proxy", "HTTPS_PROXY", id="mail"),
    ],
)
def test_a_proxy_that_refuses_is_explained(ca, refusal, login, words, advice):
    with connect_proxy(None, refusal) as proxy:
        row = only_problem(look(443, ca, through(proxy, login), host="fed.example.org"))
    assert row.check == "tunnel"
    assert words in row.found
    assert advice in row.advice
    assert "mary" not in row.found + row.advice


def test_a_silent_proxy_times_out(ca):
    with plain_server(b"", hold=True) as port:
        row = only_problem(look(443, ca, {"HTTPS_PROXY": f"http://127.0.0.1:{port}"}, host="fed.example.org"))
    assert "accepts the connection but does not answer (no answer)" in row.found


def test_a_proxy_that_hangs_up_is_explained(ca):
    with plain_server(b"") as port:
        row = only_problem(look(443, ca, {"HTTPS_PROXY": f"http://127.0.0.1:{port}"}, host="fed.example.org"))
    assert "accepts the connection but does not answer" in row.found


def test_an_unreachable_proxy_is_explained(ca):
    gone = {"HTTPS_PROXY": f"http://127.0.0.1:{free_port()}"}
    row = only_problem(look(443, ca, gone, host="fed.example.org"))
    assert row.check == "connection"
    assert "check the port of the proxy" in row.advice


@pytest.mark.parametrize(
    ("address", "words"),
    [
        pytest.param("socks5://127.0.0.1:1080", "names a proxy of type socks5", id="socks"),
        pytest.param("http://127.0.0.1:port", "does not hold an address", id="port"),
    ],
)
def test_a_variable_that_names_no_http_proxy_is_a_problem(ca, address, words):
    row = only_problem(look(443, ca, {"HTTPS_PROXY": address}))
    assert row.check == "proxy"
    assert words in row.found


def test_a_proxy_behind_tls_is_not_tried(ca):
    with plain_server(b"") as port:
        row = only_problem(look(443, ca, {"HTTPS_PROXY": f"https://127.0.0.1:{port}"}, host="a.example.org"))
    assert "reached over TLS, which this check does not support" in row.found


def test_loopback_behind_a_proxy_and_ranges_are_reported(authority, ca, tmp_path):
    around = {"HTTP_PROXY": "http://proxy.example.org:3128", "NO_PROXY": "10.0.0.0/8"}
    with https_server(tmp_path, new_server(authority, "localhost")) as port:
        rows = [row for row in look(port, ca, around) if row.check == "proxy"]
    assert [row.verdict for row in rows] == [Verdict.OK, Verdict.OK, Verdict.WARNING]
    assert "mmare-site start adds 127.0.0.1 and localhost" in rows[1].found
    assert "10.0.0.0/8" in rows[2].found


TLS = ssl.create_default_context()  # once: reading the authorities takes longer than a test

ENTRIES = [
    *("", "example.org", ".example.org", "*.example.org", "fed.example.org:8443", "fed.example.org:443", "*"),
    *("127.0.0.1", "localhost", "10.0.0.0/8", "10.1.2.3/8", "::1", "https://fed.example.org", "EXAMPLE.org"),
    *(
        "http://fed.example.org",
        "all://fed.example.org",
        "org",
        "127.0.0.1:9094",
        "a.org, localhost ,example.org",
    ),
]
HOSTS = ("fed.example.org", "example.org", "notexample.org", "127.0.0.1", "localhost", "10.1.2.3", "::1")


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"HTTPS_PROXY": "http://p:1"}, id="https"),
        pytest.param({"ALL_PROXY": "http://p:1"}, id="all"),
        pytest.param({"HTTP_PROXY": "p:1", "https_proxy": "http://u:w@p:2"}, id="both"),
        pytest.param({"HTTPS_PROXY": "p:1", "https_proxy": ""}, id="taken away"),
    ],
)
def test_the_proxy_is_the_one_that_flowers_client_takes(variables, entry):
    with environment({**variables, "NO_PROXY": entry}), httpx.Client(verify=TLS) as client:
        for scheme in ("http", "https"):
            for host in HOSTS:
                for port in (443, 80, 8443, 9094):
                    name = f"[{host}]" if ":" in host else host
                    taken = client._transport_for_url(httpx.URL(f"{scheme}://{name}:{port}/"))
                    direct = proxy_for(scheme, host, port) is None
                    assert direct == (taken is client._transport), (scheme, host, port)


def test_an_entry_of_no_proxy_that_stops_flowers_client_is_a_problem(ca):
    variables = {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "http://fed.example.org:port"}
    with environment(variables), pytest.raises(httpx.InvalidURL):
        httpx.Client()
    row = only_problem(look(443, ca, variables))
    assert row.check == "proxy"
    assert row.found.startswith("NO_PROXY holds")


def test_a_password_is_not_in_any_text():
    with environment({"ALL_PROXY": "http://mary:secret@proxy"}):
        proxy = proxy_for("https", "fed.example.org", 443)
    assert str(proxy) == "ALL_PROXY: proxy:80, with a user name"
    assert "secret" not in repr(proxy)
    with environment({"ALL_PROXY": "socks5://mary:secret@proxy"}), pytest.raises(Obstacle) as caught:
        proxy_for("https", "fed.example.org", 443)
    assert "secret" not in f"{caught.value.found}{caught.value.advice}"
