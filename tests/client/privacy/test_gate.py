import hashlib
import logging
import math
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.privacy.approvals import Approval, FixedApprovals
from client.privacy.gate import Gate
from client.privacy.records.audit_log import AuditLog
from client.privacy.release_rules import StudyRules
from client.privacy.small_groups import withheld_groups, withheld_patterns
from client.training.kept.state import StateStore
from client.training.model_pool import ModelPool
from client.training.service import SiteService
from mmare.errors import SiteCode, SiteError
from mmare.metrics.calibration import CalibrationState
from mmare.metrics.coarse import coarsened
from mmare.metrics.state import MetricState
from mmare.models.blocks import block_tensors
from mmare.models.phases import phase_at
from mmare.models.registry import build_model
from mmare.wire.messages import Comparison, Request, RollCall, Split, Statistics, Task, Update, decode, encode
from mmare.wire.sharing import from_wire
from mmare.wire.tensors import global_tensors, layout_of, pack, trained_tensors, unpack
from tests.federations import tiny_data, tiny_study
from tests.mmare.models.examples import a_study, small_options

SIZES = st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.integers(0, 30), max_size=8)


def possible_sizes(total, parts):
    """Ways to share ``total`` rows among ``parts`` groups that all have some."""
    return [cut for cut in product(range(1, total + 1), repeat=parts) if sum(cut) == total]


@given(st.lists(st.integers(0, 9), max_size=4), st.integers(0, 7))
def test_no_withheld_size_follows_from_the_total_and_the_disclosed_ones(counts, min_count):
    sizes = dict(enumerate(counts))
    withheld = withheld_groups(sizes, min_count)
    if not withheld or len(withheld) == sum(size > 0 for size in counts):
        return  # all are withheld: no size is disclosed except the total
    rest = sum(counts) - sum(size for group, size in sizes.items() if group not in withheld)
    ways = possible_sizes(rest, len(withheld))
    assert all(len(set(values)) > 1 for values in zip(*ways, strict=True))
    assert rest >= min_count


@given(SIZES, st.integers(0, 12))
def test_every_small_group_is_withheld_and_no_empty_one(sizes, min_count):
    withheld = withheld_groups(sizes, min_count)
    assert {group for group, size in sizes.items() if 0 < size < min_count} <= withheld
    assert all(sizes[group] > 0 for group in withheld)


@given(SIZES, st.integers(0, 12))
def test_no_more_is_withheld_than_needed(sizes, min_count):
    withheld = withheld_groups(sizes, min_count)
    small = [size for size in sizes.values() if 0 < size < min_count]
    more = sorted(sizes[group] for group in withheld if sizes[group] >= min_count)
    disclosed = [size for group, size in sizes.items() if size > 0 and group not in withheld]
    assert len(more) <= 1
    if more:
        assert sum(small) < max(min_count, len(small) + 1)  # too few together, or one row each
        assert more[0] <= min(disclosed, default=more[0])


@given(SIZES)
def test_zero_discloses_all(sizes):
    assert withheld_groups(sizes, 0) == set()


@given(SIZES, st.integers(1, 12), st.randoms(use_true_random=False))
def test_the_sum_of_what_is_withheld_does_not_depend_on_the_order(sizes, min_count, random):
    groups = list(sizes)
    random.shuffle(groups)
    first = withheld_groups(sizes, min_count)
    second = withheld_groups({group: sizes[group] for group in groups}, min_count)
    assert sorted(sizes[group] for group in first) == sorted(sizes[group] for group in second)


@given(
    st.dictionaries(
        st.sampled_from(["11", "10", "01", "00"]),
        st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(any),
        min_size=1,
    ),
    st.integers(0, 8),
)
def test_no_class_of_a_withheld_pattern_follows_from_what_is_disclosed(sizes, min_count):
    withheld = withheld_patterns(sizes, min_count)
    disclosed = sizes.keys() - withheld
    assert all(count == 0 or count >= min_count for name in disclosed for count in sizes[name])
    together = [sum(sizes[name][label] for name in withheld) for label in (0, 1)]
    if disclosed:
        assert len(withheld) != 1
        assert all(count == 0 or count >= min_count for count in together)
    if min_count <= 1:
        assert not withheld


# What leaves

LIMIT = 5
STUDY = tiny_study(privacy={"min_count": LIMIT}, federation={"options": {"gap_step": 0.1}})
MODEL = build_model(STUDY)
SENT = pack(global_tensors(MODEL)).numpy().tobytes()
ROWS = 60  # to train on


@dataclass
class Passing:
    """An answer on its way through a gate, with what belongs to it."""

    request: Request
    answer: object
    tensors: torch.Tensor | None = None
    rows: int = ROWS

    def through(self, gate, received=SENT):
        return gate.release(self.request, received, self.answer, self.tensors, self.rows)

    def code(self, **limits: object):
        with pytest.raises(SiteError) as error:
            self.through(make_gate(**limits))
        return error.value.code


def make_gate(study=STUDY, min_count=0, **limits: object):
    return Gate("ash", FixedApprovals([study.hash]), min_count, **limits)


def asked(task, study=STUDY, **fields: object):
    tensors = {"layout": layout_of(global_tensors(build_model(study))).fingerprint}
    trains = {"round": 1, "train": True, "splits": (Split.VAL,)} if task is Task.TRAIN else {}
    return Request(task, "run", study.to_dict(), **{**tensors, **trains, **fields})


def answered(tmp_path, request, study=STUDY, missing=0.3):
    """What the real service answers to a request."""
    site = SiteService(
        "ash",
        lambda wanted: tiny_data(wanted, 2 * ROWS, missing=missing),
        StateStore(tmp_path),
        ModelPool(torch.device("cpu")),
        gate=make_gate(study),
    )
    sent = {Task.DESCRIBE: b"", Task.STATISTICS: b"", Task.COMPARE: 2 * SENT}.get(
        request.task, pack(global_tensors(build_model(study))).numpy().tobytes()
    )
    answer, tensors = site.answer(request, sent)
    return Passing(request, answer, tensors)


@pytest.fixture(scope="module")
def passing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    requests = {
        "describe": asked(Task.DESCRIBE),
        "statistics": asked(Task.STATISTICS),
        "train": asked(Task.TRAIN, gap=True),
        "plain": asked(Task.TRAIN),
        "evaluate": asked(
            Task.EVALUATE,
            splits=(Split.VAL, Split.TEST),
            patterns=True,
            subsets=True,
            calibration=True,
            shapley=True,
            final=True,
        ),
        "compare": asked(Task.COMPARE),
    }
    return {name: answered(folder, request) for name, request in requests.items()}


KINDS = {
    "describe": RollCall,
    "statistics": Statistics,
    "train": Update,
    "plain": Update,
    "evaluate": Update,
    "compare": Comparison,
}


@pytest.mark.parametrize("name", KINDS)
def test_an_answer_is_released_with_only_the_norm_added(passing, name):
    case = passing[name]
    header, payload = case.through(make_gate())
    found = decode(KINDS[name], header)
    if case.tensors is not None:
        assert found.norm > 0
        found = replace(found, norm=None)
    assert encode(found) == encode(case.answer)
    assert payload == (b"" if case.tensors is None else case.tensors.numpy().tobytes())


def changed(case, tensors=None, rows=None, **fields: object):
    answer = replace(case.answer, **fields)
    return Passing(
        case.request,
        answer,
        case.tensors if tensors is None else tensors,
        case.rows if rows is None else rows,
    )


def small_state(state):
    """A metric state whose first class has two rows."""
    entry = {
        "n": 2,
        "confusion": [2, 0],
        "histogram": [[[0, 2]], []],
        "log_loss": 1.0,
        "brier": 0.1,
        "calibration": [[14, 2, 2, 2.0]],
    }
    return {**state, "classes": [entry, state["classes"][1]]}


def with_evaluation(case, **fields: object):
    return changed(case, evaluations=(replace(case.answer.evaluations[0], **fields),))


def test_the_smaller_state_is_valid_except_for_its_size(passing):
    case = passing["plain"]
    small = with_evaluation(case, state=small_state(case.answer.evaluations[0].state))
    open_study = tiny_study(privacy={"min_count": 2})
    free = Passing(replace(small.request, study=open_study.to_dict()), small.answer, small.tensors)
    free.through(make_gate(open_study))  # a group of two may be disclosed
    assert small.code() is SiteCode.RELEASE


def exposed(case, name, count):
    return {**case.answer.exposures, name: count}


GRID = CalibrationState.of(torch.zeros(9, 2), torch.zeros(9, dtype=torch.int64))
UPDATES = {
    "site": lambda case: changed(case, site="birch"),
    "round": lambda case: changed(case, round=2),
    "samples": lambda case: changed(case, samples=case.answer.samples + 1),
    "fewer-rows": lambda case: changed(case, rows=ROWS - 1),
    "too-few-rows": lambda case: changed(case, rows=LIMIT - 1, samples=LIMIT - 1),
    "exposure-too-large": lambda case: changed(case, exposures=exposed(case, "head", 9999)),
    "exposure-negative": lambda case: changed(case, exposures=exposed(case, "head", -1)),
    "exposure-of-another": lambda case: changed(case, exposures=exposed(case, "patient-17", 1)),
    "exposure-none": lambda case: changed(case, exposures=exposed(case, case.answer.blocks[0], 0)),
    "block-missing": lambda case: changed(case, blocks=case.answer.blocks[1:]),
    "blocks-reversed": lambda case: changed(case, blocks=case.answer.blocks[::-1]),
    "layout": lambda case: changed(case, layout="0" * 16),
    "short": lambda case: changed(case, tensors=case.tensors[:-8]),
    "long": lambda case: changed(case, tensors=torch.cat([case.tensors, case.tensors[:8]])),
    "norm": lambda case: changed(case, norm=1.0),
    "no-loss": lambda case: changed(case, train_loss=None),
    "loss": lambda case: changed(case, train_loss=math.inf),
    "seconds": lambda case: changed(case, seconds={"train": math.nan}),
    "seconds-of": lambda case: changed(case, seconds={"/data/patients.csv": 1.0}),
    "no-metrics": lambda case: changed(case, evaluations=()),
    "metrics-of-test": lambda case: with_evaluation(case, split=Split.TEST),
    "metrics-no-state": lambda case: with_evaluation(case, state={"rows": ["TCGA-07-1234"]}),
    "patterns-unasked": lambda case: with_evaluation(case, patterns={"11": case.answer.evaluations[0].state}),
    "subsets-unasked": lambda case: with_evaluation(case, subsets={"11": case.answer.evaluations[0].state}),
    "calibration-unasked": lambda case: with_evaluation(case, calibration=GRID.to_dict()),
    "shapley-unasked": lambda case: with_evaluation(case, attribution={"rows": [0, 0], "moved": [0, 0]}),
    "trained-unasked": lambda case: changed(case, trained=case.answer.evaluations[0]),
}


@pytest.mark.parametrize("name", UPDATES)
def test_an_update_that_is_not_the_study_s_is_held_back(passing, name):
    assert UPDATES[name](passing["plain"]).code() is SiteCode.RELEASE


@pytest.mark.parametrize("content", [GRID.to_dict(), {"grid": "patient-17"}], ids=["other-rows", "no-state"])
def test_calibration_of_other_rows_than_the_metrics_is_held_back(passing, content):
    case = passing["evaluate"]
    first = replace(case.answer.evaluations[0], calibration=content)
    assert changed(case, evaluations=(first, *case.answer.evaluations[1:])).code() is SiteCode.RELEASE


@pytest.mark.parametrize("content", [{"rows": [1, 1], "moved": [0.1, 0.1]}, {"rows": "patient-17"}])
def test_shapley_values_of_other_rows_than_the_patterns_are_held_back(passing, content):
    case = passing["evaluate"]
    first, last = case.answer.evaluations
    assert (first.attribution, last.attribution.keys()) == ({}, {"rows", "moved"})
    lying = changed(case, evaluations=(first, replace(last, attribution=content)))
    assert lying.code() is SiteCode.RELEASE
    of_validation = changed(case, evaluations=(replace(first, attribution=last.attribution), last))
    assert of_validation.code() is SiteCode.RELEASE


def test_patterns_that_the_study_does_not_have_are_held_back(passing):
    case = passing["evaluate"]
    evaluation = case.answer.evaluations[0]
    name = next(iter(evaluation.patterns))
    for wrong in ("00", "111", "1", "ab", "TCGA-07-1234"):
        patterns = {wrong if key == name else key: value for key, value in evaluation.patterns.items()}
        lying = changed(
            case, evaluations=(replace(evaluation, patterns=patterns), *case.answer.evaluations[1:])
        )
        assert lying.code() is SiteCode.RELEASE
    whole = dict.fromkeys(("11", "10"), evaluation.state)  # more rows than there are
    twice = changed(case, evaluations=(replace(evaluation, patterns=whole), *case.answer.evaluations[1:]))
    assert twice.code() is SiteCode.RELEASE


def test_a_pattern_that_is_left_out_may_not_be_small(tmp_path):
    """With all patterns but a small one, the small one is the split's state less theirs."""
    study = tiny_study(privacy={"min_count": 0})
    request = asked(Task.EVALUATE, study, splits=(Split.VAL,), patterns=True, final=True)
    case = answered(tmp_path, request, study, missing=0.2)
    evaluation = case.answer.evaluations[0]
    sizes = {
        name: [entry["n"] if entry else 0 for entry in state["classes"]]
        for name, state in evaluation.patterns.items()
    }
    smallest = min(sizes, key=lambda name: sum(sizes[name]))
    least = min(count for name, counts in sizes.items() for count in counts if name != smallest)
    assert 0 < min(sizes[smallest]) < least  # all others are large enough for the limit
    strict = tiny_study(privacy={"min_count": least})

    def wide(state):
        return coarsened(MetricState.from_dict(state, 2), least).to_dict()

    evaluation = replace(evaluation, state=wide(evaluation.state))
    kept = {name: wide(state) for name, state in evaluation.patterns.items() if name != smallest}
    lying = Passing(
        replace(case.request, study=strict.to_dict()),
        replace(case.answer, evaluations=(replace(evaluation, patterns=kept),)),
    )
    with pytest.raises(SiteError) as error:
        lying.through(make_gate(strict))
    assert error.value.code is SiteCode.RELEASE
    none = replace(lying, answer=replace(case.answer, evaluations=(replace(evaluation, patterns={}),)))
    none.through(make_gate(strict))


def test_an_evaluation_carries_nothing_of_a_training(passing):
    case = passing["evaluate"]
    assert changed(case, tensors=torch.zeros(8, dtype=torch.uint8)).code() is SiteCode.RELEASE
    for fields in ({"samples": 3}, {"exposures": {"head": 3}}, {"norm": 1.0}, {"train_loss": 1.0}):
        assert changed(case, **fields).code() is SiteCode.RELEASE


def test_an_answer_to_another_request_is_held_back(passing):
    for task in (Task.STATISTICS, Task.TRAIN, Task.COMPARE):
        case = passing["describe"]
        assert replace(case, request=replace(case.request, task=task)).code() is SiteCode.RELEASE
    assert replace(passing["plain"], tensors=None).code() is SiteCode.RELEASE


def with_counts(case, split, **sizes: int | None):
    counts = case.answer.counts
    return changed(case, counts=replace(counts, splits={**counts.splits, split: sizes}))


ROLL_CALLS = {
    "hash": lambda case: changed(case, study_hash="0" * 64),
    "software": lambda case: changed(case, software="/opt/hospital/mmare"),
    "encoder-of": lambda case: changed(case, encoders={"patient-17": "given"}),
    "encoder": lambda case: changed(case, encoders={"ct": "/data/weights of Dr. Who"}),
    "notes": lambda case: changed(case, notes=("patient 17 was born in 1951",)),
    "samples": lambda case: changed(case, samples=ROWS - 1),
    "samples-small": lambda case: changed(case, samples=2, rows=2),
    "small-class": lambda case: with_counts(case, "val", no=2, yes=20),
    "one-withheld": lambda case: with_counts(case, "train", no=None, yes=20),
    "patterns-of-withheld": lambda case: with_counts(case, "val", no=None, yes=None),
    "other-class": lambda case: with_counts(case, "val", no=20, yes=20, maybe=20),
    "other-split": lambda case: with_counts(case, "patient-17", no=20, yes=20),
    "small-pattern": lambda case: changed(
        case, counts=replace(case.answer.counts, patterns={"val": {"11": 3, "10": 20}})
    ),
    "no-pattern": lambda case: changed(
        case, counts=replace(case.answer.counts, patterns={"val": {"patient-17": 20}})
    ),
    "pattern-without-split": lambda case: changed(
        case, counts=replace(case.answer.counts, splits={}, patterns={"val": {"11": 20}})
    ),
}


@pytest.mark.parametrize("name", ROLL_CALLS)
def test_a_roll_call_that_discloses_more_is_held_back(passing, name):
    assert ROLL_CALLS[name](passing["describe"]).code() is SiteCode.RELEASE


def moment(case, **fields: object):
    first, *others = case.answer.moments
    return changed(case, moments=(replace(first, **fields), *others))


STATISTICS = {
    "small": lambda case: moment(case, n=2),
    "of-nobody": lambda case: moment(case, n=0),
    "wide": lambda case: moment(case, total=(1.0,) * 9),
    "infinite": lambda case: moment(case, squares=(math.inf,) * 8),
    "name": lambda case: moment(case, modality="patient-17"),
    "missing": lambda case: changed(case, moments=case.answer.moments[1:]),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_that_disclose_more_are_held_back(passing, name):
    assert STATISTICS[name](passing["statistics"]).code() is SiteCode.RELEASE


@pytest.mark.parametrize(
    "cells",
    [{"patient-17": (9, 9, 9, 9)}, {"no": (1, 1, 1, 1)}, {"no": (9, 9, 9)}, {"no": (9, 9, 9, -1)}],
    ids=["class", "small", "three", "negative"],
)
def test_a_comparison_that_discloses_more_is_held_back(passing, cells):
    assert changed(passing["compare"], cells=cells).code() is SiteCode.RELEASE


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("wire", ["float32", "float16"])
def test_a_value_that_is_not_finite_is_held_back(tmp_path, value, wire):
    study = tiny_study(federation={"min_sites": 1, "wire": wire})
    case = answered(tmp_path, asked(Task.TRAIN, study), study)
    tensors = case.tensors.clone()
    tensors.view(torch.float16 if wire == "float16" else torch.float32)[-9] = value
    sent = pack(global_tensors(build_model(study))).numpy().tobytes()
    with pytest.raises(SiteError) as error:
        replace(case, tensors=tensors).through(make_gate(study), sent)
    assert error.value.code is SiteCode.NON_FINITE


def test_nothing_hides_between_the_tensors(tmp_path):
    study = tiny_study(study={"classes": ["no", "yes", "maybe"]})  # a bias of three numbers leaves a gap
    model = build_model(study)
    sent = pack(global_tensors(model)).numpy().tobytes()
    case = answered(tmp_path, asked(Task.TRAIN, study), study)
    blocks = [block for block in model.blocks() if block.name in case.answer.blocks]
    layout = layout_of(block_tensors(blocks, trained_tensors(model)))
    gaps = [
        start + spec.size
        for spec, start, end in zip(layout.tensors, layout.offsets, layout.offsets[1:], strict=False)
        if start + spec.size < end
    ]
    assert gaps
    case.through(make_gate(study), sent)
    for gap in gaps:
        tensors = case.tensors.clone()
        tensors[gap] = 17
        with pytest.raises(SiteError) as error:
            changed(case, tensors=tensors).through(make_gate(study), sent)
        assert error.value.code is SiteCode.RELEASE


@pytest.mark.parametrize("wire", ["float32", "float16"])
def test_the_norm_of_the_change_is_measured_on_the_bytes(tmp_path, wire):
    study = tiny_study(federation={"min_sites": 1, "wire": wire})
    case = answered(tmp_path, asked(Task.TRAIN, study), study)
    sent = pack(global_tensors(build_model(study))).numpy().tobytes()
    rules = StudyRules(study)
    layout = rules.check_blocks(case.answer)
    found = rules.change(case.answer, layout, case.tensors.numpy(), sent)
    model = build_model(study)
    blocks = [block for block in model.blocks() if block.name in case.answer.blocks]
    origin = block_tensors(blocks, trained_tensors(model))
    values = from_wire(unpack(case.tensors, layout), origin, study.federation.wire)
    squares = sum((value - origin[name]).double().square().sum().item() for name, value in values.items())
    assert found == pytest.approx(squares**0.5, rel=1e-4)
    assert found > 0
    assert decode(Update, case.through(make_gate(study), sent)[0]).norm == found
    for factor, passes in ((1.01, True), (0.99, False)):
        gate = make_gate(study, max_norm=found * factor)
        if passes:
            case.through(gate, sent)
        else:
            with pytest.raises(SiteError) as error:
                case.through(gate, sent)
            assert error.value.code is SiteCode.NORM


@pytest.mark.parametrize("site_limit", [None, 1e9])
def test_the_study_s_own_limit_of_the_norm_applies_too(tmp_path, site_limit):
    study = tiny_study(federation={"min_sites": 1, "max_norm": 1e-6})
    case = answered(tmp_path, asked(Task.TRAIN, study), study)
    sent = pack(global_tensors(build_model(study))).numpy().tobytes()
    with pytest.raises(SiteError) as error:
        case.through(make_gate(study, max_norm=site_limit), sent)
    assert error.value.code is SiteCode.NORM


@pytest.mark.parametrize("name", ["adacomed", "drim"])
def test_the_rules_of_every_phase_are_the_model_s(tmp_path, name):
    study = a_study((16, 16, 16), model=name, **small_options(name, width=16, hidden=16, in_dim=16, heads=2))
    model = build_model(study)
    phases = model.phases()
    starts = [1 + sum(phase.rounds or 0 for phase in phases[:index]) for index in range(len(phases))]
    sent = pack(global_tensors(model)).numpy().tobytes()
    for start in starts:
        case = answered(tmp_path, asked(Task.TRAIN, study, round=start), study)
        case.through(make_gate(study), sent)
        assert set(case.answer.exposures) == phase_at(phases, start).blocks
        for other in {*starts} - {start}:
            moved = Passing(
                replace(case.request, round=other), replace(case.answer, round=other), case.tensors
            )
            with pytest.raises(SiteError) as error:
                moved.through(make_gate(study), sent)
            assert error.value.code is SiteCode.RELEASE
    assert len(starts) == {"adacomed": 2, "drim": 1}[name]


@pytest.mark.parametrize("federation", [{"local": ["head"]}, {"untouched": "drift"}, {"wire": "float16"}])
def test_every_federation_setting_passes(tmp_path, federation):
    study = tiny_study(federation={"min_sites": 1, **federation})
    model = build_model(study)
    names = {name for part in study.federation.local for name in model.part(part)}
    tensors = global_tensors(model, without=names)
    request = asked(Task.TRAIN, study, layout=layout_of(tensors).fingerprint)
    gate = make_gate(study)
    site = SiteService("ash", tiny_data, StateStore(tmp_path), ModelPool(torch.device("cpu")), gate=gate)
    header, payload = site(encode(request), pack(tensors).numpy().tobytes())
    update = decode(Update, header)
    assert update.layout
    assert payload
    assert not names & set(update.blocks)


# Approval, limits, log


def test_a_study_that_is_not_approved_or_has_changed_is_refused(passing):
    other = tiny_study(training={"rounds": 5})
    for study, gate in ((other, make_gate()), (STUDY, make_gate(other))):
        with pytest.raises(SiteError) as error:
            gate.admit(study.to_dict())
        assert error.value.code is SiteCode.STUDY
    assert make_gate().admit(replace(STUDY, seed=8, name="again").to_dict()).seed == 8
    with pytest.raises(SiteError) as error:
        passing["plain"].through(make_gate(other))
    assert error.value.code is SiteCode.STUDY


class Limited:
    """An approval with a limit and a time."""

    def __init__(self, most, time=""):
        self.approval = Approval(STUDY.hash, time, "me", most)

    def find(self, study_hash):
        return self.approval if study_hash == STUDY.hash else None


def releases(gate, case, most=9):
    """How many answers leave before one is refused."""
    codes = []
    for _ in range(most):
        try:
            gate.admit(case.request.study)
        except SiteError as error:
            codes.append(error.code)
            break
        case.through(gate)
        codes.append(None)
    assert set(codes) <= {None, SiteCode.RELEASES}
    return codes.count(None)


def test_the_limit_of_answers_holds_across_a_restart(passing, tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    approvals, case = Limited(4), passing["statistics"]
    gate = Gate("ash", approvals, 0, log)
    case.through(gate)
    assert releases(gate, case) == 3
    assert releases(Gate("ash", approvals, 0, AuditLog(log.path)), case) == 0
    approvals.approval = replace(approvals.approval, time="9999")  # approved again
    assert releases(gate, case) == 4


@pytest.mark.parametrize(("approved", "own", "most"), [(None, 2, 2), (3, 2, 2), (2, 3, 2), (None, None, 9)])
def test_the_smaller_of_two_limits_applies(passing, approved, own, most):
    gate = Gate("ash", Limited(approved), 0, max_releases=own)
    assert releases(gate, passing["statistics"]) == most


def test_an_answer_that_cannot_be_logged_is_not_released(passing, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    gate = make_gate(audit=AuditLog(tmp_path / "file" / "audit.jsonl"))
    with caplog.at_level(logging.ERROR), pytest.raises(SiteError) as error:
        passing["plain"].through(gate)
    assert error.value.code is SiteCode.AUDIT
    gate.refuse(passing["plain"].request, SiteCode.DATA)  # must not raise: a code leaves anyway
    assert "not in the audit log" in caplog.text


def test_a_release_is_logged_with_the_hash_of_its_bytes(passing, tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    header, payload = passing["plain"].through(make_gate(audit=log))
    (line,) = log.lines()
    assert line["sha256"] == hashlib.sha256(header.encode() + payload).hexdigest()
    assert line["bytes"] == len(header.encode()) + len(payload)
    assert (line["event"], line["task"], line["round"], line["run"]) == ("released", "train", 1, "run")
    assert (line["study"], line["what"]) == (STUDY.hash, ["metrics val", "update"])
