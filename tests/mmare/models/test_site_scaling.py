"""Scaling by a site's own rows removes its scanner, and ComBat by sums is ComBat of the pooled rows."""

import numpy as np
import pytest
import torch

from mmare.models.adapters import InputScaling
from mmare.models.registry import build_model
from mmare.models.site_scaling import combat, scale_as_site
from mmare.study.choices import Kind, Scaling
from mmare.study.specs import ModalitySpec
from mmare.wire.messages import Moments, Statistics
from server.rounds.scaling import set_scaling
from server.store.journal import Journal
from tests.federations import tiny_study

ROWS = {"ash": 9, "birch": 40, "cedar": 25}
WIDTH = 30


def scanner_rows():
    """Rows ``(n, 30)`` float32 of each site, whose features it moves and stretches."""
    random = np.random.default_rng(5)
    level = random.normal(0, 20, WIDTH)
    return {
        site: (
            level
            + random.normal(1, 2, WIDTH)
            + random.gamma(4, 0.5, WIDTH) * random.normal(0, 3, size=(n, WIDTH))
        ).astype(np.float32)
        for site, n in ROWS.items()
    }


def combat_of_pooled_rows(parts):
    """ComBat as published, without covariates, row by row: Johnson et al. 2007, section 3.2.

    By neuroCombat 0.2.12 these rows are the same within 6e-6.
    """
    batch = np.concatenate([np.full(len(rows), i) for i, rows in enumerate(parts)])
    y = np.concatenate(parts).astype(np.float64)
    design = np.eye(len(parts))[batch]
    fitted = np.linalg.lstsq(design, y, rcond=None)[0]
    grand = (np.bincount(batch) / len(y)) @ fitted
    sigma = np.sqrt(np.mean((y - design @ fitted) ** 2, axis=0))
    z = (y - grand) / sigma
    out = np.empty_like(z)
    for i in range(len(parts)):
        own = z[batch == i]
        n, seen, varied = len(own), own.mean(axis=0), own.var(axis=0, ddof=1)
        tau, m, s2 = seen.var(ddof=1), varied.mean(), varied.var(ddof=1)
        a, b = (2 * s2 + m**2) / s2, (m * s2 + m**3) / s2
        gamma, delta = seen.copy(), varied.copy()
        for _ in range(500):
            gamma = (n * tau * seen + delta * seen.mean()) / (n * tau + delta)
            delta = (b + 0.5 * ((own - gamma) ** 2).sum(axis=0)) / (a + n / 2 - 1)
        out[batch == i] = (own - gamma) / np.sqrt(delta)
    return out, sigma, grand


def sums(modality, rows):
    values = rows.astype(np.float64)
    there = (~np.isnan(values)).sum(axis=0)
    counts = () if (there == len(rows)).all() else tuple(there.tolist())
    total, squares = (tuple(np.nansum(each, axis=0).tolist()) for each in (values, values**2))
    return Moments(modality, len(rows), total, squares, counts)


def study(*scalings):
    return tiny_study(
        modality=[
            {"name": f"m{slot}", "kind": "features", "width": WIDTH, "scaling": scaling}
            for slot, scaling in enumerate(scalings)
        ]
    )


def scaled_at(scaling, rows):
    """What the model of a site reads of its rows; the buffers that arrived are left as they were."""
    here = InputScaling([ModalitySpec("m0", Kind.FEATURES, WIDTH, scaling=scaling.scalings[0])])
    here.load_state_dict(scaling.state_dict())
    part, present = torch.from_numpy(rows), torch.ones(len(rows), 1, dtype=torch.bool)
    scale_as_site(here, [part], present)
    return here([part], present).numpy(), here


def federated(kind, parts, folder):
    """Scaled rows of all sites, by the sums that they tell."""
    asked = study(kind)
    model = build_model(asked)
    told = {site: Statistics(site, (sums("m0", rows),)) for site, rows in parts.items()}
    set_scaling(model, told, asked, Journal(folder / "rounds.jsonl", "run"))
    return model.scaling, np.concatenate([scaled_at(model.scaling, rows)[0] for rows in parts.values()])


def test_combat_by_sums_is_combat_of_the_pooled_rows(tmp_path):
    parts = scanner_rows()
    scaling, found = federated("combat", parts, tmp_path)
    expected, sigma, grand = combat_of_pooled_rows(list(parts.values()))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(scaling.deviation_0.numpy(), sigma, rtol=1e-5)
    np.testing.assert_allclose(scaling.mean_0.numpy(), grand, rtol=1e-5)


@pytest.mark.parametrize("kind", ["site", "combat"])
def test_what_a_scanner_moves_and_stretches_is_gone(tmp_path, kind):
    parts = scanner_rows()

    def level(kind):
        """Mean size of a site's mean z-score of a feature."""
        found = np.split(federated(kind, parts, tmp_path)[1], [9, 49])
        return np.mean([np.abs(rows.mean(axis=0)).mean() for rows in found])

    assert level(kind) < 0.5 * level("zscore")


def test_under_site_another_scanner_at_one_site_changes_nothing():
    rows = scanner_rows()["birch"]
    scaling = InputScaling([ModalitySpec("m0", Kind.FEATURES, WIDTH, scaling=Scaling.SITE)])
    one, here = scaled_at(scaling, rows)
    other, _ = scaled_at(scaling, rows * np.float32(4) - np.float32(8))
    np.testing.assert_allclose(other, one, atol=2e-5)
    np.testing.assert_allclose(here.mean_0.numpy(), rows.mean(axis=0, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(one.std(axis=0, dtype=np.float64), 1, rtol=1e-4)


@pytest.mark.parametrize("kind", ["site", "combat"])
def test_blank_cells_and_absent_rows_have_no_part_in_it(tmp_path, kind):
    parts = scanner_rows()
    parts["birch"][:7, 0] = np.nan
    parts["cedar"][:, 1] = np.nan
    scaling, found = federated(kind, parts, tmp_path)
    assert np.isfinite(found).all()
    rows = torch.from_numpy(np.concatenate([parts["birch"], np.full((3, WIDTH), np.nan, np.float32)]))
    scale_as_site(scaling, [rows], torch.arange(len(rows))[:, None] < 40)
    known = parts["birch"][7:, 0]
    mean = scaling.mean_0[0].item()
    assert mean == pytest.approx(known.mean(), rel=1e-5 if kind == "site" else 0.1)


def test_without_two_rows_a_site_has_the_pooled_ones_or_nothing(tmp_path):
    parts = scanner_rows()
    scaling, _ = federated("combat", parts, tmp_path)
    few = parts["ash"][:1]
    expected = (few - scaling.mean_0.numpy()) / scaling.deviation_0.numpy()
    np.testing.assert_allclose(scaled_at(scaling, few)[0], expected, rtol=1e-4, atol=1e-5)
    alone, here = scaled_at(
        InputScaling([ModalitySpec("m0", Kind.FEATURES, WIDTH, scaling=Scaling.SITE)]), few
    )
    assert not alone.any()
    assert not here.visible(torch.ones(1, 1, dtype=torch.bool)).any()


def test_features_without_spread_and_a_single_one_stay_finite():
    over = torch.tensor([5, 5, 5])
    mean, deviation = combat(
        over,
        torch.tensor([2.0, 3.0, 4.0]).double(),
        torch.tensor([0.0, 8.0, 0.0]).double(),
        torch.tensor([1.0, 1.0, 1.0]).double(),
        torch.tensor([1e-6, 2.0, 1.0]).double(),
    )
    assert mean[0] == 2  # constant at every site: its own level
    assert torch.isfinite(mean).all()
    assert (deviation > 0).all()
    single = combat(*(torch.tensor([each]).double() for each in (5.0, 3.0, 8.0, 1.0, 2.0)))
    assert [each.item() for each in single] == pytest.approx([3.0, 2**0.5])  # no other to shrink towards
