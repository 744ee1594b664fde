"""Scaling moments are of the cells that are there, and tell of no small group."""

import numpy as np
import pytest
import torch

from client.data.site_table import SiteTable
from client.training.cohort import moments_of
from mmare.models.adapters import pooled_moments
from mmare.wire.messages import Split
from tests.federations import tiny_data, tiny_study

LIMIT = 5
STUDY = tiny_study(privacy={"min_count": LIMIT})


def with_blanks(patients, *blank):
    """A site's data in which the first train rows that have ct lack some of its features; those rows' ct."""
    data = tiny_data(STUDY, patients)
    rows = data.rows[Split.TRAIN][data.present[data.rows[Split.TRAIN], 0]]
    for feature, count in enumerate(blank):
        data.embedding[0][rows[:count], feature] = torch.nan
    return data, data.embedding[0][rows].double().numpy()


def of_ct(data, limit=LIMIT):
    return moments_of(STUDY, data, limit, SiteTable(data))[0]


@pytest.mark.parametrize("limit", [0, LIMIT])
def test_each_feature_is_summed_over_those_who_have_it(limit):
    data, values = with_blanks(60, 0, 8, LIMIT)
    found = of_ct(data, limit)
    assert found.n == len(values)
    assert found.counts == tuple((~np.isnan(values)).sum(axis=0))
    np.testing.assert_allclose(found.total, np.nansum(values, axis=0))
    mean, deviation = pooled_moments(found.over, found.total, found.squares)
    np.testing.assert_allclose(mean, np.nanmean(values, axis=0), rtol=1e-6)
    np.testing.assert_allclose(deviation, np.nanstd(values, axis=0), rtol=1e-6)


def test_of_what_a_site_scales_by_its_own_nothing_is_told():
    study = STUDY.override(["modality.ct.scaling=site", "modality.wsi.scaling=combat"])
    data = tiny_data(study, 60)
    table = SiteTable(data)
    ct, wsi = moments_of(study, data, LIMIT, table)
    assert (ct.n, set(ct.total), set(ct.squares)) == (0, {0.0}, {0.0})
    assert wsi == moments_of(STUDY, data, LIMIT, SiteTable(data))[1]


def test_how_few_lack_a_feature_is_not_told():
    data, values = with_blanks(60, 1, LIMIT - 1)
    found = of_ct(data)
    assert found.counts == ()  # as if all had it
    mean, deviation = pooled_moments(found.over, found.total, found.squares)
    np.testing.assert_allclose(mean, np.nanmean(values, axis=0), rtol=1e-6)
    np.testing.assert_allclose(deviation, np.nanstd(values, axis=0), rtol=1e-6)


@pytest.mark.parametrize("having", [0, 1, LIMIT - 1])
def test_a_feature_that_few_have_is_left_out(having):
    rows = len(with_blanks(60)[1])
    data, values = with_blanks(60, rows - having, 0)
    found = of_ct(data)
    assert found.counts == (0, *[rows] * (values.shape[1] - 1))
    assert found.total[0] == found.squares[0] == 0


def test_rows_without_blanks_give_what_they_gave():
    data, values = with_blanks(60)
    found = of_ct(data)
    assert found.counts == ()
    rows = torch.from_numpy(values)
    assert (found.total, found.squares) == (tuple(rows.sum(0).tolist()), tuple(rows.square().sum(0).tolist()))
