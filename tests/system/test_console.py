"""Both consoles in a real browser: by the keyboard, as a screen reader hears them, at two widths."""

import re
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import tomli_w

from client.privacy.approvals import ApprovalFolder
from client.privacy.proposals import ProposalFolder
from server.deployment.queue import QueueState, find
from server.membership.kit import init_kit
from sites.config import load_site
from tests.browser import browser, heard, needs_chromium, press, tab_to
from tests.federations import tiny_federation, tiny_study
from tests.kits import asked, free_port
from tests.server.journals import a_round, called, started, validated, write
from tests.system.deployment import Running, command, until

pytestmark = pytest.mark.system

STUDY = tiny_study(study={"name": "kidney"}, federation={"min_sites": 1})
WIDTHS = (1300, 400)
SAID = ".said"


@contextmanager
def console(folder: Path, *words: object):
    """A console that serves: its address without the token, and its link."""
    needs_chromium()
    port = free_port()
    running = Running(folder / "console.log", *words, "--port", port)

    def link():
        return re.search(r"open once: (\S+)", running.log.read_text())

    try:
        until(link, "a link", 60, running.log.read_text)
        yield f"http://127.0.0.1:{port}", link()[1], port
        assert running.stop() == 0
    finally:
        running.stop()


def fits_and_is_named(page, address, paths, folder):
    """No page is wider than the window, and everything that can be used has a name and a heading above."""
    for path in paths:
        page.goto(f"{address}/{path}")
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            page.screenshot(path=folder / f"{path.replace('/', '-')[:20]}-{width}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (path, width)
        told = heard(page)
        assert [name for role, name in told if role == "heading"], path
        for role, name in told:
            assert name or role not in ("link", "button", "textbox", "checkbox", "table", "img"), (path, role)


def test_a_hospital_reads_and_approves_by_the_keyboard(tmp_path):
    federation = tiny_federation(tmp_path / "fed", STUDY)
    file = federation / "ash" / "site.toml"
    site = load_site(file)
    ProposalFolder(site.folder).keep(STUDY)
    with console(tmp_path, "mmare-site", "console", file) as (address, link, port), browser() as page:
        page.goto(address)
        assert "Open the link that the command has printed" in page.inner_text("body")
        page.goto(link)
        assert page.url == f"{address}/"  # the token is gone from the address
        paths = ("", "studies", f"study/{STUDY.hash}", "log", "scans", "predictions")
        fits_and_is_named(page, address, paths, tmp_path)
        page.goto(f"{address}/studies")
        press(page, f"a[href='/study/{STUDY.hash}']")
        assert "What will leave" in page.inner_text("body")
        tab_to(page, "#read")
        page.keyboard.press(" ")
        press(page, "form[action^='/approve'] button")
        assert page.inner_text(SAID).startswith("Approved: kidney")
        assert ApprovalFolder(site.folder).find(STUDY.hash) is not None
        page.goto(link)
        assert "This link was used" in page.inner_text("body")
        said = command("mmare-site", "console", file, "--port", port, expect=2)
        assert "another program listens there, perhaps another console" in said


def test_a_coordinator_admits_submits_and_aborts(tmp_path):
    kit = init_kit(tmp_path / "kit", "localhost", free_port(), superlink_port=free_port())
    _, request = asked(tmp_path, "ash")
    study = tmp_path / "study.toml"
    study.write_text(tomli_w.dumps(STUDY.to_dict()))
    lines = [started(), called("ash")]
    for number in range(1, 6):
        lines += [*a_round(number, ["ash"], at=number), validated(number, number / 10, at=number)]
    write(kit.runs / "before", lines)
    words = ("mmare-server", "console", "--kit", kit.folder)
    with console(tmp_path, *words) as (address, link, _), browser() as page:
        page.goto(link)
        page.goto(f"{address}/sites")
        page.set_input_files("#request", request)
        press(page, "form[action='/admit'] button")
        assert page.inner_text(SAID).startswith("Admitted: ash, key SHA256:")
        page.goto(f"{address}/submit")
        page.set_input_files("#study", study)
        tab_to(page, "#name")
        page.keyboard.insert_text("first")
        press(page, "form[action='/submit'] button")
        assert page.inner_text(SAID) == "Queued: first, study kidney."
        fits_and_is_named(page, address, ("", "runs", "run/before", "run/first", "submit", "sites"), tmp_path)
        page.goto(f"{address}/run/first")
        press(page, "form[action='/abort/first'] button")
        assert page.inner_text(SAID).startswith("first: aborted")
        assert find(kit, "first").state is QueueState.ABORTED


def test_without_script_everything_can_be_read_and_done(tmp_path):
    file = tiny_federation(tmp_path / "fed", STUDY) / "ash" / "site.toml"
    site = load_site(file)
    ProposalFolder(site.folder).keep(STUDY)
    with (
        console(tmp_path, "mmare-site", "console", file) as (address, link, _),
        browser(script=False) as page,
    ):
        page.goto(link)
        page.goto(f"{address}/study/{STUDY.hash}")
        page.check("#read")
        page.click("form button")
        end = time.monotonic() + 20
        while ApprovalFolder(site.folder).find(STUDY.hash) is None:
            assert time.monotonic() < end
            time.sleep(0.1)
