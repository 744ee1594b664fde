from dataclasses import replace
from importlib.metadata import version

import pytest

from mmare.errors import SiteCode
from mmare.exchange import Counts, Endpoint, Refusal, Request, RollCall, Task, decode, encode
from server.journal import Journal, read_journal
from server.roll_call import roll_call
from tests.federations import CallableFleet, tiny_study

STUDY = tiny_study()
CALL = RollCall("", STUDY.hash, version("federated-mmare"), {"ct": "given", "wsi": "given"}, Counts(), 20)


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
    ("wrong", "name", "reason"),
    [
        pytest.param(
            site("cedar", study_hash="0" * 64), "cedar", f"study hash {'0' * 12}, expected {STUDY.hash[:12]}"
        ),
        pytest.param(
            site("cedar", software="0.0.1"),
            "cedar",
            f"software version 0.0.1, expected {version('federated-mmare')}",
        ),
        pytest.param(
            site("cedar", encoders={"wsi": "given/2"}), "cedar", "encoder of wsi is given/2, expected given"
        ),
        pytest.param(None, "node 3", "no answer before the deadline"),
        pytest.param(raises, "node 3", "node failed (OSError)"),
        pytest.param(lambda *_: (encode(Refusal(SiteCode.STUDY)), b""), "node 3", "refused: S102"),
        pytest.param(lambda *_: ("no header", b""), "node 3", "not a message of this system"),
        pytest.param(lambda *_: ("[" * 100_000, b""), "node 3", "not a message of this system"),
        pytest.param(
            lambda *_: (encode(CALL).replace('"samples":20', '"samples":20.5'), b""),
            "node 3",
            "RollCall samples must be a whole number, found 20.5",
        ),
    ],
    ids=["hash", "version", "encoder", "silent", "raises", "refusal", "garbage", "deep", "number"],
)
def test_who_does_not_match_is_refused_by_name_and_reason(tmp_path, wrong, name, reason):
    members, told = call(tmp_path, site("ash"), site("birch"), wrong)
    assert list(members) == ["ash", "birch"]
    assert told == {"ash": None, "birch": None, name: reason}


def test_the_journal_says_who_was_accepted_and_what_they_have(tmp_path):
    counts = Counts({"train": {"no": 12, "yes": None}}, {"train": {"11": 20}})
    call(tmp_path, site("ash", counts=counts), site("birch", software="9"), None)
    first, second, third = read_journal(tmp_path / "rounds.jsonl")
    assert [event["accepted"] for event in (first, second, third)] == [True, False, False]
    assert {event["event"] for event in (first, second, third)} == {"roll_call"}
    assert first["counts"]["splits"] == {"train": {"no": 12, "yes": None}}
    assert second["software"] == "9"


def test_of_two_nodes_with_one_id_the_first_node_stays(tmp_path):
    members, _ = call(tmp_path, site("ash"), site("ash", samples=99))
    assert members["ash"].node == 1
    second = read_journal(tmp_path / "rounds.jsonl")[1]
    assert (second["accepted"], second["reason"]) == (False, "another node has the same site id")


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
