"""The pages of a coordinator's console and what its forms do; every action is also a command."""

from __future__ import annotations

import shlex
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mmare.errors import InputError
from mmare.host.console import visible
from mmare.host.web import Asked, Done, File, LocalApp, Page, button, element, table
from mmare.study.study import STUDY_FILE
from server.console.drawing import curve, shown
from server.deployment.queue import QueueState, abort, parse_wait, queued, submit
from server.deployment.run_records import runs_under_way
from server.deployment.start import chosen_mode, count_admitted
from server.deployment.status import programs_table, queue_table, sites_table, summary_table
from server.membership.flower_nodes import register_admitted, superlink_answers
from server.membership.records import SiteState, admit, find, listed, revoke
from server.monitoring.flower_state import read_flower_state
from server.monitoring.followed_run import FollowedRun
from server.monitoring.run_alerts import run_alerts
from server.monitoring.run_state import RunState
from server.monitoring.run_summary import run_status
from server.monitoring.watch import HISTORY
from server.run.request import RunRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmare.host.web import Handler, Html
    from server.membership.kit import Kit

__all__ = ["ServerConsole"]

MENU: Final = (("", "Now"), ("runs", "Runs"), ("submit", "Submit"), ("sites", "Sites"))
CURVES: Final = {"score": "Pooled validation balanced accuracy", "loss": "Training loss"}


@dataclass(frozen=True)
class ServerConsole:
    """The console of a kit, whose files it reads at every request."""

    kit: Kit

    def app(self, port: int) -> LocalApp:
        """The application, to be served on a port of 127.0.0.1."""
        pages: dict[str, Handler] = {
            "": self.now,
            "runs": self.runs,
            "run": self.run,
            "submit": self.submission,
            "sites": self.sites,
            "bundle": self.bundle,
        }
        actions = {"submit": self.submit, "abort": self.abort, "admit": self.admit, "revoke": self.revoke}
        return LocalApp(f"{self.kit.federation}, coordinator", port, pages, actions, MENU)

    # Pages

    def now(self, _asked: Asked) -> Page:
        """Programs, sites with their last words, and the latest runs."""
        runs = runs_under_way(self.kit)
        entries = queued(self.kit)
        latest = shown(queue_table(entries[-10:]), "Runs") if entries else [_nothing("no run was submitted")]
        return Page(
            "Now",
            (
                *shown(summary_table(self.kit, runs), "Coordinator"),
                element("h2", "Programs"),
                *shown(programs_table(self.kit, answers=superlink_answers(self.kit)), "Programs"),
                element("h2", "Sites"),
                *shown(sites_table(self.kit, runs, self._statuses()), "Sites"),
                element("h2", "Runs"),
                *latest,
                self._same("status"),
            ),
        )

    def runs(self, _asked: Asked) -> Page:
        """Every submitted run, and every other in the kit's folder of runs."""
        entries = {entry.name: entry for entry in queued(self.kit)}
        others = sorted(path.name for path in self.kit.runs.glob("*") if path.name not in entries)
        rows = [
            (element("a", entry.name, href=f"/run/{entry.name}"), entry.study, entry.state.value, entry.said)
            for entry in reversed(entries.values())
        ]
        rows += [(element("a", name, href=f"/run/{name}"), "", "not submitted", "") for name in others]
        made = table("Runs", ("run", "study", "state", ""), rows) if rows else _nothing("no run yet")
        return Page("Runs", (made, self._same("queue")))

    def run(self, asked: Asked) -> Page:
        """One run: its state, sites, curves and alerts."""
        folder = self._run_folder(asked.rest)
        entry = next((each for each in queued(self.kit) if each.name == folder.name), None)
        parts: list[Html] = []
        if entry is not None:
            parts += shown(queue_table([entry]), "Submission")
        if folder.is_dir():
            state = FollowedRun(folder, partial(RunState, history=HISTORY)).read_all()
            for name, sentence in run_alerts(state, time.time()):
                parts.append(element("p", f"{name}: {sentence}", class_="said bad", role="alert"))
            parts += shown(run_status(folder), "Run")
            for key, name in CURVES.items():
                if state.curves[key]:
                    parts += [element("h2", name), curve(name, state.curves[key])]
        if entry is not None and entry.state in (QueueState.QUEUED, QueueState.RUNNING):
            command = self._command("abort", folder.name)
            parts.append(button("Abort this run", f"/abort/{folder.name}", command=command, grave=True))
        return Page(f"Run {folder.name}", (*parts, self._same("status", str(folder), kit=False)))

    def submission(self, _asked: Asked) -> Page:
        """The form that submits a study."""
        fields = (
            _field("study", "Study, a study.toml", kind="file", required=True),
            _field("wait", "Wait for hospitals for, such as 7d; empty: not at all", value="7d"),
            _field("name", "Name of the run; empty: after the study"),
        )
        command = self._command("submit", STUDY_FILE, "--wait", "7d")
        words = "Hospitals that are connected learn of the study and can approve it; two run at a time."
        return Page(
            "Submit a study", (element("p", words), button("Submit", "/submit", *fields, command=command))
        )

    def sites(self, _asked: Asked) -> Page:
        """Admitted and revoked sites, and the form that admits one."""
        rows = []
        for record in listed(self.kit):
            more = ""
            if record.state is SiteState.ADMITTED:
                links = element("a", "bundle", href=f"/bundle/{record.site}")
                more = links if (self.kit.bundles / f"{record.site}.zip").exists() else ""
                command = self._command("revoke", record.site, group="kit")
                more = element(
                    "div",
                    more,
                    button("Revoke for good", f"/revoke/{record.site}", command=command, grave=True),
                )
            rows.append((record.site, record.state.value, record.admitted[:10], record.fingerprint, more))
        headings = ("site", "state", "admitted", "key", "")
        made = table("Sites", headings, rows) if rows else _nothing("no site yet")
        fields = (
            _field(
                "request",
                "Request of a hospital, such as request-hospital-a.json",
                kind="file",
                required=True,
            ),
            _field("study", "Study that goes with its bundle, if any", kind="file"),
        )
        command = self._command("admit", "request-hospital-a.json", group="kit")
        form = button("Admit", "/admit", *fields, command=command)
        return Page("Sites", (made, element("h2", "Admit a hospital"), form, self._same("list", group="kit")))

    def bundle(self, asked: Asked) -> File:
        """A site's bundle, to be sent to it; it holds no secret."""
        record = find(self.kit, asked.rest)
        path = self.kit.bundles / f"{record.site}.zip"
        try:
            return File(path.name, path.read_bytes())
        except OSError:
            raise InputError(f"{path}: not there; admitting {record.site} again writes it") from None

    # Actions

    def submit(self, asked: Asked) -> Done:
        """Queue a run of an uploaded study."""
        with _uploaded(asked, "study", STUDY_FILE) as file:
            request = RunRequest(file, mode=chosen_mode("federated"))
            wait = parse_wait(asked.form["wait"].strip()) if asked.form.get("wait", "").strip() else None
            if wait is None:
                count_admitted(self.kit, request.study)
            from server.run.folder import check_run  # noqa: PLC0415 - imports torch

            check_run(request)
            entry = submit(
                self.kit, request.study, mode=request.mode, name=asked.form.get("name", "").strip(), wait=wait
            )
        return Done(f"Queued: {entry.name}, study {entry.study}.", "/runs")

    def abort(self, asked: Asked) -> Done:
        """End a run that is queued or under way."""
        entry = abort(self.kit, asked.rest)
        return Done(f"{entry.name}: aborted; its rounds are kept.", f"/run/{entry.name}")

    def admit(self, asked: Asked) -> Done:
        """Admit a site by its uploaded request."""
        with _uploaded(asked, "request", "request.json") as file:
            study = file.with_name(STUDY_FILE) if asked.files.get("study") else None
            if study is not None:
                study.write_bytes(asked.files["study"])
            bundle = admit(self.kit, file, study)
        record = find(self.kit, bundle.stem)
        self._tell_superlink()
        return Done(
            f"Admitted: {record.site}, key {record.fingerprint}. Compare the key by telephone, then send the "
            "bundle.",
            "/sites",
        )

    def revoke(self, asked: Asked) -> Done:
        """Revoke a site for good."""
        record = revoke(self.kit, asked.rest)
        self._tell_superlink()
        return Done(f"Revoked: {record.site}, key {record.fingerprint}.", "/sites")

    def _tell_superlink(self) -> None:
        if superlink_answers(self.kit):
            register_admitted(self.kit)

    def _statuses(self) -> dict[str, str] | None:
        """Sites' nodes as SuperLink's database has them; None without one."""
        state = read_flower_state(self.kit.database, time.time())
        if state is None:
            return None
        return {
            record.site: state.nodes[record.node_id]
            for record in listed(self.kit)
            if record.node_id is not None and record.node_id in state.nodes
        }

    def _run_folder(self, name: str) -> Path:
        known = {entry.name for entry in queued(self.kit)} | {path.name for path in self.kit.runs.glob("*")}
        if name not in known:
            raise InputError(f"{visible(name[:100])}: no such run; the page Runs has all")
        return self.kit.runs / name

    def _command(self, *words: str, group: str = "", kit: bool = True) -> str:
        where = ["--kit", str(self.kit.folder)] if kit else []
        return shlex.join(["mmare-server", *([group] if group else []), *words, *where])

    def _same(self, *words: str, group: str = "", kit: bool = True) -> Html:
        command = self._command(*words, group=group, kit=kit)
        return element("p", "as a command: ", element("code", command), class_="quiet")


def _nothing(words: str) -> Html:
    return element("p", words, class_="quiet")


def _field(name: str, label: str, kind: str = "text", value: str = "", *, required: bool = False) -> Html:
    entry = element("input", type=kind, name_=name, value=value, required=required, id_=name)
    return element("label", label, element("br"), entry, for_=name)


@contextmanager
def _uploaded(asked: Asked, field: str, name: str) -> Iterator[Path]:
    """An uploaded file under a name of ours, in a folder that goes."""
    if not asked.files.get(field):
        raise InputError(f"{field}: no file was chosen")
    with tempfile.TemporaryDirectory(prefix="mmare-") as folder:
        path = Path(folder) / name
        path.write_bytes(asked.files[field])
        yield path
