"""A real browser for tests of pages: the Chromium of this machine, driven by Playwright."""

import re
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page


def needs_chromium() -> str:
    """Its path, or the test is skipped."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("Chromium is not installed")
    return found


@contextmanager
def browser(*, script: bool = True):
    """An empty page, whose own scripts run or do not."""
    from playwright.sync_api import sync_playwright  # slow to import, and most runs of the tests need none

    program = needs_chromium()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium.new_context(java_script_enabled=script).new_page()
        chromium.close()


def tab_to(page: "Page", selector: str) -> None:
    """Move the focus by the keyboard alone."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} cannot be reached by the keyboard")


def press(page: "Page", selector: str) -> None:
    """Reach something by the keyboard, press it, and wait for the next page."""
    tab_to(page, selector)
    with page.expect_navigation():
        page.keyboard.press("Enter")


def heard(page: "Page") -> list[tuple[str, str]]:
    """Role and name of everything that a screen reader tells."""
    return re.findall(
        r'^ *- (\w+)(?: "((?:[^"\\]|\\.)*)")?', page.locator("body").aria_snapshot(), re.MULTILINE
    )
