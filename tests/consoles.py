"""Consoles asked without a network: the application itself, as a browser would call it."""

import asyncio
import re
from urllib.parse import urlencode

LIMIT = "x--limit"


class Visitor:
    """A browser that has opened the link of an application, or has not."""

    def __init__(self, app, port: int, *, inside: bool = True) -> None:
        self._app, self.host, self.cookie = app, f"127.0.0.1:{port}", ""
        if inside:
            self.enter(app.link)

    def enter(self, link: str):
        status, headers, body = self.ask("GET", link.split(self.host, 1)[1])
        if status == 303:
            self.cookie = headers["set-cookie"].split(";")[0]
        return status, headers, body

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str):
        """Status, headers and text of an answer."""
        path, _, query = path.partition("?")
        given = {"host": self.host, "cookie": self.cookie, **headers}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": [(key.replace("_", "-").encode(), value.encode()) for key, value in given.items()],
        }
        sent = []

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        asyncio.run(self._app(scope, receive, send))
        found = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
        return sent[0]["status"], found, sent[1]["body"].decode(errors="replace")

    def see(self, path: str) -> str:
        """A page."""
        status, _, body = self.ask("GET", path)
        assert status == 200, (status, body)
        return body

    def send(self, path: str, files: dict[str, bytes] | None = None, **fields: str):
        """What a form does: the words of the next page, or of the page that says why not, and its status."""
        if files is None:
            body, kind = urlencode(fields).encode(), "application/x-www-form-urlencoded"
        else:
            parts = [(f'name="{name}"', value.encode()) for name, value in fields.items()]
            parts += [(f'name="{name}"; filename="f"', content) for name, content in files.items()]
            body = b"".join(
                f"--{LIMIT}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"
                for head, content in parts
            )
            body, kind = body + f"--{LIMIT}--\r\n".encode(), f"multipart/form-data; boundary={LIMIT}"
        status, headers, page = self.ask("POST", path, body, origin=f"http://{self.host}", content_type=kind)
        if status != 303:
            return status, words(page)
        return status, words(self.see(headers["location"]))


def words(page: str) -> str:
    """A page without its elements."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page)).replace("&#x27;", "'").replace("&quot;", '"')
