from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mmare.errors import StudyError
from mmare.models.base import MMARE, Fusion
from mmare.models.fusion import MergeOrder
from mmare.models.registry import MODELS, build_model
from tests.mmare.models.examples import a_study


def test_the_models_of_the_thesis_and_its_floors_are_there():
    assert {"mmare", "unimodal", "late-mean"} <= set(MODELS)
    assert list(MODELS) == sorted(MODELS)


def test_options_reach_the_model():
    study = a_study((8, 8), width=8, conditioning=False, fusion="mean", order="sample", dropout=0)
    model = build_model(study)
    assert isinstance(model, MMARE)
    assert (model.conditioning.gamma, model.fusion, model.order) == (None, None, MergeOrder.SAMPLE)
    assert model.head.dropout_probability == 0.0
    assert model.head.out.in_features == 2


def test_defaults_are_those_of_the_thesis():
    options = MMARE.Options()
    assert (options.width, options.conditioning, options.dropout) == (512, True, 0.3)
    assert (options.fusion, options.order) == (Fusion.PAIRWISE, MergeOrder.BATCH)


def test_unimodal_takes_the_last_modality_by_default():
    assert build_model(a_study((8, 8), model="unimodal", width=8)).slot == 1
    assert build_model(a_study((8, 8), model="unimodal", width=8, modality="m0")).slot == 0


def test_unimodal_gives_patients_without_the_modality_its_prior():
    model = build_model(a_study((8, 8), model="unimodal", width=8)).eval()
    with torch.no_grad():
        model.prior.copy_(torch.tensor([0.25, -0.5]))
    logits = model.logits(torch.ones(2, 16), torch.tensor([[True, False], [True, True]]))
    assert logits[0].tolist() == [0.25, -0.5]
    assert logits[1].tolist() != [0.25, -0.5]


def test_late_mean_is_the_mean_of_one_modality_predictions():
    model = build_model(a_study((8, 12, 8), model="late-mean", width=8)).eval()
    rows, one = torch.randn(1, 28, generator=torch.Generator().manual_seed(0)), torch.eye(3, dtype=torch.bool)
    each = torch.cat([model.logits(rows, one[slot : slot + 1]) for slot in range(3)])
    for held in ([True, True, True], [True, False, True], [False, True, True]):
        present = torch.tensor([held])
        torch.testing.assert_close(model.logits(rows, present)[0], each[present[0]].mean(dim=0))


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        pytest.param(
            "mmmare",
            {},
            f"[model] name must be one of {', '.join(sorted(MODELS))}, found 'mmmare'",
            id="name",
        ),
        pytest.param(
            "mmare",
            {"widht": 8},
            "[model] of mmare has an unknown key 'widht'; expected one of "
            "clip, conditioning, dropout, embedding_dropout, even, fusion, linear, merge, numeric, order, "
            "width",
            id="unknown option",
        ),
        pytest.param(
            "mmare", {"width": 8.5}, "[model] of mmare width must be a whole number, found 8.5", id="kind"
        ),
        pytest.param(
            "mmare", {"width": True}, "[model] of mmare width must be a whole number, found True", id="bool"
        ),
        pytest.param(
            "mmare",
            {"fusion": "sum"},
            "[model] of mmare fusion must be one of pairwise, mean, found 'sum'",
            id="word",
        ),
        pytest.param(
            "late-mean",
            {"order": "batch"},
            "[model] of late-mean has an unknown key 'order'",
            id="of another",
        ),
        pytest.param(
            "unimodal",
            {"modality": "ct"},
            "[model] of unimodal: modality 'ct' is not one of m0, m1",
            id="slot",
        ),
        *(
            pytest.param(
                model, {"width": width}, f"[model] of {model}: width must be", id=f"{model} width {width}"
            )
            for model in ("late-mean", "mmare", "unimodal")
            for width in (-1, 0, 3)
        ),
        *(
            pytest.param(
                model,
                {"dropout": share},
                f"[model] of {model}: dropout must be",
                id=f"{model} dropout {share}",
            )
            for model in ("late-mean", "mmare", "unimodal")
            for share in (-0.1, 1, 2.5)
        ),
    ],
)
def test_an_invalid_model_is_one_sentence(model, options, sentence):
    study = a_study((8, 8), model=model, **options)
    with pytest.raises(StudyError) as caught:
        build_model(study)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_models_that_are_built_side_by_side_are_the_same():
    """A simulation builds from several threads, whose draws come from one state."""
    study = a_study((8, 8))
    alone = build_model(study).state_dict()
    with ThreadPoolExecutor(4) as pool:
        built = [model.state_dict() for model in pool.map(build_model, [study] * 40)]
    assert all(torch.equal(model[name], value) for model in built for name, value in alone.items())


def test_a_refusal_leaves_torchs_state_alone():
    before = torch.random.get_rng_state()
    with pytest.raises(StudyError):
        build_model(a_study((8, 8), model="unimodal", modality="ct"))
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_largest_seed_builds():
    assert build_model(a_study((8,), seed=2**63 - 1, width=8)).classes == 2
