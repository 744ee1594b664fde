"""What exposure weights promise: a modality that lives at one of five sites learns at its own pace."""

import pytest
import torch

from mmare.models.blocks import block_tensors
from mmare.models.registry import build_model
from mmare.wire.messages import Split
from mmare.wire.tensors import trained_tensors
from sites.federation import SiteTables, write_federation
from tests.equivalence.test_central import models_of, site_data
from tests.federations import site_tables, tiny_study

SITES = ("ash", "birch", "cedar", "doum", "elm")
RARE = "ct"


def rare_federation(folder, **options: object):
    """Five sites alike; the modality of the adapter is at the first alone."""
    study = tiny_study(
        model={"width": 24, "dropout": 0.0},
        training={"rounds": 1, "optimizer": "sgd", "weight_decay": 0.0, "noise_probability": 0.0},
        **options,
    )
    tables = []
    for position, name in enumerate(SITES):
        whole = site_tables(name, study, 40, seed=3, missing=0.0)
        features = {key: rows for key, rows in whole.features.items() if position == 0 or key != RARE}
        tables.append(SiteTables(name, whole.manifest, features))
    write_federation(folder, study, tables)
    return study


def step_of(folder, tmp_path, name, study, settings):
    """What one round did to each block: name of block to its change."""
    models = models_of(folder, tmp_path / name, study, settings=settings)
    before, after = build_model(study), models[1]
    blocks = before.blocks()
    return {
        block.name: torch.cat(
            [
                (value - old).flatten()
                for value, old in zip(
                    block_tensors((block,), after).values(),
                    block_tensors((block,), trained_tensors(before)).values(),
                    strict=True,
                )
            ]
        )
        for block in blocks
    }


@pytest.fixture
def prepared(tmp_path):
    folder = tmp_path / "federation"
    return folder, rare_federation(folder)


def share_of_the_rare_site(folder):
    rows = {site: len(data.rows[Split.TRAIN]) for site, data in site_data(folder).items()}
    return rows[SITES[0]] / sum(rows.values())


@pytest.mark.slow
def test_averaging_by_samples_damps_the_step_by_the_share_of_the_site(prepared, tmp_path):
    folder, study = prepared
    plain = step_of(folder, tmp_path, "plain", study, ["federation.strategy=fedavg"])
    ours = step_of(folder, tmp_path, "ours", study, ["federation.strategy=exposure"])
    block, share = f"adapter.{RARE}", share_of_the_rare_site(folder)
    assert share == pytest.approx(0.2, abs=0.02)
    assert ours[block].norm() > 0
    torch.testing.assert_close(plain[block], share * ours[block], rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(plain["shared"], ours["shared"], rtol=1e-3, atol=1e-6)  # all exercise it alike


@pytest.mark.slow
def test_damping_gives_a_block_of_few_samples_a_shorter_step(prepared, tmp_path):
    folder, study = prepared
    free = step_of(folder, tmp_path, "free", study, ["federation.strategy=exposure"])
    exposure = len(site_data(folder)[SITES[0]].rows[Split.TRAIN])
    kappa = 3 * exposure
    damped = step_of(
        folder,
        tmp_path,
        "damped",
        study,
        ["federation.strategy=exposure", f"federation.options.damping={float(kappa)}"],
    )
    block = f"adapter.{RARE}"
    torch.testing.assert_close(damped[block], 0.25 * free[block], rtol=1e-3, atol=1e-7)


def test_columns_of_absent_modalities_learn_from_those_who_lack_them(prepared, tmp_path):
    """The column of the rare modality is exercised by the four sites without it: the first has no say."""
    folder, study = prepared
    plain = step_of(folder, tmp_path, "plain", study, ["federation.strategy=fedavg"])
    ours = step_of(folder, tmp_path, "ours", study, ["federation.strategy=exposure"])
    block, share = f"conditioning.{RARE}", 1 - share_of_the_rare_site(folder)
    torch.testing.assert_close(plain[block], share * ours[block], rtol=1e-3, atol=1e-7)
