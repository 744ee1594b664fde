"""Who gets into a local web application, and what forms may hold."""

import socket

import pytest

from mmare.errors import InputError
from mmare.host.web import MOST_BODY, Asked, Done, File, LocalApp, Page, check_port, element, table
from tests.consoles import Visitor, words

PORT = 9466


def make_app(seen=None):
    def act(asked: Asked):
        if seen is not None:
            seen.append(asked)
        return Done("done <b>", "/")

    def fails(_asked):
        raise InputError("width is 0, expected 1")

    pages = {
        "": lambda _: Page("First", (element("p", "a < b"),)),
        "file": lambda _: File("a b.zip", b"zip"),
        "fails": fails,
    }
    return LocalApp("tests", PORT, pages, {"act": act, "fails": fails}, [("", "First"), ("file", "File")])


def test_the_link_lets_one_browser_in_once():
    app = make_app()
    visitor = Visitor(app, PORT)
    assert "First" in visitor.see("/")
    other = Visitor(app, PORT, inside=False)
    status, _, body = other.enter(app.link.replace("None", "x"))
    assert (status, body[:18]) == (403, "This link was used")
    assert other.ask("GET", "/")[0] == 403


@pytest.mark.parametrize("token", ["", "x", "None", "é"])
def test_a_wrong_link_lets_nobody_in_and_does_not_spend_the_right_one(token):
    app = make_app()
    assert Visitor(app, PORT, inside=False).ask("GET", f"/enter/{token}")[0] == 403
    assert "First" in Visitor(app, PORT).see("/")


@pytest.mark.parametrize("cookie", ["", "mmare-9466=x", "mmare-9466=", "other=1", "\x00;;=", "mmare-9467=x"])
def test_without_its_cookie_there_is_nothing_to_see(cookie):
    app = make_app()
    assert Visitor(app, PORT, inside=False).ask("GET", "/", cookie=cookie)[0] == 403


def test_another_name_of_this_machine_is_refused():
    """A page of the web could have its own name lead here (DNS rebinding)."""
    visitor = Visitor(make_app(), PORT)
    for host in ("evil.example", "evil.example:9466", "127.0.0.1:80", "127.0.0.1"):
        assert visitor.ask("GET", "/", host=host)[0] == 403
    assert visitor.ask("GET", "/", host=f"localhost:{PORT}")[0] == 200


def test_a_form_of_another_site_does_nothing():
    seen = []
    visitor = Visitor(make_app(seen), PORT)
    for more in ({"origin": "http://evil.example"}, {"origin": "null"}, {}):
        assert visitor.ask("POST", "/act", b"a=b", **more)[0] == 403
    assert seen == []
    assert visitor.send("/act")[0] == 303


def test_what_is_shown_is_escaped_and_nothing_of_elsewhere_is_loaded():
    visitor = Visitor(make_app(), PORT)
    status, headers, page = visitor.ask("GET", "/?said=%3Cscript%3Ex%3C/script%3E")
    assert status == 200
    assert "<p>a &lt; b</p>" in page
    assert "<script" not in page
    assert "&lt;script&gt;x" in page
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "http" not in page.replace("http-equiv", "")
    assert 'aria-current="page"' in page
    assert "done <b>" in visitor.send("/act")[1].replace("&lt;", "<").replace("&gt;", ">")


def test_fields_and_files_of_a_form_arrive_as_they_are():
    seen = []
    visitor = Visitor(make_app(seen), PORT)
    content = bytes(range(256)) * 3
    visitor.send("/act/one/two", {"study": content}, name="é 日本\r\nb")
    visitor.send("/act", name="x&y")
    assert seen[0] == Asked("one/two", {"name": "é 日本\nb"}, {"study": content})
    assert seen[1].form == {"name": "x&y"}


def test_a_form_that_is_too_large_or_broken_is_no_crash():
    visitor = Visitor(make_app(), PORT)
    status, said = visitor.send("/act", {"study": b"x" * (MOST_BODY + 1)})
    assert (status, "more than 2 MiB" in said) == (413, True)
    for body, kind in (
        (b"\xff", "multipart/form-data"),
        (b"--x", "multipart/form-data; boundary=y"),
        (b"%%", "x"),
    ):
        assert visitor.ask("POST", "/act", body, origin=f"http://{visitor.host}", content_type=kind)[0] == 303


def test_an_error_is_its_sentence():
    visitor = Visitor(make_app(), PORT)
    for status, page in (visitor.send("/fails"), visitor.ask("GET", "/fails")[::2]):
        assert status == 400
        assert "width is 0, expected 1" in words(page)
    assert visitor.ask("GET", "/nowhere")[0] == visitor.send("/nowhere")[0] == 404
    assert visitor.ask("PUT", "/nowhere")[0] == 404


def test_a_file_has_its_name():
    status, headers, body = Visitor(make_app(), PORT).ask("GET", "/file")
    assert (status, body) == (200, "zip")
    assert headers["content-disposition"] == 'attachment; filename="a%20b.zip"'


def test_a_table_is_named_and_its_columns_have_headings():
    made = table("Sites", ("site", "a<b"), [("ash", element("a", "x", href="/y"))])
    assert '<th scope="col" role="columnheader">a&lt;b</th>' in made
    assert 'aria-label="Sites"' in made
    assert '<td role="cell" data-label="a&lt;b"><a href="/y">x</a></td>' in made


def test_two_consoles_on_one_port_are_a_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            InputError, match=f"--port {port}: another program listens there, perhaps another"
        ):
            check_port(port)
    check_port(port)
