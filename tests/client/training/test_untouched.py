"""What no sample of a site exercised stays what the server sent, moments too, whatever the optimiser does."""

from dataclasses import replace

import pytest
import torch

from client.training.kept.kept_parts import LOCAL
from client.training.kept.state import StateStore
from client.training.model_pool import ModelPool
from client.training.optimizers import PhaseOptimizers
from client.training.service import SiteService
from client.training.trainer import train_round
from mmare.errors import SiteCode
from mmare.models.blocks import block_tensors
from mmare.models.phases import phase_at
from mmare.models.registry import MODELS, build_model
from mmare.randomness import generator_for
from mmare.study.specs import ModelSpec
from mmare.wire.messages import Request, Split, Task, Update, decode, encode
from mmare.wire.sharing import local_parameters
from mmare.wire.tensors import global_tensors, layout_of, pack, trained_tensors, unpack
from tests.federations import tiny_data, tiny_study

COLUMNS = ("conditioning.gamma.weight", "conditioning.beta.weight")
DRIM = ModelSpec(
    "drim", {"width": 16, "hidden": 16, "heads": 2, "head_width": 8, "feedforward": 16, "dropout": 0.0}
)
FULL, NO_CT, MIXED = (True, True), (False, True), None


def study_of(federation=None, **training: object):
    wanted = {"rounds": 9, "learning_rate": 0.02, "weight_decay": 0.1, "noise_probability": 0.0, **training}
    return tiny_study(training=wanted, federation={"min_sites": 1, **(federation or {})})


def data_of(study, having):
    """Every patient has the same modalities, or each his own."""
    data = tiny_data(study, missing=0.4)
    if having is not None:
        data.present[:] = torch.tensor(having)
    return data


class Site:
    """A site whose data can change from round to round, with one folder for what it keeps."""

    def __init__(self, folder, study):
        self.study, self.store = study, StateStore(folder)
        self.model = build_model(study)
        local = local_parameters(self.model, study)
        self.sent = global_tensors(self.model, without=local)
        self.pool = ModelPool(torch.device("cpu"))

    def train(self, number, having, **fields: object):
        """The update, its tensors, the site's model after training, and what it kept."""
        study = self.study
        service = SiteService(
            "ash",
            lambda _: data_of(study, having),
            self.store,
            self.pool,
            0,
            frozenset({study.hash}),
        )
        asked = Request(
            Task.TRAIN,
            "run",
            study.to_dict(),
            round=number,
            train=True,
            layout=layout_of(self.sent).fingerprint,
            **{"state_round": number - 1 or None, **fields},
        )
        header, payload = service(encode(asked), pack(self.sent).numpy().tobytes())
        update = decode(Update, header)
        with self.pool.borrow(study) as model:
            after = {name: value.clone() for name, value in trained_tensors(model).items()}
            blocks = [block for block in model.blocks() if block.name in update.blocks]
        tensors = block_tensors(blocks, after)
        kept_here = local_parameters(self.model, study)
        names = {name: value for name, value in tensors.items() if name.split("[")[0] not in kept_here}
        if study.federation.wire == "float32":
            assert update.layout == layout_of(names).fingerprint
            arrived = unpack(torch.frombuffer(bytearray(payload), dtype=torch.uint8), layout_of(names))
            assert all(torch.equal(value, names[name]) for name, value in arrived.items())
        return update, after, self.store.load("run", number)


def moment(kept, name, kind="exp_avg"):
    return kept[f"train/0/{name}/{kind}"]


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_columns_stay_over_rounds_and_through_an_exposure_in_between(tmp_path, optimizer, epochs):
    study = study_of(optimizer=optimizer, local_epochs=epochs)
    site = Site(tmp_path, study)
    zeros = torch.zeros(16)
    found = {}
    for number, having in enumerate([FULL, FULL, NO_CT, FULL, NO_CT], start=1):
        update, after, kept = site.train(number, having)
        found[number] = kept
        exposed = having is NO_CT
        assert (update.exposures["conditioning.ct"] > 0) == exposed
        assert ("conditioning.ct" in update.blocks) == exposed
        assert "conditioning.wsi" not in update.blocks
        for name in COLUMNS:
            assert torch.equal(after[name][:, 1], site.sent[name][:, 1])
            assert torch.equal(after[name][:, 0], site.sent[name][:, 0]) != exposed
            for kind in ("exp_avg", "exp_avg_sq"):
                assert torch.equal(moment(kept, name, kind)[:, 1], zeros)
        assert not torch.equal(after["head.out.weight"], site.sent["head.out.weight"])
    for name in COLUMNS:
        for kind in ("exp_avg", "exp_avg_sq"):
            columns = {number: moment(kept, name, kind)[:, 0] for number, kept in found.items()}
            assert torch.equal(columns[1], zeros)
            assert torch.equal(columns[2], zeros)
            assert columns[3].abs().max() > 0
            assert torch.equal(columns[4], columns[3])  # bitwise through a round without exposure
            assert not torch.equal(columns[5], columns[4])  # and gone on from in the next with one


def test_whole_parameters_stay_and_so_does_their_count_of_steps(tmp_path):
    """The adapter of ct: three rounds with it, without, with it again."""
    site = Site(tmp_path, study_of())
    names = ("adapters.adapters.0.weight", "adapters.adapters.0.bias")
    found = []
    for number, having in enumerate([NO_CT, FULL, NO_CT, FULL], start=1):
        update, after, kept = site.train(number, having)
        exposed = having is FULL
        assert ("adapter.ct" in update.blocks) == exposed
        for name in names:
            assert torch.equal(after[name], site.sent[name]) != exposed
        found.append({key: value for key, value in kept.items() if key.split("/")[2] in names})
    first, second, third, fourth = found
    assert first == {}  # never exercised: no moments at all
    assert len(second) == 6
    assert all(torch.equal(third[key], second[key]) for key in second)
    assert third.keys() == second.keys()
    steps = [state["train/0/adapters.adapters.0.weight/step"].item() for state in (second, third, fourth)]
    assert steps == [3, 3, 6]  # 20 rows in batches of eight


def test_drift_moves_what_nobody_exercised(tmp_path):
    """The same rounds as above in plain averaging's way: the test above is of something."""
    site = Site(tmp_path, study_of({"untouched": "drift"}))
    update, after, kept = site.train(1, FULL)
    assert update.exposures["conditioning.ct"] == 0
    assert "conditioning.ct" in update.blocks
    for name in COLUMNS:
        assert bool((after[name] != site.sent[name]).all())
        assert bool((moment(kept, name) != 0).all())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize(
    "federation",
    [
        pytest.param({}, id="plain"),
        pytest.param({"strategy": "fedprox", "options": {"mu": 1.0}}, id="fedprox"),
        pytest.param({"wire": "float16"}, id="float16"),
        pytest.param({"local": ["norms", "head"]}, id="local"),
    ],
)
def test_the_model_differs_from_what_was_sent_in_exposed_blocks_only(tmp_path, optimizer, federation):
    study = study_of(federation, optimizer=optimizer, clip_norm=1.0)
    site = Site(tmp_path, study)
    start = trained_tensors(site.model)
    for number, having in enumerate([FULL, NO_CT, MIXED], start=1):
        before = {**start, **_local(site.store.load("run", number - 1))}
        update, after, _ = site.train(number, having)
        for block in site.model.blocks():
            now, then = block_tensors((block,), after), block_tensors((block,), before)
            stayed = all(torch.equal(now[name], then[name]) for name in now)
            assert stayed == (update.exposures[block.name] == 0), block.name


def _local(kept):
    return {name.removeprefix(LOCAL): v for name, v in (kept or {}).items() if name.startswith(LOCAL)}


def test_a_local_part_goes_on_from_what_the_site_kept(tmp_path):
    study = study_of({"local": ["head"]}, optimizer="sgd", optimizer_state="reset")
    site = Site(tmp_path, study)
    _, first, kept = site.train(1, FULL)
    assert torch.equal(kept[f"{LOCAL}head.out.weight"], first["head.out.weight"])
    assert not any(name.startswith("train/") for name in kept)
    _, second, _ = site.train(2, FULL, state_round=1)
    _, fresh, _ = site.train(2, FULL, state_round=None)
    assert not torch.equal(fresh["head.out.weight"], second["head.out.weight"])


def test_an_unexposed_local_part_stays_what_the_site_kept(tmp_path):
    """Not what the server has of it: the server's copy never was trained."""
    site = Site(tmp_path, study_of({"local": ["adapters"]}))
    key = "adapters.adapters.0.weight"
    _, first, _ = site.train(1, FULL)
    update, second, kept = site.train(2, NO_CT)
    assert update.exposures["adapter.ct"] == 0
    assert torch.equal(second[key], first[key])
    assert torch.equal(kept[f"{LOCAL}{key}"], first[key])
    assert not torch.equal(first[key], trained_tensors(site.model)[key])


def test_a_kept_state_of_other_local_parts_is_a_code(tmp_path):
    study = study_of({"local": ["head"]})
    site = Site(tmp_path, study)
    site.store.save("run", 1, {f"{LOCAL}head.of.another": torch.zeros(1)}, None)
    asked = Request(
        Task.TRAIN,
        "run",
        study.to_dict(),
        round=2,
        train=True,
        state_round=1,
        layout=layout_of(site.sent).fingerprint,
    )
    service = SiteService("ash", tiny_data, site.store, site.pool, 0, frozenset({study.hash}))
    assert SiteCode.STATE in service(encode(asked), pack(site.sent).numpy().tobytes())[0]


def test_a_discriminator_without_pairs_rests(tmp_path):
    study = replace(study_of(batch_size=40), model=DRIM)
    site = Site(tmp_path, study)
    update, after, kept = site.train(1, NO_CT)
    rests = {"encoder.ct", "discriminator.ct"}
    assert {name for name, count in update.exposures.items() if count == 0} == rests
    assert rests.isdisjoint(update.blocks)
    for block in site.model.blocks():
        for name in block.parameters:
            assert torch.equal(after[name], site.sent[name]) == (block.name in rests), name
    assert not any("discriminators.0." in key for key in kept)
    assert any(key.startswith("train/1/discriminators.1.") for key in kept)


def test_the_final_message_leaves_local_parts_at_the_site(tmp_path):
    study = study_of({"local": ["head"]})
    site = Site(tmp_path, study)
    site.train(1, FULL)
    asked = Request(
        Task.EVALUATE,
        "run",
        study.to_dict(),
        1,
        (Split.TEST,),
        state_round=1,
        layout=layout_of(site.sent).fingerprint,
        final=True,
    )
    service = SiteService("ash", tiny_data, site.store, site.pool, approved=frozenset({study.hash}))
    decode(Update, service(encode(asked), pack(site.sent).numpy().tobytes())[0])
    assert site.store.held("run") == (1,)


SMALL = {
    "adacomed": {"hidden": 16, "in_dim": 16, "heads": 2, "small_rounds": 2},
    "drim": dict(DRIM.options),
    "hypermm-embedding": {"width": 16, "phase_rounds": 2},
    "late-mean": {"width": 16},
    "mmare": {"width": 16},
    "unilmmv": {"width": 16, "heads": 2, "depth": 1},
    "unimodal": {"width": 16, "modality": "ct"},
}


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"hypermm"}))  # hypermm takes maps only
@pytest.mark.parametrize(
    "training",
    [
        pytest.param({}, id="plain"),
        pytest.param({"modality_dropout": 0.5}, id="hiding"),
        pytest.param({"modality_dropout": 0.5, "distillation": 1.0}, id="distilling"),
    ],
)
@pytest.mark.parametrize("having", [FULL, NO_CT, MIXED], ids=["full", "no-ct", "mixed"])
def test_a_round_exposed_what_got_a_gradient_in_one_of_its_steps(monkeypatch, name, training, having):
    """Told after the round from who had what; seen here in every step from autograd."""
    study = replace(study_of(**training), model=ModelSpec(name, SMALL.get(name, {})))
    seen = set()

    def look(_optimizers, objective):
        for block in model.blocks():
            parts = [model.get_parameter(key).grad for key in block.parameters]
            own = [
                part if block.column is None else part[:, block.column] for part in parts if part is not None
            ]
            if block.name in objective.blocks and any(bool(part.any()) for part in own):
                seen.add(block.name)

    monkeypatch.setattr(PhaseOptimizers, "clip", look)
    data = data_of(study, having)
    for number in (1, 3):
        model = build_model(study)
        optimizers = PhaseOptimizers(model, phase_at(model.phases(), number), study.training)
        seen.clear()
        trained = train_round(
            model, optimizers, data, data.rows[Split.TRAIN], study, generator_for(0, "ash", number)
        )
        assert seen == {block for block, count in trained.exposures.items() if count > 0}
        most = {block.name: block.most for block in model.blocks()}
        assert all(count <= most[block] * trained.samples for block, count in trained.exposures.items())
