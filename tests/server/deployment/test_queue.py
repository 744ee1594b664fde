"""Runs that are submitted, wait, run side by side and end; Flower and programs are doubles."""

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mmare.errors import Ending, InputError, RunError, SiteCode
from mmare.host.console import run_command
from server.cli import app
from server.deployment import standing
from server.deployment.queue import WAITS, QueueState, abort, aborting, find, parse_wait, queued, save, submit
from server.deployment.retry_policy import is_hopeless, who_is_missing
from server.deployment.run_records import runs_under_way
from server.deployment.run_supervisor import AbortedError
from server.deployment.standing import Standing
from server.deployment.start_view import StartView
from server.deployment.status import queue_table
from server.membership.kit import init_kit
from server.membership.records import Admitted
from server.membership.records import save as save_site
from server.monitoring.watch import check_begun
from server.store.events import RollCall
from tests.federations import tiny_study
from tests.packages import as_toml, made_package

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
NAME = "tiny-federated-seed3"


@pytest.fixture
def kit(tmp_path):
    made = init_kit(tmp_path / "kit", "localhost")
    for name in ("ash", "birch"):
        save_site(
            made, Admitted(name, f"ecdsa {name}", f"SHA256:{name}", "2026-01-01T00:00:00+00:00", "0.1.0")
        )
    return made


# The queue


def test_a_submitted_run_has_a_copy_of_its_study(kit):
    study = tiny_study()
    entry = submit(kit, study, wait=timedelta(days=7))
    assert (entry.name, entry.state) == (NAME, QueueState.QUEUED)
    assert entry.until > datetime.now(UTC).isoformat()
    request = find(kit, NAME).request(kit)
    assert request.study == study
    assert request.out == kit.runs / NAME
    check_begun(kit.runs / NAME)  # its status can be asked for
    assert (kit.queue / f"{NAME}.json").stat().st_mode & 0o077 == 0


def test_a_submitted_run_remembers_where_its_start_model_is(kit, tmp_path):
    path = made_package(tmp_path / "start.zip", tiny_study())
    (tmp_path / "study.toml").write_bytes(as_toml(tiny_study()))
    words = ["submit", tmp_path / "study.toml", "--kit", kit.folder, "--start-from", path]
    found = RUNNER.invoke(app, [*map(str, words)])
    assert "taken: conditioning.ct, conditioning.wsi, adapter.ct, merge, shared" in found.stdout
    request = find(kit, NAME).request(kit)
    assert request.start_from == path
    assert request.start().digest == request.study.start.digest


def test_an_edited_study_under_an_old_name_is_refused_and_nothing_lost(kit):
    entry = submit(kit, tiny_study())
    with pytest.raises(InputError, match=r"^tiny-federated-seed3: queued already; --name gives this one"):
        submit(kit, tiny_study(training={"rounds": 9}))
    save(kit, replace(entry, state=QueueState.FAILED, said="x"))
    with pytest.raises(InputError, match="was submitted with another study or mode before"):
        submit(kit, tiny_study(training={"rounds": 9}))
    assert find(kit, NAME).request(kit).study == tiny_study()
    assert submit(kit, tiny_study(training={"rounds": 9}), name="nine").name == "nine"
    assert submit(kit, tiny_study()).state is QueueState.QUEUED  # the same one resumes
    save(kit, replace(entry, state=QueueState.FINISHED))
    with pytest.raises(InputError, match=f"is finished, in {kit.runs / NAME}"):
        submit(kit, tiny_study())


def test_a_queued_run_is_aborted_at_once_and_one_under_way_is_asked_to_end(kit):
    entry = submit(kit, tiny_study())
    assert abort(kit, NAME).state is QueueState.ABORTED
    with pytest.raises(InputError, match="has ended, it is aborted"):
        abort(kit, NAME)
    submit(kit, tiny_study())
    assert not aborting(kit, NAME)
    save(kit, replace(entry, state=QueueState.RUNNING))
    assert abort(kit, NAME).state is QueueState.RUNNING
    assert aborting(kit, NAME)
    save(kit, replace(entry, state=QueueState.ABORTED))
    assert not aborting(kit, NAME)


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "x" * 100])
def test_a_name_that_is_no_folder_is_refused(kit, name):
    with pytest.raises(InputError, match=r"no run .* was submitted"):
        find(kit, name)
    if name:
        with pytest.raises(InputError, match="--name is "):
            submit(kit, tiny_study(), name=name)


@pytest.mark.parametrize("text", ["", "7", "d", "7 days", "-1d", "1.5h", "99999d"])
def test_a_time_is_a_number_and_a_unit(text):
    with pytest.raises(InputError, match="expected a time such as 30m, 12h or 7d"):
        parse_wait(text)
    assert parse_wait("90m") == timedelta(minutes=90)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"name": "x"}', '{"name": 3}'])
def test_a_damaged_record_is_named(kit, text):
    submit(kit, tiny_study())
    (kit.queue / f"{NAME}.json").write_text(text)
    with pytest.raises(InputError, match=f"{NAME}.json: not the record of a run"):
        queued(kit)


# Who is missing


def refusal(site, code, reason="refused"):
    return RollCall(site=site, accepted=False, reason=f"{reason}: {code}", code=code)


def test_who_is_missing_is_said_in_words():
    calls = {"ash": RollCall(site="ash", accepted=True), "birch": refusal("birch", SiteCode.STUDY)}
    assert who_is_missing(["ash", "birch", "cedar"], calls) == "birch: refused: S102; cedar: not connected"
    assert who_is_missing(["ash"], calls) == ""


def test_what_a_site_has_to_approve_is_not_asked_again_and_again():
    sites = ["ash", "birch", "cedar"]
    denied = {site: refusal(site, SiteCode.STUDY) for site in sites[:2]}
    assert is_hopeless(sites, denied, 2)
    assert not is_hopeless(sites, denied, 1)
    assert not is_hopeless(sites, {site: refusal(site, SiteCode.WORKER) for site in sites}, 2)
    assert not is_hopeless(sites, {}, 4)


# The coordinator that stays


ON = object()  # what a run returns that is not over


class Stage:
    """Each run does what a function of its name says until it is over; the clock of the queue is real."""

    def __init__(self, kit, monkeypatch, most=1, **runs):
        self.kit, self.most, self.runs, self.order, self.stopped = kit, most, runs, [], threading.Event()
        self.console = Console(record=True, width=200, file=StringIO())
        monkeypatch.setattr(standing, "LOOK_S", 0.01)
        monkeypatch.setattr(standing, "STEP_S", 0.01)
        monkeypatch.setattr(standing, "AGAIN_S", 0.05)
        monkeypatch.setattr(standing, "Supervision", self.supervision)

    def supervision(self, _kit, request, _limits, _services, _view, _stopped, aborted):
        stage = self

        class Run:
            def step(self):
                stage.order.append(request.out.name)
                return stage.runs[request.out.name](aborted) is not ON

        return Run()

    def poll(self):
        if not any(entry.state in WAITS for entry in queued(self.kit)):
            self.stopped.set()

    def keep(self):
        Standing(self.kit, self, StartView(self.console), self.stopped, 5, self.most).keep_running()
        return {entry.name: (entry.state.value, entry.said) for entry in queued(self.kit)}


def raises(error):
    def run(_aborted):
        raise error

    return run


def test_runs_follow_each_other_and_each_end_is_written_down(kit, monkeypatch):
    for name in ("one", "two", "three", "four"):
        submit(kit, tiny_study(), name=name)
    stage = Stage(
        kit,
        monkeypatch,
        one=lambda _: None,
        two=raises(RunError("no luck")),
        three=raises(InputError("width is 0")),
        four=raises(AbortedError("aborted")),
    )
    ends = stage.keep()
    assert stage.order == ["one", "two", "three", "four"]
    assert ends == {
        "one": ("finished", f"the result is in {kit.runs / 'one'}"),
        "two": ("failed", "no luck"),
        "three": ("failed", "width is 0"),
        "four": ("aborted", "on request; submitted again, it resumes"),
    }
    assert (kit.runs / "one" / ".lock").exists()  # so that its status is known before it begins


def test_runs_go_side_by_side_up_to_a_limit_and_an_end_makes_room(kit, monkeypatch):
    left = {"one": 3, "two": 6, "three": 2}
    seen = []

    def goes_on(name):
        def run(_aborted):
            seen.append(tuple(entry.name for entry in queued(kit) if entry.state is QueueState.RUNNING))
            left[name] -= 1
            return ON if left[name] else None

        return run

    for name in left:
        submit(kit, tiny_study(), name=name)
    stage = Stage(kit, monkeypatch, most=2, **{name: goes_on(name) for name in left})
    ends = stage.keep()
    assert {state for state, _ in ends.values()} == {"finished"}
    assert stage.order[:4] == ["one", "two", "one", "two"]  # in turn
    assert set(seen) == {("one", "two"), ("two", "three"), ("two",)}
    assert runs_under_way(kit) == {}
    said = stage.console.export_text()
    assert "three: begins" in said
    assert said.index("one: finished") < said.index("three: begins")


def test_side_by_side_one_that_fails_or_is_aborted_leaves_the_other(kit, monkeypatch):
    submit(kit, tiny_study(), name="stays")
    submit(kit, tiny_study(), name="ends")
    turns = []

    def stays(_aborted):
        turns.append(runs_under_way(kit))
        if len(turns) == 2:
            abort(kit, "ends")
        return ON if len(turns) < 6 else None

    def ends(aborted):
        if aborted():
            raise AbortedError("aborted")
        return ON

    stage = Stage(kit, monkeypatch, most=2, stays=stays, ends=ends)
    assert {name: state for name, (state, _) in stage.keep().items()} == {
        "stays": "finished",
        "ends": "aborted",
    }
    both = {kit.runs / "stays", kit.runs / "ends"}
    assert [set(each) for each in turns[1:3]] == [both, {kit.runs / "stays"}]


def test_a_run_that_lacks_sites_lets_others_pass_and_is_taken_up_again(kit, monkeypatch):
    submit(kit, tiny_study(), name="waits", wait=timedelta(hours=1))
    submit(kit, tiny_study(), name="other")
    tries = []

    def waits(_aborted):
        tries.append(find(kit, "waits"))
        if len(tries) < 3:
            raise RunError("1 site: birch: not connected", Ending.QUORUM)

    stage = Stage(kit, monkeypatch, waits=waits, other=lambda _: None)
    ends = stage.keep()
    assert stage.order[:2] == ["waits", "other"]
    assert len(tries) == 3
    assert {state for state, _ in ends.values()} == {"finished"}


def test_a_damaged_record_is_named_and_stops_nothing(kit, monkeypatch):
    submit(kit, tiny_study(), name="one")
    (kit.queue / "two.json").write_text("{")
    stage = Stage(kit, monkeypatch, one=lambda _: None)
    looks = []

    def poll():
        looks.append(1)
        if len(looks) == 3:
            (kit.queue / "two.json").unlink()
        if len(looks) > 3:
            Stage.poll(stage)

    stage.poll = poll
    assert stage.keep()["one"][0] == "finished"
    assert stage.console.export_text().count("two.json: not the record of a run") == 1


def test_a_full_disk_is_waited_for(kit, monkeypatch):
    submit(kit, tiny_study(), name="one")
    tries = []

    def full(_kit, entry):
        tries.append(entry.state)
        if len(tries) in (1, 3, 4):
            raise InputError("no room")
        return save(_kit, entry)

    monkeypatch.setattr(standing, "save", full)
    assert Stage(kit, monkeypatch, one=lambda _: None).keep()["one"][0] == "finished"
    assert [state.value for state in tries] == ["running", "running", "finished", "finished", "finished"]


def test_a_run_whose_time_is_over_has_failed_and_says_who_was_missing(kit, monkeypatch):
    entry = submit(kit, tiny_study(), name="waits", wait=timedelta(hours=1))
    save(kit, replace(entry, until=(datetime.now(UTC) - timedelta(seconds=1)).isoformat()))
    missing = RunError("1 site: birch: not connected", Ending.QUORUM)
    assert Stage(kit, monkeypatch, waits=raises(missing)).keep() == {
        "waits": ("failed", "1 site: birch: not connected")
    }


def test_stopped_in_the_middle_a_run_goes_on_with_the_next_start(kit, monkeypatch):
    submit(kit, tiny_study(), name="long")
    stage = Stage(kit, monkeypatch)

    def long(_aborted):
        stage.stopped.set()
        raise RunError("stopped; the same command resumes the run")

    stage.runs["long"] = long
    assert stage.keep()["long"][0] == "queued"
    entry = save(kit, replace(find(kit, "long"), state=QueueState.RUNNING))  # killed, it could not say so
    submit(kit, tiny_study(), name="another")
    stage = Stage(kit, monkeypatch, long=lambda _: None, another=lambda _: None)
    assert stage.keep()["long"][0] == "finished"
    assert stage.order[0] == entry.name


def test_stopped_with_two_under_way_both_are_let_go_and_stay_queued(kit, monkeypatch):
    for name in ("one", "two"):
        submit(kit, tiny_study(), name=name)
    stage = Stage(kit, monkeypatch, most=2)

    def run(_aborted):
        if len(stage.order) > 4:
            stage.stopped.set()
        if stage.stopped.is_set():
            raise RunError("stopped; the same command resumes the run")
        return ON

    stage.runs |= {"one": run, "two": run}
    assert {state for state, _ in stage.keep().values()} == {"queued"}
    assert set(runs_under_way(kit)) == {kit.runs / "one", kit.runs / "two"}


def test_the_table_says_what_a_run_waits_for(kit):
    entry = submit(kit, tiny_study(), wait=timedelta(days=7))
    entry = replace(entry, said="birch: not connected", due=datetime.now(UTC).isoformat())
    console = Console(record=True, width=200, file=StringIO())
    console.print(queue_table([entry]))
    shown = console.export_text()
    assert f"birch: not connected; tried again until {entry.until[:10]}" in shown


# The commands


def invoke(*words, code=0):
    result = RUNNER.invoke(app, [*map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


def test_the_commands_tell_what_happens_and_what_is_next(kit, tmp_path):
    import tomli_w

    study = tmp_path / "study.toml"
    study.write_text(tomli_w.dumps(tiny_study().to_dict()))
    assert "no run was submitted" in invoke("queue", "--kit", kit.folder)
    said = invoke("submit", study, "--kit", kit.folder, "--wait", "7d")
    assert f"queued: {NAME}, study tiny" in said
    assert f"next: mmare-server start --kit {kit.folder}, which does not run yet" in said
    assert NAME in invoke("queue", "--kit", kit.folder)
    assert f"aborted: {NAME}" in invoke("abort", NAME, "--kit", kit.folder)
    assert "aborted" in invoke("queue", "--kit", kit.folder)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        pytest.param(
            ["submit", "nowhere.toml"], "no such file or folder, expected a study.toml", id="no study"
        ),
        pytest.param(["submit", "study.toml", "--wait", "soon"], "--wait is 'soon'", id="wait"),
        pytest.param(["submit", "study.toml", "--mode", "centralised"], "--mode must be one of", id="mode"),
        pytest.param(
            ["submit", "study.toml", "--set", "federation.min_sites=3"], "2 sites are admitted", id="few"
        ),
        pytest.param(["abort", "nobody"], "no run 'nobody' was submitted; there are: none yet", id="no run"),
        pytest.param(["start", "--min-nodes", "3"], "are of one run; expected a study, or these", id="start"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(kit, tmp_path, monkeypatch, capsys, words, why):
    import tomli_w

    (tmp_path / "study.toml").write_text(tomli_w.dumps(tiny_study().to_dict()))
    monkeypatch.chdir(tmp_path)
    assert (
        run_command(lambda given: app(given, standalone_mode=True), [*words, "--kit", str(kit.folder)]) == 2
    )
    assert why in capsys.readouterr().err
