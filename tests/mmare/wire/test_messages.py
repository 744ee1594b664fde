"""Every message there and back; everything else refused with `WireError`, which is all that callers catch."""

import dataclasses
import hashlib
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmare.errors import SiteCode
from mmare.wire import messages as exchange
from mmare.wire.messages import (
    WIRE_VERSION,
    Comparison,
    Counts,
    Evaluation,
    Layout,
    Masked,
    Moments,
    Refusal,
    Request,
    RollCall,
    SecureSum,
    Split,
    Statistics,
    Task,
    TensorSpec,
    Unmasked,
    Update,
    WireError,
    decode,
    encode,
)

WORDS = st.text(max_size=8)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.integers(0, 2**40)
PLAIN = st.recursive(
    st.none() | st.booleans() | COUNTS | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
TABLES = st.dictionaries(WORDS, PLAIN, max_size=3)
ITEM_BYTES = {"float32": 4, "float64": 8, "int64": 8, "int32": 4, "bool": 1}


def tuples(entries, size=3):
    return st.lists(entries, max_size=size).map(tuple)


def by_word(values):
    return st.dictionaries(WORDS, values, max_size=3)


TENSORS = st.builds(TensorSpec, WORDS, st.sampled_from(sorted(ITEM_BYTES)), tuples(st.integers(0, 1000)))
GROUPS = by_word(by_word(st.none() | COUNTS))
EVALUATIONS = st.builds(Evaluation, st.sampled_from(Split), TABLES, by_word(TABLES), by_word(TABLES), TABLES)
MOMENTS = st.builds(Moments, WORDS, COUNTS, tuples(NUMBERS), tuples(NUMBERS))
MESSAGES = {
    TensorSpec: TENSORS,
    Layout: st.builds(Layout, tuples(TENSORS)),
    Counts: st.builds(Counts, GROUPS, GROUPS),
    Moments: MOMENTS,
    Evaluation: EVALUATIONS,
    Refusal: st.builds(Refusal, st.sampled_from(SiteCode)),
    Statistics: st.builds(Statistics, WORDS, tuples(MOMENTS)),
    Request: st.builds(
        Request,
        task=st.sampled_from(Task),
        run=WORDS,
        study=TABLES,
        round=COUNTS,
        splits=tuples(st.sampled_from(Split)),
        patterns=st.booleans(),
        train=st.booleans(),
        state_round=st.none() | COUNTS,
        keep_round=st.none() | COUNTS,
        layout=WORDS,
        rate_factor=NUMBERS,
        gap=st.booleans(),
        subsets=st.booleans(),
        calibration=st.booleans(),
        shapley=st.booleans(),
        final=st.booleans(),
        sum=st.none() | st.sampled_from(SecureSum),
        roster=by_word(WORDS),
        shares=by_word(WORDS),
    ),
    Comparison: st.builds(Comparison, WORDS, by_word(tuples(COUNTS))),
    Masked: st.builds(Masked, WORDS, COUNTS, by_word(WORDS), WORDS, by_word(NUMBERS)),
    Unmasked: st.builds(Unmasked, WORDS, COUNTS, by_word(WORDS)),
    RollCall: st.builds(
        RollCall,
        site=WORDS,
        study_hash=WORDS,
        software=WORDS,
        encoders=by_word(WORDS),
        counts=st.builds(Counts, GROUPS, GROUPS),
        samples=COUNTS,
        held_rounds=tuples(COUNTS),
        public_key=WORDS,
    ),
    Update: st.builds(
        Update,
        site=WORDS,
        round=COUNTS,
        samples=COUNTS,
        exposures=by_word(COUNTS),
        evaluations=tuples(EVALUATIONS),
        train_loss=st.none() | NUMBERS,
        norm=st.none() | NUMBERS,
        seconds=by_word(NUMBERS),
        layout=WORDS,
        blocks=tuples(WORDS),
        trained=st.none() | EVALUATIONS,
    ),
}


def test_every_dataclass_of_the_module_is_tried_here():
    public = {getattr(exchange, name) for name in exchange.__all__}
    assert {kind for kind in public if dataclasses.is_dataclass(kind)} == set(MESSAGES)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_encode_and_decode_round_trip(kind, data):
    message = data.draw(MESSAGES[kind])
    again = decode(kind, encode(message))
    assert again == message
    assert encode(again) == encode(message)


def test_decoded_words_are_members():
    request = decode(Request, encode(Request(Task.TRAIN, "r", {}, splits=(Split.VAL,))))
    assert request.task is Task.TRAIN
    assert request.splits == (Split.VAL,)
    assert request.splits[0] is Split.VAL


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize(
    "message",
    [
        pytest.param(lambda bad: Update("s", 1, train_loss=bad), id="loss"),
        pytest.param(lambda bad: Update("s", 1, seconds={"fit": bad}), id="seconds"),
        pytest.param(lambda bad: Statistics("s", (Moments("ct", 1, (bad,), (1.0,)),)), id="moments"),
        pytest.param(lambda bad: Evaluation(Split.VAL, {"deep": [{"er": bad}]}), id="metric state"),
        pytest.param(lambda bad: Request(Task.TRAIN, "r", {"training": {"rate": bad}}), id="study"),
    ],
)
def test_a_number_that_is_not_finite_neither_leaves_nor_enters(message, bad):
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode(message(bad))
    good = message(0.5)
    word = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(bad)]
    text = encode(good)
    assert "0.5" in text
    with pytest.raises(WireError):
        decode(type(good), text.replace("0.5", word))


UPDATE = Update(
    "tcga", 3, 10, {"shared": 10}, (Evaluation(Split.VAL, {"n": 4}),), 0.5, 0.1, {"fit": 1.0}, "ab"
)


def changed(**changes: object):
    """The update's JSON with other fields; ``...`` takes a field away."""
    content = json.loads(encode(UPDATE))
    content["body"] |= changes
    content["body"] = {key: value for key, value in content["body"].items() if value is not ...}
    return json.dumps(content)


def framed(**changes: object):
    """The update's JSON in another frame."""
    content = json.loads(encode(UPDATE)) | changes
    return json.dumps({key: value for key, value in content.items() if value is not ...})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("", "not a message", id="empty"),
        pytest.param("{", "not a message", id="not JSON"),
        pytest.param("[1, 2]", "not a message", id="a list"),
        pytest.param('"text"', "not a message", id="a text"),
        pytest.param("null", "not a message", id="null"),
        pytest.param("[" * 100_000, "not a message", id="very deep"),
        pytest.param("1" * 10_000, "not a message", id="very long number"),
        pytest.param(framed(version=...), "not a message", id="no version"),
        pytest.param(framed(kind=...), "not a message", id="no kind"),
        pytest.param(framed(body=...), "not a message", id="no body"),
        pytest.param(
            framed(version=WIRE_VERSION + 1),
            f"wire version {WIRE_VERSION + 1}, expected {WIRE_VERSION}: the coordinator has to upgrade",
            id="newer version",
        ),
        pytest.param(
            framed(version=WIRE_VERSION - 1),
            f"wire version {WIRE_VERSION - 1}, expected {WIRE_VERSION}: the hospital has to upgrade",
            id="older version",
        ),
        pytest.param(framed(version="1"), f"wire version '1', expected {WIRE_VERSION}", id="version as text"),
        pytest.param(framed(kind="Refusal"), "kind 'Refusal', expected Update", id="another kind"),
        pytest.param(framed(body=[1]), "expected Update", id="body is a list"),
        pytest.param(changed(path="/data"), "Update has an unknown key 'path'", id="unknown field"),
        pytest.param(changed(site=...), "Update lacks the key 'site'", id="missing field"),
        pytest.param(changed(site=3), "Update site must be text", id="number for text"),
        pytest.param(changed(round=3.0), "Update round must be a whole number", id="float for whole"),
        pytest.param(changed(round=True), "Update round must be a whole number", id="bool for whole"),
        pytest.param(changed(samples=None), "Update samples must be a whole number", id="null for whole"),
        pytest.param(changed(train_loss="0.5"), "Update train_loss must be a number", id="text for number"),
        pytest.param(changed(train_loss=10**400), "Update train_loss must be a number", id="beyond floats"),
        pytest.param(changed(exposures=[1]), "Update exposures must be a table", id="list for table"),
        pytest.param(changed(exposures={"a": 0.5}), "Update exposures.a must be", id="float in table"),
        pytest.param(changed(evaluations={}), "Update evaluations must be a list", id="table for list"),
        pytest.param(changed(evaluations=[1]), "Update evaluations must be a table", id="wrong entry"),
        pytest.param(
            changed(evaluations=[{"split": "dev", "state": {}}]),
            "Update evaluations split must be one of train, val, test, found 'dev'",
            id="unknown split",
        ),
        pytest.param(
            changed(evaluations=[{"split": "val", "state": {}, "rows": []}]),
            "Update evaluations has an unknown key 'rows'",
            id="unknown field inside",
        ),
    ],
)
def test_an_invalid_update_is_refused(text, words):
    with pytest.raises(WireError) as caught:
        decode(Update, text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_frame_helpers_leave_a_good_update_good():
    assert decode(Update, changed()) == decode(Update, framed()) == UPDATE


def test_a_refusal_has_room_for_a_code_only():
    assert json.loads(encode(Refusal(SiteCode.DATA))) == {
        "version": WIRE_VERSION,
        "kind": "Refusal",
        "body": {"code": "S201"},
    }
    for body in ({"code": "/home/patient"}, {"code": "S201", "detail": "row 3"}):
        with pytest.raises(WireError):
            decode(Refusal, json.dumps({"version": WIRE_VERSION, "kind": "Refusal", "body": body}))


@given(MESSAGES[Layout])
def test_tensors_of_a_layout_start_aligned_and_do_not_overlap(layout):
    starts = layout.offsets
    assert len(starts) == len(layout.tensors) + 1
    assert starts[0] == 0
    assert starts[-1] == layout.size
    for spec, start, following in zip(layout.tensors, starts, starts[1:], strict=False):
        assert spec.size == math.prod(spec.shape) * ITEM_BYTES[spec.dtype]
        assert start % 8 == 0
        assert 0 <= following - (start + spec.size) < 8


def test_offsets_by_hand():
    layout = Layout(
        (
            TensorSpec("flag", "bool", ()),
            TensorSpec("w", "float32", (3,)),
            TensorSpec("none", "float64", (0, 4)),
            TensorSpec("n", "int64", ()),
        )
    )
    assert layout.offsets == (0, 8, 24, 24, 32)
    assert Layout(()).size == 0


SPEC = TensorSpec("w", "float32", (2, 3))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param((replace(SPEC, name="v"),), id="name"),
        pytest.param((replace(SPEC, dtype="int32"),), id="dtype"),
        pytest.param((replace(SPEC, shape=(3, 2)),), id="shape"),
        pytest.param((replace(SPEC, shape=(6,)),), id="rank"),
        pytest.param((SPEC, SPEC), id="number"),
        pytest.param((), id="none"),
    ],
)
def test_different_layouts_have_different_fingerprints(other):
    assert Layout((SPEC,)).fingerprint == Layout((TensorSpec("w", "float32", (2, 3)),)).fingerprint
    assert Layout((SPEC,)).fingerprint != Layout(other).fingerprint


def test_fingerprint_depends_on_order_and_survives_the_wire():
    one, other = SPEC, TensorSpec("b", "float32", (2,))
    assert Layout((one, other)).fingerprint != Layout((other, one)).fingerprint
    layout = Layout((one, other))
    assert decode(Layout, encode(layout)).fingerprint == layout.fingerprint


def test_fingerprint_is_the_digest_of_version_names_dtypes_and_shapes():
    """Ends of different releases compare it, so its form must not drift."""
    layout = Layout((SPEC, TensorSpec("n", "int64", ())))
    content = f'[{WIRE_VERSION}, ["w", "float32", [2, 3]], ["n", "int64", []]]'
    assert layout.fingerprint == hashlib.sha256(content.encode()).hexdigest()[:16]
