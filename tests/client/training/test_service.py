import json
import logging
from collections import Counter
from dataclasses import replace
from threading import Thread

import pytest
import torch

from client.training import model_pool
from client.training.kept.state import StateStore
from client.training.model_pool import ModelPool
from client.training.service import SiteService
from mmare.errors import DataError, SiteCode
from mmare.models.blocks import block_tensors
from mmare.models.registry import build_model
from mmare.wire.messages import Refusal, Request, RollCall, Split, Statistics, Task, Update, decode, encode
from mmare.wire.tensors import copy_tensors, global_tensors, layout_of, pack, trained_tensors, unpack
from tests.federations import tiny_data, tiny_study

STUDY = tiny_study()
MODEL = build_model(STUDY)
LAYOUT = layout_of(global_tensors(MODEL)).fingerprint
FLAT = pack(global_tensors(MODEL)).numpy().tobytes()


def service(folder, load=tiny_data, study=STUDY, min_count=0):
    pool = ModelPool(torch.device("cpu"))
    return SiteService("ash", load, StateStore(folder), pool, min_count, frozenset({study.hash}))


def request(task, study=STUDY, **fields: object):
    return Request(task, "run", study.to_dict(), **fields)


def training(number=1, **fields: object):
    return request(Task.TRAIN, **{"round": number, "train": True, "layout": LAYOUT, **fields})


def code_of(answer):
    header, payload = answer
    assert payload == b""
    assert set(json.loads(header)["body"]) == {"code"}  # nothing but a code leaves
    return decode(Refusal, header).code


@pytest.mark.parametrize("call", ["message", "prepare"])
def test_computes_with_as_many_threads_as_are_given_whoever_calls(tmp_path, call):
    found = []

    def load(study):
        found.append(torch.get_num_threads())
        return tiny_data(study)

    pool = ModelPool(torch.device("cpu"), threads=2)
    site = SiteService("ash", load, StateStore(tmp_path), pool, approved=frozenset({STUDY.hash}))
    asked = (encode(request(Task.DESCRIBE)), b"")
    target, args = (site, asked) if call == "message" else (site.prepare, (STUDY,))
    caller = Thread(target=target, args=args)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        caller.start()
        caller.join()
    finally:
        torch.set_num_threads(before)
    assert found == [2]


def test_describe_tells_groups_and_what_is_kept(tmp_path):
    site = service(tmp_path)
    header, payload = site(encode(request(Task.DESCRIBE)), b"")
    call = decode(RollCall, header)
    assert (call.site, call.study_hash, call.samples, payload) == ("ash", STUDY.hash, 20, b"")
    assert call.encoders == {"ct": "given", "wsi": "given"}
    assert call.counts.splits["train"] == {"no": 10, "yes": 10}
    assert sum(call.counts.patterns["train"].values()) == 20
    assert call.held_rounds == ()
    site(encode(training(4)), FLAT)
    assert decode(RollCall, site(encode(request(Task.DESCRIBE)), b"")[0]).held_rounds == (4,)


def test_small_groups_are_not_told(tmp_path):
    header, _ = service(tmp_path, min_count=6)(encode(request(Task.DESCRIBE)), b"")
    counts = decode(RollCall, header).counts
    assert counts.splits["val"] == {"no": None, "yes": None}
    assert counts.splits["train"] == {"no": 10, "yes": 10}
    assert all(size is None or size >= 6 for sizes in counts.patterns.values() for size in sizes.values())


@pytest.mark.parametrize("limits", [(50, 0), (0, 50), (50, 1)])
def test_the_stricter_of_study_and_site_counts(tmp_path, limits):
    study = tiny_study(privacy={"min_count": limits[0]})
    site = service(tmp_path, study=study, min_count=limits[1])
    found = decode(Statistics, site(encode(request(Task.STATISTICS, study)), b"")[0])
    assert [moments.n for moments in found.moments] == [0, 0]
    assert all(set(moments.total) == set(moments.squares) == {0.0} for moments in found.moments)


def test_statistics_are_sums_over_the_train_rows_that_have_the_modality(tmp_path):
    data = tiny_data(STUDY)
    found = decode(Statistics, service(tmp_path)(encode(request(Task.STATISTICS)), b"")[0])
    rows = data.rows[Split.TRAIN]
    for slot, moments in enumerate(found.moments):
        values = data.embedding[slot][rows[data.present[rows, slot]]].double().numpy()
        assert moments.n == len(values)
        assert moments.total == pytest.approx(values.sum(0))
        assert moments.squares == pytest.approx((values**2).sum(0))


def test_training_returns_the_change_and_says_what_it_came_to(tmp_path):
    header, payload = service(tmp_path)(encode(training(splits=(Split.VAL,))), FLAT)
    update = decode(Update, header)
    before = block_tensors(
        [block for block in MODEL.blocks() if block.name in update.blocks], trained_tensors(MODEL)
    )
    changed = unpack(torch.frombuffer(bytearray(payload), dtype=torch.uint8), layout_of(before))
    squares = sum((value - before[name]).square().sum().item() for name, value in changed.items())
    assert update.norm == pytest.approx(squares**0.5, rel=1e-4)
    assert update.norm > 0
    assert (update.site, update.round, update.samples) == ("ash", 1, 20)
    assert update.layout == layout_of(before).fingerprint
    assert set(update.blocks) == {name for name, count in update.exposures.items() if count > 0}
    assert [evaluation.split for evaluation in update.evaluations] == [Split.VAL]
    assert not any(name.startswith("scaling") for name in changed)


def test_evaluating_trains_nothing_and_returns_no_tensors(tmp_path):
    header, payload = service(tmp_path)(
        encode(request(Task.EVALUATE, round=3, splits=(Split.VAL, Split.TEST), layout=LAYOUT, final=True)),
        FLAT,
    )
    update = decode(Update, header)
    assert payload == b""
    assert (update.samples, update.train_loss, update.layout) == (0, None, "")
    assert [evaluation.split for evaluation in update.evaluations] == [Split.VAL, Split.TEST]


def test_the_same_message_has_the_same_answer_bit_for_bit(tmp_path):
    first = service(tmp_path / "a")(encode(training()), FLAT)
    site = service(tmp_path / "b")
    site(encode(training(9)), FLAT)  # another round in between, and a model of another message in the pool
    assert site(encode(training()), FLAT)[1] == first[1]


def test_a_kept_state_is_gone_on_from(tmp_path):
    site = service(tmp_path)
    site(encode(training(1)), FLAT)
    fresh = site(encode(training(2)), FLAT)[1]
    kept = site(encode(training(2, state_round=1)), FLAT)[1]
    assert fresh != kept


def test_the_final_message_makes_the_site_forget(tmp_path):
    site = service(tmp_path)
    site(encode(training(1)), FLAT)
    site(encode(request(Task.EVALUATE, layout=LAYOUT, final=True)), FLAT)
    assert decode(RollCall, site(encode(request(Task.DESCRIBE)), b"")[0]).held_rounds == ()


def no_rows(study):
    data = tiny_data(study)
    return replace(data, rows={split: torch.zeros(0, dtype=torch.int64) for split in Split})


def no_train_rows(study):
    data = tiny_data(study)
    return replace(data, rows={**data.rows, Split.TRAIN: torch.zeros(0, dtype=torch.int64)})


def poisoned_model():
    model = build_model(STUDY)
    copy_tensors(global_tensors(model), global_tensors(MODEL))
    with torch.no_grad():
        model.head.out.bias.fill_(float("nan"))
    return pack(global_tensors(model)).numpy().tobytes()


NEEDS_NO_DATA = [
    pytest.param(
        request(Task.DESCRIBE, tiny_study(training={"rounds": 99})), b"", SiteCode.STUDY, id="study"
    ),
    pytest.param(training(study=tiny_study(model={"width": 32})), FLAT, SiteCode.STUDY, id="model"),
    pytest.param(training(layout="0" * 16), FLAT, SiteCode.MESSAGE, id="layout"),
    pytest.param(training(), FLAT[:-8], SiteCode.MESSAGE, id="short"),
    pytest.param(training(), FLAT + b"12345678", SiteCode.MESSAGE, id="long"),
    pytest.param(training(), b"", SiteCode.MESSAGE, id="no-tensors"),
    pytest.param(training(2, state_round=1), FLAT, SiteCode.STATE, id="no-state"),
    pytest.param(training(), poisoned_model(), SiteCode.MODEL, id="nan-model"),
]


@pytest.mark.parametrize(("asked", "payload", "code"), NEEDS_NO_DATA)
def test_what_cannot_be_done_is_a_code(tmp_path, asked, payload, code):
    assert code_of(service(tmp_path)(encode(asked), payload)) is code


@pytest.mark.parametrize(
    "header",
    [
        "",
        "not json",
        "[]",
        "[" * 50_000,
        '{"version": 9, "kind": "Request", "body": {}}',
        encode(Refusal(SiteCode.DATA)),
    ],
    ids=["empty", "text", "list", "deep", "version", "kind"],
)
def test_a_header_that_is_none_is_a_code(tmp_path, header):
    assert code_of(service(tmp_path)(header, b"")) is SiteCode.MESSAGE


@pytest.mark.parametrize(
    ("load", "task", "code"),
    [
        pytest.param(no_rows, Task.DESCRIBE, SiteCode.DATA, id="no-rows"),
        pytest.param(no_train_rows, Task.TRAIN, SiteCode.EMPTY, id="no-train-rows"),
    ],
)
def test_a_site_without_rows_is_a_code(tmp_path, load, task, code):
    asked = training() if task is Task.TRAIN else request(task)
    assert code_of(service(tmp_path, load)(encode(asked), FLAT if task is Task.TRAIN else b"")) is code


def test_an_encoder_that_the_site_lacks_is_a_code(tmp_path):
    text = {"name": "clinical", "kind": "text", "width": 8, "encoder": "future-text", "prompt": "{age}"}
    study = tiny_study(modality=[text])
    asked = encode(request(Task.DESCRIBE, study))
    assert code_of(service(tmp_path, study=study)(asked, b"")) is SiteCode.DATA


PRIVATE = "/data/oncology/patients.csv: patient TCGA-07-1234 born 1951"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        pytest.param(DataError(PRIVATE), SiteCode.DATA, id="data"),
        pytest.param(OSError(2, PRIVATE, "/data/oncology/patients.csv"), SiteCode.INTERNAL, id="os"),
        pytest.param(KeyError(PRIVATE), SiteCode.INTERNAL, id="key"),
        pytest.param(ValueError(PRIVATE), SiteCode.INTERNAL, id="value"),
        pytest.param(MemoryError(PRIVATE), SiteCode.INTERNAL, id="memory"),
        pytest.param(RecursionError(PRIVATE), SiteCode.INTERNAL, id="recursion"),
    ],
)
@pytest.mark.parametrize("task", [Task.DESCRIBE, Task.STATISTICS, Task.TRAIN])
def test_nothing_but_a_code_leaves_when_the_data_raise(tmp_path, caplog, error, code, task):
    def load(_study):
        raise error

    asked = training() if task is Task.TRAIN else request(task)
    with caplog.at_level(logging.ERROR):
        answer = service(tmp_path, load)(encode(asked), FLAT if task is Task.TRAIN else b"")
    assert code_of(answer) is code
    for word in ("oncology", "TCGA", "1951", "patients"):
        assert word not in answer[0]
    assert "TCGA-07-1234" in caplog.text  # the site's own log says it all


def test_a_failure_does_not_stay(tmp_path):
    attempts = []

    def load(study):
        attempts.append(study)
        if len(attempts) == 1:
            raise OSError("the disk is away for a moment")
        return tiny_data(study)

    site = service(tmp_path, load)
    assert code_of(site(encode(request(Task.DESCRIBE)), b"")) is SiteCode.INTERNAL
    assert decode(RollCall, site(encode(request(Task.DESCRIBE)), b"")[0]).site == "ash"
    site(encode(training()), FLAT)
    assert len(attempts) == 2  # read once per study


@pytest.mark.parametrize(
    "run",
    ["..", "../..", "", ".", "/elsewhere/mmare", "a/../..", "run/../../secret"],
    ids=repr,
)
@pytest.mark.parametrize("task", [Task.DESCRIBE, Task.TRAIN, Task.EVALUATE])
def test_a_run_s_name_cannot_reach_other_folders(tmp_path, run, task):
    cache = tmp_path / "site" / "cache"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "patients.csv").write_text("precious")
    site = service(cache)
    site(encode(training(1)), FLAT)
    asked = replace(training(2, splits=(), final=True), run=run, task=task, train=task is Task.TRAIN)
    code = code_of(site(encode(asked), b"" if task is Task.DESCRIBE else FLAT))
    assert code is SiteCode.MESSAGE
    assert (tmp_path / "site" / "patients.csv").read_text() == "precious"
    assert decode(RollCall, site(encode(request(Task.DESCRIBE)), b"")[0]).held_rounds == (1,)


def test_two_studies_that_take_turns_are_read_and_built_once(tmp_path, monkeypatch):
    studies = [tiny_study(study={"seed": seed}) for seed in (1, 2, 3)]
    read, built = [], []

    def load(study):
        read.append(study.seed)
        return tiny_data(study)

    def build(study):
        built.append(study.seed)
        return build_model(study)

    monkeypatch.setattr(model_pool, "build_model", build)
    pool = ModelPool(torch.device("cpu"))
    site = SiteService(
        "ash", load, StateStore(tmp_path), pool, approved=frozenset(study.hash for study in studies)
    )

    def turns(*chosen):
        for study in chosen:
            asked = replace(training(), run=f"run{study.seed}", study=study.to_dict())
            first = pack(global_tensors(build_model(study))).numpy().tobytes()
            decode(Update, site(encode(asked), first)[0])

    turns(*studies[:2], *studies[:2])
    assert read == [1, 2]
    assert Counter(built) == {1: 2, 2: 2}  # to compare arrivals with, and to work with
    turns(studies[2], studies[1])
    assert read == [1, 2, 3]  # the one used longest ago made room
    turns(studies[0])
    assert read == [1, 2, 3, 1]
