"""What a site may return of a round, checked against a site that lies."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmare.errors import Reason, StudyError
from mmare.models.blocks import block_tensors
from mmare.models.registry import build_model
from mmare.study.choices import Wire
from mmare.wire.messages import Update, WireError
from mmare.wire.tensors import layout_of, pack, trained_tensors, unpack
from server.rounds.update_checks import Upload
from tests.federations import tiny_study

EVERY = ("conditioning.ct", "conditioning.wsi", "adapter.ct", "merge", "shared")
SAMPLES = 20
EXPOSURES = {"conditioning.ct": 4, "conditioning.wsi": 0, "adapter.ct": 16, "merge": 16, "shared": 20}
HYPERMM = {"name": "hypermm-embedding", "width": 16, "phase_rounds": 2}


def upload_of(model=None, **federation: object):
    study = tiny_study(federation=federation, **({} if model is None else {"model": model}))
    return Upload(build_model(study), study)


def layout_by_hand(blocks, *, wire="float32", local=()):
    """Written out: what a site sends, from the model alone."""
    model = build_model(tiny_study())
    of_model = {block.name: block for block in model.blocks()}
    tensors = {}
    for name in blocks:
        tensors |= block_tensors([of_model[name]], trained_tensors(model))
    kept = {name: value for name, value in tensors.items() if not name.startswith(tuple(local) or "-")}
    dtype = torch.float16 if wire == "float16" else torch.float32
    return layout_of({name: value.to(dtype) for name, value in kept.items()})


def update_of(exposures=None, blocks=None, layout=None, samples=SAMPLES, number=1):
    exposures = EXPOSURES if exposures is None else exposures
    if blocks is None:
        blocks = tuple(name for name in EVERY if exposures.get(name, 0) > 0)
    if layout is None:
        layout = layout_by_hand([name for name in blocks if name in EVERY]).fingerprint
    return Update("ash", number, samples=samples, exposures=exposures, blocks=blocks, layout=layout)


def test_an_honest_update_has_the_layout_of_its_blocks():
    found = upload_of().check(update_of(), 1)
    assert found == layout_by_hand([name for name in EVERY if EXPOSURES[name]])
    assert "conditioning.gamma.weight[:,1]" not in [spec.name for spec in found.tensors]


@given(
    exposures=st.fixed_dictionaries(
        {name: st.integers(0, SAMPLES) for name in EVERY if name != "merge"}
        | {"merge": st.integers(0, SAMPLES)}
    )
)
def test_any_possible_exposures_ask_for_their_blocks_and_no_other(exposures):
    wanted = [name for name in EVERY if exposures[name] > 0]
    found = UPLOAD.check(update_of(exposures), 1)
    assert found == layout_by_hand(wanted)


UPLOAD = upload_of()


def with_exposure(**changes: int):
    return {**EXPOSURES, **{name.replace("_", "."): count for name, count in changes.items()}}


@pytest.mark.parametrize(
    ("update", "sentence"),
    [
        pytest.param(
            update_of({**EXPOSURES, "nonsense": 1}),
            r"other blocks than the round's: 'nonsense'",
            id="unknown",
        ),
        pytest.param(update_of({"shared": 20}), r"other blocks than the round's: 'adapter.ct'", id="missing"),
        pytest.param(update_of({}), r"other blocks than the round's", id="none"),
        pytest.param(
            update_of(with_exposure(shared=-1), blocks=EVERY),
            r"exposure -1 of block shared, expected 0 to 20",
            id="negative",
        ),
        pytest.param(
            update_of(with_exposure(shared=21)), r"exposure 21 of block shared, expected 0 to 20", id="more"
        ),
        pytest.param(
            update_of(with_exposure(adapter_ct=10**12)), r"exposure 10+ of block adapter.ct", id="huge"
        ),
        pytest.param(
            update_of(with_exposure(merge=21)), r"exposure 21 of block merge, expected 0 to 20", id="merges"
        ),
        pytest.param(update_of(blocks=("nonsense",)), r"blocks \['nonsense'\], expected", id="block-unknown"),
        pytest.param(update_of(blocks=EVERY), r"'conditioning.wsi'.*expected", id="block-without-exposure"),
        pytest.param(update_of(blocks=("shared",)), r"blocks \['shared'\], expected \[", id="block-left-out"),
        pytest.param(update_of(blocks=()), r"blocks \[\], expected \[", id="no-blocks"),
        pytest.param(
            update_of(blocks=("shared", "merge", "adapter.ct", "conditioning.ct")),
            r"expected \['conditioning.ct', 'adapter.ct', 'merge', 'shared'\]",
            id="other-order",
        ),
        pytest.param(
            update_of(blocks=("conditioning.ct", "adapter.ct", "merge", "shared", "shared")),
            r"blocks .*expected",
            id="twice",
        ),
        pytest.param(update_of(layout="0" * 16), r"tensors in another layout", id="layout"),
        pytest.param(update_of(layout=""), r"tensors in another layout", id="no-layout"),
    ],
)
def test_what_cannot_be_is_refused_by_name(update, sentence):
    with pytest.raises(WireError, match=sentence) as error:
        UPLOAD.check(update, 1)
    assert error.value.code is (Reason.EXPOSURE if "exposure" in str(error.value) else Reason.LAYOUT)


def test_a_model_of_more_modalities_allows_more_merges():
    widths = {"a": 8, "b": 8, "c": 8}
    study = tiny_study(
        modality=[{"name": name, "kind": "features", "width": width} for name, width in widths.items()],
        model={"width": 8},
    )
    upload = Upload(build_model(study), study)
    names = upload.of_round(1)
    exposures = {**dict.fromkeys(names, 0), "merge": 2 * SAMPLES}
    layout = layout_of({name: upload.tensors[name] for name in upload.parts["merge"]}).fingerprint
    update = Update("ash", 1, samples=SAMPLES, exposures=exposures, blocks=("merge",), layout=layout)
    assert upload.check(update, 1).size > 0
    more = replace(update, exposures={**exposures, "merge": 2 * SAMPLES + 1})
    with pytest.raises(WireError, match=r"exposure 41 of block merge, expected 0 to 40"):
        upload.check(more, 1)


def test_with_drift_all_blocks_travel_and_nothing_less():
    upload = upload_of(untouched="drift")
    layout = layout_by_hand(EVERY)
    update = update_of(blocks=EVERY, layout=layout.fingerprint)
    assert upload.check(update, 1) == layout
    with pytest.raises(WireError, match=r"expected"):
        upload.check(update_of(), 1)


def test_local_parts_are_expected_of_nobody():
    """The exposures of the blocks are told as ever: they are counts of samples, not tensors."""
    upload = upload_of(local=["head", "adapters"])
    names = ("conditioning.ct", "merge", "shared")
    layout = layout_by_hand(names, local=("head.", "adapters."))
    assert upload.check(update_of(blocks=names, layout=layout.fingerprint), 1) == layout
    assert not any(name.startswith(("head.", "adapters.")) for name in upload.tensors)
    with pytest.raises(WireError, match=r"'adapter.ct'.*expected"):
        upload.check(update_of(), 1)


@pytest.mark.parametrize("number", [1, 2, 3, 99])
def test_each_round_has_the_blocks_of_its_phase(number):
    upload = upload_of(HYPERMM)
    names = upload.of_round(number)
    assert ("rho" in names) == (number > 2)
    assert (len(names) > 1) == (number <= 2)
    other = upload.of_round(1 if number > 2 else 3)
    exposures = dict.fromkeys(other, 1)
    update = Update("ash", number, samples=SAMPLES, exposures=exposures, blocks=other, layout="")
    with pytest.raises(WireError, match=r"other blocks than the round's"):
        upload.check(update, number)


def test_pairs_may_be_as_many_as_there_are_modalities():
    upload = upload_of(HYPERMM)
    exposures = {**dict.fromkeys(upload.of_round(1), 0), "decoder": 2 * SAMPLES}
    layout = layout_of({name: upload.tensors[name] for name in upload.parts["decoder"]}).fingerprint
    update = Update("ash", 1, samples=SAMPLES, exposures=exposures, blocks=("decoder",), layout=layout)
    assert upload.check(update, 1).size > 0
    with pytest.raises(WireError, match=r"exposure 41 of block decoder"):
        upload.check(replace(update, exposures={**exposures, "decoder": 41}), 1)
    with pytest.raises(WireError, match=r"exposure 1 of block identifier.spare, expected 0"):
        upload.check(replace(update, exposures={**exposures, "identifier.spare": 1}), 1)


@pytest.mark.parametrize("wire", list(Wire))
def test_what_is_read_is_what_the_site_has(wire):
    upload = upload_of(wire=wire.value)
    blocks = tuple(name for name in EVERY if EXPOSURES[name])
    layout = upload.check(update_of(layout=layout_by_hand(blocks, wire=wire).fingerprint), 1)
    assert layout == layout_by_hand(blocks, wire=wire)
    source = torch.Generator().manual_seed(3)
    origin = {spec.name: upload.tensors[spec.name].clone() for spec in layout.tensors}
    own = {name: value + 0.01 * torch.randn(value.shape, generator=source) for name, value in origin.items()}
    sent = {n: (v - origin[n]).half() if wire is Wire.FLOAT16 else v for n, v in own.items()}
    found = upload.read(unpack(pack(sent), layout))
    for name, value in own.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], value, rtol=0, atol=0 if wire is Wire.FLOAT32 else 3e-5)


@pytest.mark.parametrize("wire", list(Wire))
def test_how_long_a_step_is_is_measured_and_limited(wire):
    blocks = tuple(name for name in EVERY if EXPOSURES[name])

    def sent(upload):
        layout = upload.check(update_of(layout=layout_by_hand(blocks, wire=wire).fingerprint), 1)
        source = torch.Generator().manual_seed(3)
        changes = [torch.randn(spec.shape, generator=source).half() for spec in layout.tensors]
        length = sum(float(change.double().square().sum()) for change in changes) ** 0.5
        values = [
            change if wire is Wire.FLOAT16 else upload.tensors[spec.name] + change.float()
            for spec, change in zip(layout.tensors, changes, strict=True)
        ]
        return {spec.name: value for spec, value in zip(layout.tensors, values, strict=True)}, length

    free = upload_of(wire=wire.value)
    tensors, length = sent(free)
    assert free.check_step(tensors) == pytest.approx(length, rel=1e-5)
    assert upload_of(wire=wire.value, max_norm=length * 1.01).check_step(tensors) > 0
    with pytest.raises(WireError, match=rf"a change of norm {length:.3g}, expected at most"):
        upload_of(wire=wire.value, max_norm=length * 0.99).check_step(tensors)
    first = min(tensors)
    with pytest.raises(WireError, check=lambda error: error.code is Reason.NON_FINITE):
        free.check_step({**tensors, first: tensors[first] * float("nan")})


def test_its_tensors_are_those_of_the_model_in_hand():
    study = tiny_study()
    model = build_model(study)
    upload = Upload(model, study)
    with torch.no_grad():
        model.conditioning.gamma.weight.fill_(5.0)
    assert bool((upload.tensors["conditioning.gamma.weight[:,1]"] == 5.0).all())
    assert {name for part in upload.parts.values() for name in part} == set(upload.tensors)


def test_local_parts_that_leave_nothing_are_refused():
    with pytest.raises(StudyError, match=r"local keeps all of late-mean"):
        upload_of({"name": "late-mean", "width": 16}, local=["head", "adapters"])
