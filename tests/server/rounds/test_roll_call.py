from dataclasses import replace
from importlib.metadata import version

import pytest

from mmare.errors import Reason, SiteCode
from mmare.wire.messages import (
    WIRE_VERSION,
    Counts,
    Endpoint,
    Refusal,
    Request,
    RollCall,
    Task,
    decode,
    encode,
)
from server.rounds.fleet import Answer
from server.rounds.global_model import GlobalModel
from server.rounds.roll_call import ABSENT_S, AGAIN_S, RollCalls, roll_call
from server.store.events import RunStarted
from server.store.journal import Journal
from tests.federations import CallableFleet, tiny_study
from tests.server.journals import read_journal

OWN = version("federated-mmare")
MAJOR, MINOR = map(int, OWN.split(".")[:2])
NEXT, FAR = f"{MAJOR}.{MINOR + 1}.0", f"{MAJOR}.{MINOR + 2}.0"
STUDY = tiny_study()
COUNTS = Counts({"train": {"no": None, "yes": None}})
CALL = RollCall("", STUDY.hash, OWN, {"ct": "given", "wsi": "given"}, COUNTS, 20)


def site(name, **changes: object):
    def answer(header, payload):
        request = decode(Request, header)
        assert (request.task, request.study, payload) == (Task.DESCRIBE, STUDY.to_dict(), b"")
        return encode(replace(CALL, **{"site": name, **changes})), b""

    return answer


def raises(*_: object):
    raise OSError("/home/hospital/patient-17.csv")


def call(folder, *endpoints: Endpoint | None):
    journal = Journal(folder / "rounds.jsonl", "run")
    members = roll_call(CallableFleet(*endpoints), STUDY, "run", journal, len(endpoints))
    told = {event["site"]: event["reason"] for event in read_journal(folder / "rounds.jsonl")}
    return members, told


def test_those_who_match_take_part_in_id_order(tmp_path):
    members, told = call(tmp_path, site("cedar"), site("ash", samples=3), site("birch"))
    assert list(members) == ["ash", "birch", "cedar"]
    assert [member.node for member in members.values()] == [2, 3, 1]
    assert members["ash"].call.samples == 3
    assert told == {"ash": None, "birch": None, "cedar": None}


@pytest.mark.parametrize(
    ("wrong", "name", "reason", "code"),
    [
        pytest.param(
            site("cedar", study_hash="0" * 64),
            "cedar",
            f"study hash {'0' * 12}, expected {STUDY.hash[:12]}",
            Reason.STUDY_HASH,
        ),
        pytest.param(
            site("cedar", software=FAR),
            "cedar",
            f"software version {FAR}, expected {OWN}: the coordinator has to upgrade",
            Reason.SOFTWARE,
        ),
        pytest.param(
            site("cedar", encoders={"wsi": "given/2"}),
            "cedar",
            "encoder of wsi is given/2, expected given",
            Reason.ENCODER,
        ),
        pytest.param(
            lambda *_: (
                encode(CALL).replace(f'"version":{WIRE_VERSION}', f'"version":{WIRE_VERSION - 1}'),
                b"",
            ),
            "node 3",
            f"wire version {WIRE_VERSION - 1}, expected {WIRE_VERSION}: the hospital has to upgrade",
            Reason.SOFTWARE,
        ),
        pytest.param(None, "node 3", "no answer before the deadline", Reason.LATE),
        pytest.param(raises, "node 3", "node failed (OSError)", Reason.NODE_FAILED),
        pytest.param(
            lambda *_: (encode(Refusal(SiteCode.STUDY)), b""),
            "node 3",
            "refused: S102, the hospital has not approved this study",
            SiteCode.STUDY,
        ),
        pytest.param(lambda *_: ("no header", b""), "node 3", "not a message of this system", Reason.OTHER),
        pytest.param(lambda *_: ("[" * 60_000, b""), "node 3", "not a message of this system", Reason.OTHER),
        pytest.param(
            lambda *_: (encode(CALL).replace('"samples":20', '"samples":20.5'), b""),
            "node 3",
            "RollCall samples must be a whole number, found 20.5",
            Reason.OTHER,
        ),
    ],
    ids=[
        "hash",
        "version",
        "encoder",
        "protocol",
        "silent",
        "raises",
        "refusal",
        "garbage",
        "deep",
        "number",
    ],
)
def test_who_does_not_match_is_refused_by_name_reason_and_code(tmp_path, wrong, name, reason, code):
    members, told = call(tmp_path, site("ash"), site("birch"), wrong)
    assert list(members) == ["ash", "birch"]
    assert told == {"ash": None, "birch": None, name: reason}
    codes = {event["site"]: event["code"] for event in read_journal(tmp_path / "rounds.jsonl")}
    assert codes == {"ash": None, "birch": None, name: code}


def test_the_journal_says_who_was_accepted_and_what_they_have(tmp_path):
    counts = Counts({"train": {"no": 12, "yes": None}}, {"train": {"11": 20}})
    call(tmp_path, site("ash", counts=counts), site("birch", software="9"), None)
    first, second, third = read_journal(tmp_path / "rounds.jsonl")
    assert [event["accepted"] for event in (first, second, third)] == [True, False, False]
    assert {event["event"] for event in (first, second, third)} == {"roll_call"}
    assert first["counts"]["splits"] == {"train": {"no": 12, "yes": None}}
    assert second["software"] == "9"


def test_a_neighbouring_version_takes_part_and_is_named(tmp_path):
    members, told = call(tmp_path, site("ash"), site("birch", software=NEXT))
    assert list(members) == ["ash", "birch"]
    assert told == {"ash": None, "birch": None}
    assert [event["software"] for event in read_journal(tmp_path / "rounds.jsonl")] == [OWN, NEXT]


def test_of_two_nodes_with_one_id_the_first_node_stays(tmp_path):
    members, _ = call(tmp_path, site("ash"), site("ash", samples=99))
    assert members["ash"].node == 1
    second = read_journal(tmp_path / "rounds.jsonl")[1]
    assert (second["accepted"], second["code"]) == (False, "duplicate")
    assert second["reason"] == "another node has the same site id"


@pytest.mark.parametrize("name", ["", "../ash", "a/b", "/etc", "a\nb", "<b>ash</b>"])
def test_an_id_that_could_not_be_a_site_s_is_refused(tmp_path, name):
    members, _ = call(tmp_path, site("ash"), site(name))
    assert list(members) == ["ash"]
    assert [event["accepted"] for event in read_journal(tmp_path / "rounds.jsonl")] == [True, False]


def test_the_encoder_of_most_sites_counts(tmp_path):
    odd = {"ct": "given/2"}
    members, told = call(tmp_path, site("ash", encoders=odd), site("birch"), site("cedar"))
    assert list(members) == ["birch", "cedar"]
    assert told["ash"] == "encoder of ct is given/2, expected given"


def test_a_modality_that_a_site_never_has_is_no_mismatch(tmp_path):
    members, _ = call(tmp_path, site("ash", encoders={"ct": "given"}), site("birch", encoders={}))
    assert list(members) == ["ash", "birch"]


def test_nobody_there(tmp_path):
    assert call(tmp_path) == ({}, {})


class NamedFleet(CallableFleet):
    """Nodes that were admitted under names."""

    def __init__(self, **endpoints: Endpoint | None):
        super().__init__(*endpoints.values())
        self._names = dict(enumerate(endpoints, start=1))

    def ask(self, requests, payload, deadline_s, _round_bytes=0):
        for answer in super().ask(requests, payload, deadline_s):
            yield replace(answer, name=self._names[answer.node])


def test_a_node_that_answers_as_another_site_is_refused_under_its_own_name(tmp_path):
    fleet = NamedFleet(
        cedar=site("ash", encoders={"ct": "wrong", "wsi": "wrong"}), ash=site("ash"), birch=raises
    )
    members = roll_call(fleet, STUDY, "run", Journal(tmp_path / "rounds.jsonl", "run"), 3)
    assert {name: member.node for name, member in members.items()} == {"ash": 2}
    told = {event["site"]: event["reason"] for event in read_journal(tmp_path / "rounds.jsonl")}
    assert told == {
        "ash": None,
        "cedar": "answers as the site 'ash', but its key was admitted for 'cedar'",
        "birch": "node failed (OSError)",
    }


class LateFleet(CallableFleet):
    """Notes how long it was waited for how many."""

    def __init__(self, *there):
        super().__init__(*there)
        self.waits = []

    def nodes(self, at_least, deadline_s):
        self.waits.append((at_least, round(deadline_s)))
        return super().nodes(at_least, deadline_s)


@pytest.mark.parametrize(
    ("there", "earlier", "waits"),
    [
        pytest.param(("ash", "birch"), False, [(3, 600)], id="a run that begins"),
        pytest.param(("ash", "birch"), True, [(3, ABSENT_S)], id="a run that is taken up"),
        pytest.param(("ash",), True, [(3, ABSENT_S), (2, 600)], id="taken up with too few"),
    ],
)
def test_who_is_away_is_waited_for_less_long_when_a_run_is_taken_up(tmp_path, there, earlier, waits):
    study = tiny_study(federation={"deadline_s": 600, "min_sites": 2})
    if earlier:
        Journal(tmp_path / "rounds.jsonl", "run").write(RunStarted())
    fleet = LateFleet(*(raises for _ in there))
    roll_call(fleet, study, "run", Journal(tmp_path / "rounds.jsonl", "run"), 3)
    assert fleet.waits == waits


class Comers:
    """A fleet whose nodes come and go."""

    def __init__(self, **sites):
        self.sites = sites
        self.there: list[str] = []
        self.asked: list[str] = []

    def nodes(self, _at_least, _deadline_s):
        return [list(self.sites).index(name) for name in self.there]

    def ask(self, requests, payload, _deadline_s, _round_bytes=0):
        names = list(self.sites)
        self.asked = [names[node] for node in requests]
        for node, header in requests.items():
            answer, tensors = self.sites[names[node]](header, payload)
            yield Answer(node, answer, tensors)


def test_who_was_away_is_let_in_later_and_who_was_refused_is_asked_again_in_a_minute(tmp_path):
    fleet = Comers(ash=site("ash"), birch=site("birch"), odd=site("odd", study_hash="0" * 16))
    clock = [0.0]
    journal = Journal(tmp_path / "rounds.jsonl", "run")
    calls = RollCalls(fleet, STUDY, "run", journal, now=lambda: clock[0])
    fleet.there = ["ash", "odd"]
    calls.begin(1)
    assert list(calls.members) == ["ash"]
    fleet.there = ["birch", "ash", "odd"]
    assert list(calls.admit_late(3)) == ["birch"]
    assert fleet.asked == ["birch"]
    assert list(calls.members) == ["ash", "birch"]
    fleet.asked = []
    assert calls.admit_late(4) == {}
    assert fleet.asked == []
    clock[0] += AGAIN_S
    assert calls.admit_late(5) == {}
    assert fleet.asked == ["odd"]
    events = read_journal(tmp_path / "rounds.jsonl")
    told = [(event["site"], event["accepted"], event["round"]) for event in events]
    assert told == [("ash", True, 0), ("odd", False, 0), ("birch", True, 3), ("odd", False, 5)]


def test_a_site_comes_back_on_another_node_only_once_the_first_is_gone(tmp_path):
    fleet = Comers(ash=site("ash"), again=site("ash"))
    calls = RollCalls(fleet, STUDY, "run", Journal(tmp_path / "rounds.jsonl", "run"))
    fleet.there = ["ash"]
    calls.begin(1)
    fleet.there = ["ash", "again"]
    assert calls.admit_late(1) == {}
    assert calls.members["ash"].node == 0
    late = RollCalls(fleet, STUDY, "run", Journal(tmp_path / "rounds.jsonl", "run"))
    fleet.there = ["ash"]
    late.begin(1)
    fleet.there = ["again"]
    assert late.admit_late(1)["ash"].node == late.members["ash"].node == 1


def test_one_who_comes_late_must_have_the_encoders_of_those_inside(tmp_path):
    fleet = Comers(ash=site("ash"), other=site("other", encoders={"ct": "another"}))
    calls = RollCalls(fleet, STUDY, "run", Journal(tmp_path / "rounds.jsonl", "run"))
    fleet.there = ["ash"]
    calls.begin(1)
    fleet.there = ["ash", "other"]
    assert calls.admit_late(2) == {}
    assert read_journal(tmp_path / "rounds.jsonl")[-1]["reason"] == "encoder of ct is another, expected given"


class LinesFleet(CallableFleet):
    """Whose nodes' relays know their lines, in bytes per second."""

    def __init__(self, lines, *endpoints):
        super().__init__(*endpoints)
        self.lines, self.told = lines, []

    def ask(self, requests, payload, deadline_s, round_bytes=0):
        self.told.append(round_bytes)
        for answer in super().ask(requests, payload, deadline_s):
            yield replace(answer, line=self.lines[answer.node - 1])


def test_a_slow_line_is_named_with_the_deadline_that_would_do(tmp_path):
    """The third site refuses by itself, as its relay does; the second fits, with little left for training."""
    refused = lambda *_: (encode(Refusal(SiteCode.LINE)), b"")  # noqa: E731 - an endpoint
    fleet = LinesFleet((1e7, 5e5, 1e5), site("ash"), site("birch"), refused)
    journal = Journal(tmp_path / "rounds.jsonl", "run")
    calls = RollCalls(fleet, STUDY, "run", journal, round_bytes=12_000_000)
    calls.begin(3)
    assert fleet.told == [12_000_000]
    assert list(calls.members) == ["ash", "birch"]
    ash, birch, third = read_journal(tmp_path / "rounds.jsonl")
    assert ash["line"] == "80 Mbit/s"
    assert birch["line"].startswith(
        "4 Mbit/s, so 24 s for the 12.0 MB of a round, expected less than federation.deadline_s of 30 s: 48 s"
    )
    assert third["code"] == SiteCode.LINE
    assert third["reason"].startswith(f"refused: S404, {SiteCode.LINE.meaning}: 0.8 Mbit/s, so 120 s for the")


@pytest.mark.parametrize(
    ("settings", "ratio"),
    [
        ([], 2.0),
        (["federation.wire=float16"], 1.5),
        (["privacy.secure_sum=true", "federation.min_sites=3"], 3.0),
    ],
    ids=["float32", "float16", "sums"],
)
def test_a_round_weighs_what_the_model_and_its_change_do(settings, ratio):
    model = GlobalModel(STUDY.override(settings))
    assert model.round_bytes == ratio * len(model.packed())
