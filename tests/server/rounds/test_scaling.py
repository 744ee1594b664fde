import numpy as np
import pytest
import torch

from mmare.errors import Reason
from mmare.models.registry import build_model
from mmare.wire.messages import Moments, Statistics, WireError
from server.rounds.scaling import check_statistics, set_scaling
from server.store.journal import Journal
from tests.federations import WIDTHS, tiny_study
from tests.server.journals import read_journal

STUDY = tiny_study()
SITES = {"ash": 13, "birch": 40, "cedar": 1}


def rows(site, modality):
    random = np.random.default_rng([len(site), WIDTHS[modality]])
    return random.normal(len(site), 3, size=(SITES[site], WIDTHS[modality]))


def moments(site, modality, n=None):
    values = rows(site, modality)[:n]
    return Moments(modality, len(values), tuple(values.sum(0)), tuple(np.square(values).sum(0)))


def statistics(site, **n: int):
    return Statistics(site, tuple(moments(site, modality, n.get(modality)) for modality in WIDTHS))


def test_the_buffers_are_numpys_moments_of_the_pooled_rows(tmp_path):
    model = build_model(STUDY)
    found = {site: statistics(site) for site in reversed(SITES)}
    set_scaling(model, found, STUDY, Journal(tmp_path / "rounds.jsonl", "run"))
    for slot, modality in enumerate(WIDTHS):
        pooled = np.concatenate([rows(site, modality) for site in SITES])
        mean, deviation = (model.scaling.get_buffer(f"{name}_{slot}") for name in ("mean", "deviation"))
        np.testing.assert_allclose(mean.numpy(), pooled.mean(0), rtol=1e-5)
        np.testing.assert_allclose(deviation.numpy(), pooled.std(0), rtol=1e-4)
    assert [(event["modality"], event["n"]) for event in read_journal(tmp_path / "rounds.jsonl")] == [
        (modality, sum(SITES.values())) for modality in WIDTHS
    ]


def test_what_each_site_scales_by_its_own_stays_as_it_is_made(tmp_path):
    study = STUDY.override(["modality.ct.scaling=site"])
    found = {site: statistics(site, ct=0) for site in SITES}
    model = build_model(study)
    set_scaling(model, found, study, Journal(tmp_path / "rounds.jsonl", "run"))
    assert torch.equal(model.scaling.deviation_0, torch.ones(WIDTHS["ct"]))
    assert [event["modality"] for event in read_journal(tmp_path / "rounds.jsonl")] == ["wsi"]
    with pytest.raises(WireError, match="moments of ct, which each site scales by its own"):
        check_statistics(statistics("ash"), study, SITES["ash"])


def test_each_feature_has_the_moments_of_the_cells_that_are_there(tmp_path):
    """One site lacks the first feature in every row, another in some."""
    sums, cells = {}, {}
    for site, blank in (("ash", 13), ("birch", 7), ("cedar", 0)):
        values = rows(site, "ct")
        values[:blank, 0] = np.nan
        counts = tuple((~np.isnan(values)).sum(0).tolist())
        total, squares = np.nansum(values, 0), np.nansum(np.square(values), 0)
        ct = Moments("ct", len(values), tuple(total.tolist()), tuple(squares.tolist()), counts)
        sums[site], cells[site] = Statistics(site, (ct, moments(site, "wsi"))), values
    model = build_model(STUDY)
    set_scaling(model, sums, STUDY, Journal(tmp_path / "rounds.jsonl", "run"))
    pooled = np.concatenate(list(cells.values()))
    np.testing.assert_allclose(model.scaling.mean_0.numpy(), np.nanmean(pooled, 0), rtol=1e-5)
    np.testing.assert_allclose(model.scaling.deviation_0.numpy(), np.nanstd(pooled, 0), rtol=1e-4)


def test_the_order_of_sites_does_not_matter_bit_for_bit(tmp_path):
    models = []
    for order in (SITES, reversed(SITES)):
        models.append(build_model(STUDY))
        found = {site: statistics(site) for site in order}
        set_scaling(models[-1], found, STUDY, Journal(tmp_path / "rounds.jsonl", "run"))
    for name, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[name])


def test_a_modality_that_nobody_tells_of_is_marked(tmp_path):
    model = build_model(STUDY)
    set_scaling(model, {"ash": statistics("ash", wsi=0)}, STUDY, Journal(tmp_path / "rounds.jsonl", "run"))
    assert torch.equal(model.scaling.get_buffer("mean_1"), torch.zeros(WIDTHS["wsi"]))
    assert torch.equal(model.scaling.get_buffer("deviation_1"), torch.zeros(WIDTHS["wsi"]))
    assert model.scaling.visible(torch.ones(1, 2, dtype=torch.bool)).tolist() == [[True, False]]
    last = read_journal(tmp_path / "rounds.jsonl")[-1]
    assert (last["modality"], last["n"], last["sites"]) == ("wsi", 0, [])


def test_a_constant_feature_does_not_divide_by_zero(tmp_path):
    model = build_model(STUDY)
    parts = tuple(Moments(name, 4, (8.0,) * width, (16.0,) * width) for name, width in WIDTHS.items())
    set_scaling(model, {"ash": Statistics("ash", parts)}, STUDY, Journal(tmp_path / "rounds.jsonl", "run"))
    assert model.scaling.get_buffer("deviation_0").min() > 0


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        pytest.param((moments("ash", "wsi"), moments("ash", "ct")), "other modalities", id="order"),
        pytest.param((moments("ash", "ct"),), "other modalities", id="too-few"),
        pytest.param(
            (moments("ash", "ct"), Moments("wsi", 3, (1.0,), (1.0,))),
            "wsi of width 1 and 1, expected 16",
            id="width",
        ),
        pytest.param(
            (moments("ash", "ct"), Moments("wsi", -3, (1.0,) * 16, (1.0,) * 16)), "wsi", id="negative"
        ),
        pytest.param(
            (moments("ash", "ct"), Moments("wsi", 101, (1.0,) * 16, (1.0,) * 16)),
            "over 101 rows, expected 0 to 100",
            id="more-rows-than-it-has",
        ),
        pytest.param(
            (moments("ash", "ct"), Moments("wsi", 2, (9.0,) * 16, (1.0,) * 16)),
            "wsi that no rows can have",
            id="impossible",
        ),
        pytest.param(
            (moments("ash", "ct"), Moments("wsi", 2, (1e200,) * 16, (1e308,) * 16)),
            "wsi that no rows can have",
            id="overflow",
        ),
        pytest.param(
            (moments("ash", "ct"), Moments("wsi", 2, (1.0,) * 16, (1.0,) * 16, (2,) * 15 + (3,))),
            "wsi that no rows can have",
            id="more-cells-than-rows",
        ),
        pytest.param(
            (moments("ash", "ct"), Moments("wsi", 2, (1.0,) * 16, (1.0,) * 16, (0,) * 16)),
            "wsi that no rows can have",
            id="sums-of-no-cell",
        ),
    ],
)
def test_moments_that_are_not_the_studys_are_refused(parts, reason):
    with pytest.raises(WireError, match=reason, check=lambda error: error.code is Reason.MOMENTS):
        check_statistics(Statistics("ash", parts), STUDY, samples=50)


def test_older_moments_of_a_site_that_lost_patients_pass():
    parts = (moments("ash", "ct"), moments("ash", "wsi", n=51))
    check_statistics(Statistics("ash", parts), STUDY, samples=50)


def test_moments_that_are_the_studys_pass():
    check_statistics(statistics("ash"), STUDY, samples=50)
