"""A real browser for tests of pages: Chromium without a window, driven through a pipe by its own protocol."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

LONGEST_S = 30
KEYS = {"Tab": 9, "Enter": 13, " ": 32}


def needs_chromium() -> str:
    """Its path, or the test is skipped."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("Chromium is not installed")
    return found


class Browser:
    """One page of a browser; `do` is any call of the protocol."""

    def __init__(self, program: str, profile: str) -> None:
        ends = [
            fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for pipe in (os.pipe(), os.pipe()) for end in pipe
        ]
        self._read, self._write = ends[2], ends[1]

        def as_it_expects() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[3], 4)

        words = (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            "--no-first-run",
        )
        self.process = subprocess.Popen(
            [program, *words, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(3, 4),
            preexec_fn=as_it_expects,  # noqa: PLW1509 - this process has no threads that hold locks
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(ends[0])
        os.close(ends[3])
        self._number, self._rest, self._session, self.events = 0, b"", None, []
        target = next(each for each in self.do("Target.getTargets")["targetInfos"] if each["type"] == "page")[
            "targetId"
        ]
        self._session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Accessibility"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]

    def _next(self):
        end = time.monotonic() + LONGEST_S
        while b"\0" not in self._rest:
            assert select.select([self._read], [], [], max(end - time.monotonic(), 0))[0], "no answer"
            self._rest += os.read(self._read, 1 << 20)
        line, _, self._rest = self._rest.partition(b"\0")
        found = json.loads(line)
        if "method" in found:
            self.events.append(found)
        return found

    def loaded(self) -> None:
        """Until the page that was asked for is there."""
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next()
        self.events.clear()

    def open(self, address: str) -> None:
        self.events.clear()
        self.do("Page.navigate", url=address)
        self.loaded()

    def script(self, text: str):
        """The value of an expression; the page itself needs no script."""
        return self.do("Runtime.evaluate", expression=text, returnByValue=True)["result"].get("value")

    def text(self) -> str:
        return self.script("document.body.innerText")

    def press(self, key: str) -> None:
        code = KEYS[key]
        more = {"key": key, "windowsVirtualKeyCode": code, "code": "Space" if key == " " else key}
        typed = {"text": "\r"} if key == "Enter" else {"text": " "} if key == " " else {}
        self.do("Input.dispatchKeyEvent", type="keyDown", **more, **typed)
        self.do("Input.dispatchKeyEvent", type="keyUp", **more)

    def tab_to(self, selector: str) -> None:
        """Move the focus by the keyboard alone."""
        for _ in range(60):
            self.press("Tab")
            if self.script(f"document.activeElement.matches({selector!r})"):
                return
        raise AssertionError(f"{selector} cannot be reached by the keyboard")

    def names(self) -> list[tuple[str, str]]:
        """Role and name of everything that a screen reader tells."""
        nodes = self.do("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node.get("ignored") and "role" in node
        ]

    def choose_file(self, selector: str, path: Path) -> None:
        root = self.do("DOM.getDocument")["root"]["nodeId"]
        node = self.do("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.do("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def picture(self, path: Path, width: int) -> int:
        """A picture of the whole page at a width; how much wider than that it would have to be."""
        self.do(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
        )
        content = self.do("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(content))
        return int(self.script("document.documentElement.scrollWidth")) - width

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(LONGEST_S)
        os.close(self._read)
        os.close(self._write)


@contextmanager
def browser():
    program = needs_chromium()
    with tempfile.TemporaryDirectory(prefix="mmare-", ignore_cleanup_errors=True) as profile:
        found = Browser(program, profile)
        try:
            yield found
        finally:
            found.close()
