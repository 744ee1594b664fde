"""A web application for one person on this machine: pages made by the server, no script, no state of its own.

It is an ASGI application, for uvicorn on a loopback address. Whoever has the link of the console's start gets
in, once: it is exchanged for a cookie of that browser, which ends with the program. Requests for other hosts
and from other origins are refused, so that no page of the web can act through the browser.
"""

from __future__ import annotations

import asyncio
import hmac
import html
import secrets
import socket
import threading
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, quote, urlencode

from mmare.errors import InputError, MmareError
from mmare.host.signals import stop_on_signals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]
    Handler = Callable[["Asked"], "Page | Done | File"]
    Response = tuple[int, list[tuple[bytes, bytes]], bytes]  # status, headers, content

__all__ = [
    "Asked",
    "Done",
    "File",
    "Html",
    "LocalApp",
    "Page",
    "button",
    "check_port",
    "element",
    "serve",
    "table",
]

LOOPBACK: Final = "127.0.0.1"
START_POLL_S, END_POLL_S = 0.05, 1.0
MOST_BODY: Final = 2 << 20  # bytes; a study or a request has a thousandth
SAID: Final = "said"  # of the address: what an action did, shown on the next page
_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'",
    ),
    (b"referrer-policy", b"same-origin"),  # with no-referrer, browsers hide the origin of forms from us, too
    (b"x-content-type-options", b"nosniff"),
)
_VOID: Final = ("br", "input", "meta", "link")
STYLE: Final = Path(__file__).with_name("web.css")


def check_port(port: int) -> None:
    """Raise `InputError` if another program, such as another console, listens on a port of this machine."""
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((LOOPBACK, port))
        except OSError as error:
            raise InputError(
                f"--port {port}: another program listens there, perhaps another console ({error.strerror}); "
                "expected a free port"
            ) from None


def serve(app: LocalApp, port: int, tell: Callable[[str], object]) -> None:
    """Serve until Ctrl-C or SIGTERM; ``tell`` gets the link once it answers."""
    import uvicorn  # noqa: PLC0415 - comes with Flower, and takes a moment

    server = uvicorn.Server(
        uvicorn.Config(app, host=LOOPBACK, port=port, log_level="warning", lifespan="off")
    )
    with stop_on_signals() as stopped:
        thread = threading.Thread(target=server.run)
        thread.start()
        while thread.is_alive() and not server.started:
            stopped.wait(START_POLL_S)
        tell(app.link)
        while thread.is_alive() and not stopped.wait(END_POLL_S):
            pass
        server.should_exit = True
        thread.join()


class Html(str):
    """Text that is HTML already; other text is escaped."""

    __slots__ = ()


def element(name: str, *content: str, **attributes: str | bool) -> Html:
    """An element; ``_`` of an attribute's name is ``-``, a last one is dropped.

    Example:
        >>> element("a", "a < b", href="/x?a&b")
        '<a href="/x?a&amp;b">a &lt; b</a>'
    """
    words = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(str(value))}"')
        for key, value in attributes.items()
        if value is not False
    )
    inner = "".join(part if isinstance(part, Html) else html.escape(part) for part in content)
    return Html(f"<{name}{words}>" if name in _VOID else f"<{name}{words}>{inner}</{name}>")


def table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """A table with headings for its columns, and its caption for who does not see it.

    On a narrow screen each row is a block of its own, with the headings beside its cells; the roles keep it a
    table for who hears it.
    """
    named = any(headings)
    top = [element("th", each, scope="col", role="columnheader") for each in headings] if named else []
    head = element("thead", element("tr", *top, role="row"), role="rowgroup") if named else ""
    body = [
        element(
            "tr",
            *(
                element("td", cell, role="cell", data_label=label)
                for label, cell in zip(headings, row, strict=True)
            ),
            role="row",
        )
        for row in rows
    ]
    rest = element("tbody", *body, role="rowgroup")
    made = element("table", head, rest, role="table", aria_label=caption, class_="" if named else "pairs")
    return element("div", made, class_="scroll", role="region", aria_label=caption, tabindex="0")


def button(label: str, action: str, *fields: str, command: str = "", grave: bool = False) -> Html:
    """A form that does something, and the command that does the same."""
    same = element("p", "as a command: ", element("code", command), class_="quiet") if command else ""
    press = element("button", label, type="submit", class_="grave" if grave else "key")
    return element("form", *fields, press, same, method="post", action=action, enctype="multipart/form-data")


@dataclass(frozen=True)
class Asked:
    """A request of the browser: the parts of its path after the first, and what a form sent."""

    rest: str = ""
    form: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """A page."""

    title: str
    content: tuple[str, ...]
    status: int = 200


@dataclass(frozen=True)
class Done:
    """What an action did, in words, and the page to show next."""

    said: str
    next: str


@dataclass(frozen=True)
class File:
    """A file to save."""

    name: str
    content: bytes


class LocalApp:
    """Pages and actions behind a link with a token.

    Args:
        name: Of the console, on every page.
        port: Where it is served, on 127.0.0.1.
        pages: By the first part of their path, what answers GET; ``""`` is the first page.
        actions: Likewise what answers POST.
        menu: Path and label of the pages that every page links to.
    """

    def __init__(
        self,
        name: str,
        port: int,
        pages: Mapping[str, Handler],
        actions: Mapping[str, Handler],
        menu: Sequence[tuple[str, str]],
    ) -> None:
        self._name = name
        self._hosts = (f"{LOOPBACK}:{port}", f"localhost:{port}")
        self._cookie = f"mmare-{port}"  # browsers do not tell ports apart
        self._pages = pages
        self._actions = actions
        self._menu = menu
        self._link: str | None = secrets.token_urlsafe(24)
        self._session = secrets.token_urlsafe(24)

    @property
    def link(self) -> str:
        """The address that lets one browser in."""
        return f"http://{self._hosts[0]}/enter/{self._link}"

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] != "http":
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        first, _, rest = scope["path"].strip("/").partition("/")
        found = self._at_the_door(headers, scope["method"], first, rest)
        if found is None:
            query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
            answer = await self._answer(scope["method"], headers, first, rest, receive)
            found = self._shown(answer, first, query.get(SAID, ""))
        start = {"type": "http.response.start", "status": found[0], "headers": [*_HEADERS, *found[1]]}
        await send(start)
        await send({"type": "http.response.body", "body": found[2]})

    def _at_the_door(self, headers: dict[str, str], method: str, first: str, rest: str) -> Response | None:
        """Who may not come in, or comes in by the link; None for who is in."""
        if headers.get("host") not in self._hosts:
            return _refused("This console answers on this machine only.")
        if first == "style.css":
            return 200, [(b"content-type", b"text/css; charset=utf-8")], STYLE.read_bytes()
        if first == "enter":
            return self._enter(rest)
        if not self._is_known(headers.get("cookie", "")):
            return _refused("Open the link that the command has printed; a new one comes with a new start.")
        own = [f"http://{host}" for host in self._hosts]
        if method == "POST" and headers.get("origin") not in own:
            return _refused("This form is of another site.")
        return None

    async def _answer(
        self, method: str, headers: dict[str, str], first: str, rest: str, receive: Receive
    ) -> Page | Done | File:
        handler = (self._actions if method == "POST" else self._pages).get(first)
        if handler is None:
            return _failed("There is no such page.", 404)
        asked = Asked(rest)
        if method == "POST":
            body = await _body(receive)
            if body is None:
                return _failed(f"The form has more than {MOST_BODY >> 20} MiB.", 413)
            asked = Asked(rest, *_form(headers.get("content-type", ""), body))
        try:
            return await asyncio.to_thread(handler, asked)
        except MmareError as error:
            return _failed(f"{error}", 400)

    def _enter(self, token: str) -> Response:
        if self._link is None or not hmac.compare_digest(token.encode(), self._link.encode()):
            return _refused("This link was used, or is of another start; if not by you, stop the console.")
        self._link = None
        cookie = f"{self._cookie}={self._session}; Path=/; HttpOnly; SameSite=Strict"
        return 303, [(b"location", b"/"), (b"set-cookie", cookie.encode())], b""

    def _is_known(self, cookies: str) -> bool:
        try:
            found = SimpleCookie(cookies).get(self._cookie)
        except CookieError:
            return False
        return found is not None and hmac.compare_digest(found.value.encode(), self._session.encode())

    def _shown(self, answer: Page | Done | File, first: str, said: str = "") -> Response:
        if isinstance(answer, Done):
            place = f"{answer.next}?{urlencode({SAID: answer.said})}"
            return 303, [(b"location", place.encode("latin-1"))], b""
        if isinstance(answer, File):
            name = f'attachment; filename="{quote(answer.name)}"'.encode()
            kind = (b"content-type", b"application/octet-stream")
            return 200, [kind, (b"content-disposition", name)], answer.content
        content = self._page(answer, first, said).encode()
        return answer.status, [(b"content-type", b"text/html; charset=utf-8")], content

    def _page(self, page: Page, first: str, said: str) -> str:
        menu = (
            element("a", label, href=f"/{path}", **({"aria_current": "page"} if path == first else {}))
            for path, label in self._menu
        )
        head = element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
            element("title", f"{page.title} · {self._name}"),
            element("link", rel="stylesheet", href="/style.css"),
        )
        note = element("p", said, class_="said", role="status") if said else ""
        top = element("header", element("strong", self._name), element("nav", *menu, aria_label="Pages"))
        main = element("main", element("h1", page.title), note, *page.content)
        return f"<!doctype html>\n{element('html', head, element('body', top, main), lang='en')}\n"


def _refused(why: str) -> Response:
    return 403, [(b"content-type", b"text/plain; charset=utf-8")], f"{why}\n".encode()


def _failed(why: str, status: int) -> Page:
    return Page("Not done", (element("p", why, class_="said bad", role="alert"),), status)


async def _body(receive: Receive) -> bytes | None:
    """What the browser sent; None if it is too large."""
    parts, size = [], 0
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MOST_BODY:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


def _form(kind: str, body: bytes) -> tuple[dict[str, str], dict[str, bytes]]:
    """Fields and files of a form."""
    if not kind.startswith("multipart/form-data"):
        return dict(parse_qsl(body.decode(errors="replace"))), {}
    message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body)
    fields, files = {}, {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if not isinstance(name, str) or not isinstance(content, bytes):
            continue
        if part.get_filename() is None:
            fields[name] = content.decode(errors="replace").replace("\r\n", "\n")
        else:
            files[name] = content
    return fields, files
