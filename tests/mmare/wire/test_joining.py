import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmare.errors import InputError
from mmare.wire.joining import (
    Coordinator,
    JoinRequest,
    SiteKit,
    check_host,
    key_fingerprint,
    parse_coordinator,
    read_request,
)

REQUEST = JoinRequest("ash", "ecdsa-sha2-nistp384 AAAA", "0.1.0")
ADDRESS = {"federation": "kidney", "host": "join.example.org", "port": 443, "site": "ash"}


def test_a_request_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "request.json"
    path.write_bytes(REQUEST.content())
    assert read_request(path) == REQUEST
    path.write_bytes(b"\xef\xbb\xbf" + REQUEST.content())  # as an editor may save it
    assert read_request(path) == REQUEST


def test_a_request_names_four_things_and_no_more():
    assert set(json.loads(REQUEST.content())) == {"format", "site", "public_key", "software"}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param(b"", "not a request to join \\(not JSON\\)", id="empty"),
        pytest.param(b"\x89PNG\r\n\x1a\n\xff", "not JSON", id="a picture"),
        pytest.param(b"[]", "expected an object, found list", id="a list"),
        pytest.param(b"[" * 15_000, "not JSON", id="deep"),
        pytest.param(b"9" * 10_000, "not JSON", id="a number longer than Python reads"),
        pytest.param(b"{}", "lacks the key 'site'", id="no fields"),
        pytest.param(b" " * 20_000, "more than 16384 bytes", id="too large"),
        pytest.param(
            b'{"site": "-----BEGIN OPENSSH PRIVATE KEY-----"}', "private key.*--new-key", id="secret"
        ),
    ],
)
def test_an_invalid_request_is_one_sentence(tmp_path, content, why):
    path = tmp_path / "request.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"request.json: .*{why}") as raised:
        read_request(path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        pytest.param({"format": 2, "software": "9.9"}, "format 2, expected 1; .*'9.9'", id="newer format"),
        pytest.param({"format": True}, "format must be a whole number", id="format true"),
        pytest.param({"site": "../../etc"}, "site is '../../etc'", id="a path"),
        pytest.param({"site": "a/b"}, "site is 'a/b'", id="a slash"),
        pytest.param({"site": ".hidden"}, "site is '.hidden'", id="a dot first"),
        pytest.param({"site": "ash\n"}, "site is 'ash", id="a line break"),
        pytest.param({"site": ""}, "site is ''", id="empty"),
        pytest.param({"site": "a" * 101}, "at most 100 letters", id="too long"),
        pytest.param({"site": "krankenhäuser"}, "letters, digits", id="not ASCII"),
        pytest.param({"site": 7}, "site must be text, found 7", id="a number"),
        pytest.param({"public_key": None}, "public_key must be text, found None", id="no key"),
        pytest.param({"private_key": "x"}, "unknown key 'private_key'", id="more than asked"),
    ],
)
def test_an_invalid_field_is_one_sentence(tmp_path, fields, why):
    path = tmp_path / "request.json"
    path.write_text(json.dumps({**json.loads(REQUEST.content()), **fields}))
    with pytest.raises(InputError, match=f"request.json: .*{why}"):
        read_request(path)


def test_a_missing_request_or_a_folder_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="no such request file"):
        read_request(tmp_path / "request.json")
    with pytest.raises(InputError, match=r"cannot be read \(IsADirectoryError\)"):
        read_request(tmp_path)


@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda text: json.dumps({"site": text}).encode()))
def test_any_bytes_are_a_request_or_one_sentence(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("request") / "request.json"
    path.write_bytes(content)
    with pytest.raises(InputError):
        read_request(path)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        pytest.param("Join.Example.ORG", "join.example.org", id="capitals"),
        pytest.param(" join.example.org. ", "join.example.org", id="dot and spaces"),
        pytest.param("localhost", "localhost", id="one label"),
        pytest.param("xn--krankenhuser-o8a.de", "xn--krankenhuser-o8a.de", id="punycode"),
        pytest.param("10.0.0.7", "10.0.0.7", id="IPv4"),
        pytest.param("FD00:0:0::7", "fd00::7", id="IPv6"),
    ],
)
def test_a_host_is_normalised(text, host):
    assert check_host(text) == host
    assert check_host(host) == host


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param(".", id="a dot"),
        pytest.param("a..b", id="an empty label"),
        pytest.param("-a.org", id="dash first"),
        pytest.param("a-.org", id="dash last"),
        pytest.param("a_b.org", id="underscore"),
        pytest.param("a b", id="space"),
        pytest.param("a\nb", id="line break"),
        pytest.param("https://a.org", id="URL"),
        pytest.param("a.org:443", id="port"),
        pytest.param("[::1]", id="brackets"),
        pytest.param("a/b", id="slash"),
        pytest.param("*.example.org", id="any name"),
        pytest.param("1.2.3", id="three numbers"),
        pytest.param("256.1.1.1", id="a number too high"),
        pytest.param("a" * 64 + ".org", id="label too long"),
        pytest.param("a." * 127 + "org", id="name too long"),
    ],
)
def test_an_invalid_host_is_one_sentence(text):
    with pytest.raises(InputError, match="expected a name such as"):
        check_host(text)


def test_an_address_has_flowers_format():
    assert Coordinator(**ADDRESS).address == "join.example.org:443"
    assert Coordinator(**{**ADDRESS, "host": "fd00::7"}).address == "[fd00::7]:443"


def test_a_fingerprint_needs_a_key():
    with pytest.raises(ValueError, match="OpenSSH"):
        key_fingerprint("hello")
    with pytest.raises(ValueError, match=r"[Bb]ase64|padding|character"):
        key_fingerprint("ecdsa-sha2-nistp384 %%%")


def test_a_coordinator_is_read_from_its_tables(tmp_path):
    assert parse_coordinator(dict(ADDRESS), "x") == Coordinator(**ADDRESS)
    kit = SiteKit(tmp_path)
    with pytest.raises(InputError, match=r"coordinator\.toml: not there; .* mmare-site kit install"):
        kit.coordinator()
    kit.joined.write_text("federation = ")
    with pytest.raises(InputError, match=r"coordinator\.toml: not valid TOML"):
        kit.coordinator()
    kit.joined.write_text('federation = "kidney"\nhost = "join.example.org"\nport = 443\nsite = "ash"\n')
    assert kit.coordinator() == Coordinator(**ADDRESS)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        pytest.param({"port": "443"}, "port must be a whole number, found '443'", id="port as text"),
        pytest.param({"port": 0}, "port is 0, expected 1 to 65535", id="port 0"),
        pytest.param({"host": "a b"}, "host is 'a b'", id="host"),
        pytest.param({"site": 1}, "site must be text", id="site"),
        pytest.param({"command": "rm"}, "unknown key 'command'", id="more than asked"),
    ],
)
def test_an_invalid_address_is_one_sentence(fields, why):
    with pytest.raises(InputError, match=f"somewhere: .*{why}"):
        parse_coordinator({**ADDRESS, **fields}, "somewhere")
