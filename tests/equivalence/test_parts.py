"""Runs of which only a part travels: local parts, phases, adversaries; killed anywhere they end the same."""

import json
import shutil
from dataclasses import dataclass, field, replace

import pytest
import torch

from client.data.dataset import load_data
from client.training.evaluate import evaluate
from client.training.kept.kept_parts import LOCAL
from client.training.kept.state import StateStore
from client.training.trainer import draw_rows
from mmare.errors import SiteCode, StudyError
from mmare.metrics.state import MetricState
from mmare.models.registry import build_model
from mmare.randomness import generator_for
from mmare.study.specs import ModelSpec
from mmare.wire.messages import Evaluation, Request, Split, Task, Update, decode
from mmare.wire.sharing import local_parameters
from mmare.wire.tensors import copy_tensors, global_tensors, layout_of, trained_tensors, unpack
from server.rounds.global_model import Averaging
from server.store.checkpoint import read_checkpoint
from sites.federation import SiteTables, site_folders, write_federation
from tests.federations import (
    SITES,
    KilledError,
    ModelsByRound,
    all_events,
    claiming,
    events,
    outcome,
    run_nodes,
    site_tables,
    tiny_federation,
    tiny_study,
    while_training,
    with_update,
)
from tests.properties import first_quick

SMALL_HYPERMM = {"name": "hypermm-embedding", "width": 16, "phase_rounds": 2}
SMALL_DRIM = {
    "name": "drim",
    "width": 16,
    "hidden": 16,
    "heads": 2,
    "head_width": 8,
    "feedforward": 16,
}
SMALL_ADACOMED = {
    "name": "adacomed",
    "hidden": 16,
    "in_dim": 16,
    "heads": 2,
    "small_rounds": 1,
    "scheme": "gaussian",
}
LOCAL_PARTS = {"local": ["norms", "head", "adapters"], "min_sites": 2}
ADAPTIVE = {
    "strategy": "fedadam",
    "options": {"weighting": "exposure", "gap_step": 0.1},
    "wire": "float16",
    "local": ["norms"],
}


@dataclass
class Told:
    """Stands before every site and keeps what is asked and answered."""

    asked: list[tuple[str, Request]] = field(default_factory=list)
    answered: list[tuple[str, Update, int]] = field(default_factory=list)

    def faults(self, sites=SITES):
        return {index: self._at(site) for index, site in enumerate(sites)}

    def _at(self, name):
        def listening(site, header, payload):
            request = decode(Request, header)
            answer, tensors = site(header, payload)
            if request.task in {Task.TRAIN, Task.EVALUATE}:
                self.asked.append((name, request))
                self.answered.append((name, decode(Update, answer), len(tensors)))
            return answer, tensors

        return listening

    def trained(self):
        return [(site, update) for site, update, _ in self.answered if update.train_loss is not None]


CASES = {  # study, and of how many events one is died at
    "local": ({"federation": LOCAL_PARTS, "training": {"rounds": 3}}, 1),
    "phases-local": (
        {
            "model": SMALL_HYPERMM,
            "federation": {"local": ["adapters"]},
            "training": {"rounds": 4, "weight_decay": 0.1},
        },
        1,
    ),
    "fedadam-plateau-gap": ({"federation": ADAPTIVE, "training": {"rounds": 3, "schedule": "plateau"}}, 3),
    "drim": ({"model": SMALL_DRIM, "training": {"rounds": 2, "schedule": "cosine"}}, 3),
    "adacomed": ({"model": SMALL_ADACOMED, "training": {"rounds": 3}}, 3),
}


def study_with(model=None, **sections: object):
    """As `tiny_study`; another model has none of the options of MMARE's."""
    study = tiny_study(**sections)
    if model is None:
        return study
    options = {key: value for key, value in model.items() if key != "name"}
    return replace(study, model=ModelSpec(model["name"], options))


def key_of(event):
    return event["event"], event.get("round"), event.get("phase"), event.get("site")


def killer(wanted):
    """Dies at the first event of a key."""

    def listen(event):
        if key_of(event) == wanted:
            raise KilledError

    return listen


def moments_of(out):
    """Events to die at, one after the other: of sites' answers in a round the first and the last."""
    skipped = {("site_update", "birch"), ("roll_call", "birch"), ("roll_call", "ash")}
    return [key_of(event) for event in all_events(out) if (event["event"], event.get("site")) not in skipped]


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(CASES))
def test_a_run_killed_at_one_event_after_the_other_ends_the_same(tmp_path, case):
    """Each attempt gets further than the one before and dies there."""
    sections, each = CASES[case]
    federation = tiny_federation(tmp_path / "fed", study_with(**sections))
    run_nodes(federation, tmp_path / "straight")
    wanted = outcome(tmp_path / "straight")
    assert wanted["left_out"] == []
    out = tmp_path / "run"
    moments = moments_of(tmp_path / "straight")
    assert len(moments) > 20
    for key in moments[::each]:
        with pytest.raises(KilledError):
            run_nodes(federation, out, listeners=(killer(key),))
    run_nodes(federation, out)
    assert outcome(out) == wanted
    assert events(out, "optimizer_state_lost") == []


# Local parts


@pytest.fixture(scope="module")
def local_run(tmp_path_factory):
    """A run with local norms, head and adapters whose best round is not its last."""
    folder = tmp_path_factory.mktemp("local")
    study = tiny_study(federation=LOCAL_PARTS, training={"rounds": 9, "patience": 2, "learning_rate": 0.03})
    federation = tiny_federation(folder / "fed", study)
    told = Told()
    result = run_nodes(federation, folder / "run", faults=told.faults())
    assert result["best_round"] < result["rounds_run"]
    return federation, study, folder / "run", result, told


def test_the_test_is_with_each_sites_own_part_of_the_best_round(local_run):
    """Put together from the checkpoint and the sites' disks, far from the federation."""
    federation, study, out, result, _ = local_run
    best = result["best_round"]
    path = out / "checkpoints" / f"best-{best:06d}.safetensors"
    model = build_model(study)
    local = local_parameters(model, study)
    sent = global_tensors(model, without=local)
    copy_tensors(sent, unpack(read_checkpoint(path)[0]["model"], layout_of(sent)))
    for site in site_folders(federation):
        store = StateStore(site.cache)
        (run,) = (site.cache / "runs").iterdir()
        found = []
        for number in (best, result["rounds_run"]):
            kept = store.load(run.name, number)
            own = {name.removeprefix(LOCAL): v for name, v in kept.items() if name.startswith(LOCAL)}
            assert set(own) == local
            copy_tensors({name: trained_tensors(model)[name] for name in local}, own)
            state = evaluate(model, load_data(site, study), Split.TEST, 0, patterns=False).state
            found.append(MetricState.from_dict(state, 2).compute(None)["log_loss"])
        assert result["metrics"]["test"]["sites"][site.id]["log_loss"] == pytest.approx(found[0], rel=1e-9)
        assert found[0] != found[1]  # of the last round it would be another


def test_selection_is_of_what_is_tested(local_run):
    _, _, out, result, _ = local_run
    by_round = {event["round"]: event["metrics"]["pooled"] for event in events(out, "validated")}
    pooled = result["metrics"]["validation"]["pooled"]
    of_best = by_round[result["best_round"]]
    assert {key: pooled[key] for key in of_best} == of_best


def test_local_parts_never_travel(local_run):
    _, study, _, result, told = local_run
    model = build_model(study)
    local = local_parameters(model, study)
    down = layout_of(global_tensors(model, without=local)).fingerprint
    assert {request.layout for _, request in told.asked} == {down}
    whole = sum(value.numel() for value in model.parameters())
    stay = sum(trained_tensors(model)[name].numel() for name in local)
    assert result["parameters"] == {**result["parameters"], "trainable": whole, "federated": whole - stay}
    assert stay > 0
    for _, update in told.trained():
        assert not any(block.startswith("adapter") for block in update.blocks)


def test_local_parts_differ_between_sites_and_what_is_federated_does_not(local_run):
    federation, study, _, result, _ = local_run
    heads = []
    for site in site_folders(federation):
        (run,) = (site.cache / "runs").iterdir()
        kept = StateStore(site.cache).load(run.name, result["best_round"])
        heads.append(kept[f"{LOCAL}head.out.weight"])
    assert not torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], trained_tensors(build_model(study))["head.out.weight"])


@pytest.mark.parametrize(
    ("sections", "mode", "sentence"),
    [
        pytest.param(
            {"model": {"name": "late-mean"}, "federation": {"local": ["head", "adapters"]}},
            "federated",
            r"local keeps all of late-mean at the sites",
            id="nothing-left",
        ),
        pytest.param(
            {
                "modality": [{"name": "ct", "kind": "features", "width": 16}],
                "federation": {"local": ["adapters"]},
            },
            "federated",
            r"local names 'adapters', of which mmare has none",
            id="no-such-part",
        ),
        pytest.param(
            {"federation": {"local": ["head"]}}, "centralised", r"mode centralised", id="centralised"
        ),
        pytest.param({"federation": {"local": ["head"]}}, "local", r"mode local", id="local"),
        pytest.param(
            {"model": {**SMALL_HYPERMM, "phase_rounds": 4}},
            "federated",
            r"rounds must be more than the 4 that hypermm-embedding",
            id="rounds",
        ),
    ],
)
def test_what_cannot_be_federated_is_refused_before_anything_is_written(tmp_path, sections, mode, sentence):
    federation = tiny_federation(tmp_path / "fed", tiny_study(**sections))
    with pytest.raises(StudyError, match=sentence):
        run_nodes(federation, tmp_path / "run", mode=mode)
    assert not (tmp_path / "run").exists()


def kept_states(federation, site):
    (folder,) = (folder for folder in site_folders(federation) if folder.id == site)
    return sorted((folder.cache / "runs").glob("*/*.safetensors"))


def killed_at(federation, out, *key: object):
    with pytest.raises(KilledError):
        run_nodes(federation, out, listeners=(killer((*key, None, None)),))


@pytest.mark.slow
def test_a_site_that_lost_its_newest_local_part_makes_the_run_step_back(tmp_path):
    federation = tiny_federation(tmp_path / "fed", tiny_study(federation=LOCAL_PARTS, training={"rounds": 3}))
    run_nodes(federation, tmp_path / "straight")
    for site in site_folders(federation):
        shutil.rmtree(site.cache / "runs")
    killed_at(federation, tmp_path / "run", "checkpoint", 3)
    kept_states(federation, "birch")[-1].unlink()
    run_nodes(federation, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")
    assert [event["round"] for event in events(tmp_path / "run", "resumed")] == [2]


@pytest.mark.slow
def test_a_site_that_lost_its_local_part_of_the_best_round_is_left_out_of_the_test_by_name(tmp_path):
    federation = tiny_federation(tmp_path / "fed", tiny_study(federation=LOCAL_PARTS, training={"rounds": 3}))
    killed_at(federation, tmp_path / "run", "validated", 3)  # by the evaluation after the last round

    def lose(event):
        if event["event"] == "checkpoint":
            for path in kept_states(federation, "birch"):
                path.unlink()

    result = run_nodes(federation, tmp_path / "run", listeners=(lose,))
    best = result["best_round"]
    reason = f"refused: S204, {SiteCode.STATE.meaning} (at the test)"
    assert result["left_out"] == [{"site": "birch", "round": best, "reason": reason, "code": "S204"}]
    assert sorted(result["metrics"]["test"]["sites"]) == ["ash", "cedar"]


@pytest.mark.slow
def test_a_site_whose_updates_are_refused_goes_on_from_the_local_part_that_counts(tmp_path):
    """What it trained in refused rounds is not what it is evaluated with."""
    study = tiny_study(federation=LOCAL_PARTS, training={"rounds": 6, "learning_rate": 0.03})
    federation = tiny_federation(tmp_path / "fed", study)
    told = Told()
    faults = {**told.faults(), 1: while_training(cut_after(told.faults()[1]), 2, 3, 4)}
    result = run_nodes(federation, tmp_path / "run", faults=faults)
    assert [(entry["site"], entry["round"]) for entry in result["left_out"]] == [
        ("birch", 2),
        ("birch", 3),
        ("birch", 4),
    ]
    counted = {
        request.round: request.state_round
        for site, request in told.asked
        if request.train and site == "birch"
    }
    assert counted == {2: 1, 3: 1, 4: 1}
    assert sorted(result["metrics"]["test"]["sites"]) == sorted(SITES)


def cut_after(fault):
    def cut(site, header, payload):
        answer, tensors = fault(site, header, payload)
        return answer, tensors[:-8]

    return cut


# Phases


@pytest.fixture(scope="module")
def phased_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phases")
    study = tiny_study(model=SMALL_HYPERMM, training={"rounds": 5, "weight_decay": 0.1})
    federation = tiny_federation(folder / "fed", study)
    told, models = Told(), ModelsByRound(folder / "run", study, {})
    run_nodes(federation, folder / "run", faults=told.faults(), listeners=(models,))
    return study, folder / "run", told, models.models


def test_only_blocks_of_the_rounds_phase_travel(phased_run):
    study, _, told, _ = phased_run
    universal, fusion = build_model(study).phases()
    for _, update in told.trained():
        phase = universal if update.round <= 2 else fusion
        assert set(update.exposures) == phase.blocks
        assert set(update.blocks) == {name for name, count in update.exposures.items() if count}
    assert {update.blocks for _, update in told.trained() if update.round > 2} == {("rho",)}


def test_what_a_phase_freezes_stays_bitwise(phased_run):
    study, _, _, models = phased_run
    model = build_model(study)
    rho = {key for key, _ in model.named_parameters() if key.startswith("head.")}
    start = global_tensors(model)
    assert sorted(models) == [1, 2, 3, 4, 5]
    for key, value in trained_tensors(model).items():
        if key in rho:
            assert torch.equal(models[1][key], value)
            assert torch.equal(models[2][key], value)
            assert not torch.equal(models[3][key], value)
        else:
            assert all(torch.equal(models[number][key], models[2][key]) for number in (3, 4, 5))
    spare = [key for key in start if key.startswith("hypernetwork.rows.") and int(key[18:]) >= 2]
    assert len(spare) == 18
    assert all(torch.equal(models[5][key], start[key]) for key in spare)  # whatever the weight decay


def test_only_the_last_phase_is_selected_from_and_validated(phased_run):
    _, out, told, _ = phased_run
    assert [event["round"] for event in events(out, "validated")] == [3, 4, 5]
    assert json.loads((out / "result.json").read_text())["best_round"] >= 3
    assert {bool(request.splits) for _, request in told.asked if request.round <= 3 and request.train} == {
        False
    }


@pytest.mark.slow
def test_patience_counts_the_last_phases_rounds_only(tmp_path):
    """With a step size of nothing no round is better than the first that can be selected."""
    study = tiny_study(
        model={**SMALL_HYPERMM, "phase_rounds": 4},
        training={"rounds": 30, "patience": 2, "learning_rate": 1e-12},
    )
    federation = tiny_federation(tmp_path / "fed", study)
    result = run_nodes(federation, tmp_path / "run")
    assert result["best_round"] == 5
    assert result["rounds_run"] == 7


@pytest.mark.slow
def test_a_phase_whose_only_block_is_local_goes_on_without_sending_anything(tmp_path):
    study = tiny_study(
        model={**SMALL_HYPERMM, "phase_rounds": 1}, training={"rounds": 3}, federation={"local": ["head"]}
    )
    federation = tiny_federation(tmp_path / "fed", study)
    told = Told()
    result = run_nodes(federation, tmp_path / "run", faults=told.faults())
    assert result["left_out"] == []
    sent = [(update.round, update.blocks, size) for _, update, size in told.answered if update.exposures]
    assert {(blocks, size) for number, blocks, size in sent if number > 1} == {((), 0)}
    assert all(size > 0 for number, _, size in sent if number == 1)


# Modalities that a site lacks


def lacking_federation(folder, study, site="birch", slot=0):
    """One site has no patient with a modality."""
    tables = []
    for index, name in enumerate(SITES):
        table = site_tables(name, study, 40 + 8 * index, 3, 0.3)
        if name == site:
            lacked = study.modalities[slot].name
            other = study.modalities[1 - slot].name
            everybody = set(table.manifest["patient_id"])
            filled = site_tables(name, study, 40 + 8 * index, 3, 0.0).features[other]
            assert set(filled) == everybody
            table = SiteTables(name, table.manifest, {lacked: {}, other: filled})
        tables.append(table)
    write_federation(folder, study, tables)
    return folder


@pytest.fixture(scope="module")
def lacking_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lacking")
    study = tiny_study(federation={"strategy": "exposure"}, training={"weight_decay": 0.1})
    federation = lacking_federation(folder / "fed", study)
    told, models = Told(), ModelsByRound(folder / "run", study, {})
    result = run_nodes(federation, folder / "run", faults=told.faults(), listeners=(models,))
    assert result["left_out"] == []
    return study, told, models.models


def test_a_site_without_a_modality_never_sends_its_adapter(lacking_run):
    study, told, _ = lacking_run
    by_site = {site: [update for other, update in told.trained() if other == site] for site in SITES}
    assert all(len(updates) == study.training.rounds for updates in by_site.values())
    for site, updates in by_site.items():
        sends = {("adapter.ct" in update.blocks) for update in updates}
        assert sends == {site != "birch"}
    for update in by_site["birch"]:
        assert update.exposures["adapter.ct"] == 0
        assert update.exposures["merge"] == 0
        assert update.exposures["conditioning.wsi"] == 0
        assert set(update.blocks) == {"conditioning.ct", "shared"}


@pytest.mark.slow
def test_who_lacks_a_modality_has_no_say_in_its_adapter(tmp_path):
    """By exposure the adapter of ct is that of a run in which this site trains nothing at all."""
    study = tiny_study(federation={"strategy": "exposure"}, training={"rounds": 1})
    found = []
    for name, faults in (("all", {}), ("without", {1: while_training(raises)})):
        federation = lacking_federation(tmp_path / f"fed-{name}", study)
        models = ModelsByRound(tmp_path / name, study, {})
        run_nodes(federation, tmp_path / name, faults=faults, listeners=(models,))
        found.append(models.models[1])
    for key in found[0]:
        if key.startswith(("adapters.", "fusion.", "scaling.")):
            assert torch.equal(found[0][key], found[1][key]), key
    for key in ("conditioning.gamma.weight", "conditioning.beta.weight"):
        assert torch.equal(found[0][key][:, 1], found[1][key][:, 1])
        assert not torch.equal(found[0][key][:, 0], found[1][key][:, 0])


def raises(_site, _header, _payload):
    raise ValueError


# One site whose patients have everything: half of conditioning is exercised by nobody


@pytest.mark.parametrize("untouched", ["stay", "drift"])
@pytest.mark.parametrize("optimizer", first_quick("adamw", "adam", "sgd"))
def test_one_site_is_a_plain_loop_that_steps_what_was_exercised(tmp_path, optimizer, untouched):
    """With ``drift`` it steps everything: weight decay and moments act on what nobody exercised."""
    settings = {"optimizer": optimizer, "learning_rate": 0.02, "weight_decay": 0.1, "noise_probability": 0.0}
    study = tiny_study(
        training={"rounds": 3, **settings},
        federation={"min_sites": 1, "untouched": untouched},
        model={"dropout": 0.0, "order": "fixed"},
    )
    federation = tiny_federation(tmp_path / "fed", study, sites=("ash",), missing=0.0)
    kept = ModelsByRound(tmp_path / "run", study, {})
    run_nodes(federation, tmp_path / "run", listeners=(kept,))
    run_nodes(federation, tmp_path / "centralised", mode="centralised")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "centralised")

    (site,) = site_folders(federation)
    data = load_data(site, study)
    rows = data.rows[Split.TRAIN]
    model = build_model(study)
    start = {key: value.detach().clone() for key, value in model.named_parameters()}
    for slot, part in enumerate(data.embedding):
        values = part[rows].double()
        model.scaling.set_moments(slot, values.mean(0).float(), values.std(0, correction=0).float())
    scaled = model.scaling([part[rows] for part in data.embedding], data.present[rows])
    unexposed = {"conditioning.gamma.weight", "conditioning.beta.weight"}
    frozen = unexposed if untouched == "stay" else set()
    stepped = [value for key, value in model.named_parameters() if key not in frozen]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
    plain = kind(stepped, lr=0.02, weight_decay=0.1)
    model.train()
    for number in (1, 2, 3):
        generator = generator_for(study.seed, "ash", number)
        for batch in draw_rows(data.label[rows], study, generator).split(study.training.batch_size):
            plain.zero_grad()
            model.loss(
                scaled[batch], data.present[rows][batch], data.label[rows][batch], generator
            ).backward()
            plain.step()
        for key, value in model.named_parameters():
            if key in frozen:
                assert torch.equal(kept.models[number][key], start[key])
            else:
                torch.testing.assert_close(kept.models[number][key], value.detach(), rtol=1e-4, atol=2e-5)
                assert not torch.equal(kept.models[number][key], start[key])


def test_what_drifts_travels_back(tmp_path):
    study = tiny_study(training={"rounds": 1}, federation={"min_sites": 1, "untouched": "drift"})
    federation = tiny_federation(tmp_path / "fed", study, sites=("ash",), missing=0.0)
    told = Told()
    run_nodes(federation, tmp_path / "run", faults=told.faults(("ash",)))
    ((_, update),) = told.trained()
    assert update.blocks == tuple(block.name for block in build_model(study).blocks())
    assert update.exposures["conditioning.ct"] == 0


# The wire


def test_half_precision_halves_the_bytes_and_errs_as_derived(tmp_path):
    """Adam moves a parameter by at most (1 - b1) / sqrt(1 - b2) = 3.17 step sizes a step.

    Half precision keeps 11 bits of the change: it errs by 2^-11 of it, at least 2^-25, beside float32's.
    A mean of sites errs by no more than the worst of them.
    """
    models, sizes = [], []
    for wire in ("float32", "float16"):
        study = tiny_study(federation={"wire": wire}, training={"rounds": 1, "weight_decay": 0.0})
        federation = tiny_federation(tmp_path / f"fed-{wire}", study)
        told, kept = Told(), ModelsByRound(tmp_path / wire, study, {})
        run_nodes(federation, tmp_path / wire, faults=told.faults(), listeners=(kept,))
        models.append(kept.models[1])
        sizes.append(sum(size for _, _, size in told.answered))
        steps = max(-(-update.samples // 8) for _, update in told.trained())
    bound = 2**-11 * 3.17 * 0.01 * steps + 2**-25
    errors = []
    for key, value in models[0].items():
        error = (models[1][key] - value).abs()
        assert (error <= bound + 2**-22 * value.abs()).all(), key
        errors.append(error.max().item())
    assert max(errors) > 0
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.02)  # tensors start at multiples of eight bytes


# What the server says to sites


@pytest.mark.slow
def test_cosine_factors_reach_every_site(tmp_path):
    study = tiny_study(training={"rounds": 4, "schedule": "cosine"})
    told = Told()
    run_nodes(tiny_federation(tmp_path / "fed", study), tmp_path / "run", faults=told.faults())
    asked = [(site, request) for site, request in told.asked if request.train]
    assert len(asked) == 4 * len(SITES)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4, eta_min=0.005)
    for number in range(1, 5):
        wanted = scheduler.get_last_lr()[0]
        found = {request.rate_factor for _, request in asked if request.round == number}
        assert len(found) == 1
        assert found.pop() == pytest.approx(wanted, rel=1e-9)
        optimizer.step()
        scheduler.step()


PLATEAU = {"rounds": 9, "schedule": "plateau", "learning_rate": 1e-12}  # no loss falls


@pytest.mark.slow
def test_a_plateau_lowers_the_factor_and_a_resumed_run_goes_on_with_it(tmp_path):
    study = tiny_study(training=PLATEAU)
    federation = tiny_federation(tmp_path / "fed", study)
    straight, resumed = Told(), Told()
    run_nodes(federation, tmp_path / "straight", faults=straight.faults())
    for key in (("aggregated", 5, None, None), ("checkpoint", 6, None, None), ("checkpoint", 7, None, None)):
        with pytest.raises(KilledError):
            run_nodes(federation, tmp_path / "run", faults=resumed.faults(), listeners=(killer(key),))
    run_nodes(federation, tmp_path / "run", faults=resumed.faults())
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")

    def factors(told):
        found = {}
        for _, request in told.asked:
            if request.train:
                found.setdefault(request.round, set()).add(request.rate_factor)
        return found

    # The loss of round 1 is the best, those of 2 to 5 are no lower; round 7 is the first that is asked after.
    assert factors(straight) == {number: {1.0 if number < 7 else 0.3} for number in range(1, 10)}
    assert factors(resumed) == factors(straight)


@pytest.mark.parametrize(
    ("federation", "asked"),
    first_quick(({"options": {"gap_step": 0.1}}, True), ({}, False), ({"strategy": "exposure"}, False)),
)
def test_the_trained_model_is_evaluated_only_where_the_gap_is_measured(tmp_path, federation, asked):
    study = tiny_study(federation=federation, training={"rounds": 2})
    told = Told()
    result = run_nodes(tiny_federation(tmp_path / "fed", study), tmp_path / "run", faults=told.faults())
    assert result["left_out"] == []
    assert {request.gap for _, request in told.asked if request.train} == {asked}
    assert not any(request.gap for _, request in told.asked if not request.train)
    assert {update.trained is not None for _, update in told.trained()} == {asked}
    assert all(update.trained is None for _, update, _ in told.answered if update.train_loss is None)


@pytest.mark.parametrize(
    ("trained", "reason"),
    first_quick(
        (None, "no evaluation of the trained model"),
        (Evaluation(Split.TEST, MetricState.empty(2).to_dict()), "on the validation split"),
        (Evaluation(Split.VAL, MetricState.empty(3).to_dict()), "metric state"),
        (Evaluation(Split.VAL, {}), "metric state"),
    ),
)
def test_a_wrong_evaluation_of_the_trained_model_is_refused_by_name(tmp_path, trained, reason):
    study = tiny_study(federation={"options": {"gap_step": 0.1}}, training={"rounds": 2})
    federation = tiny_federation(tmp_path / "fed", study)
    faults = {1: while_training(claiming(trained=trained), 2)}
    (entry,) = run_nodes(federation, tmp_path / "run", faults=faults)["left_out"]
    assert (entry["site"], entry["round"]) == ("birch", 2)
    assert reason in entry["reason"]


@pytest.mark.parametrize("strategy", first_quick("exposure", "fedavg", "fedadam", "fedmedian", "krum"))
def test_a_round_in_which_nobody_exercised_anything_changes_nothing(tmp_path, strategy):
    """No site of ours says so; a run must outlive sites that do."""

    def nothing(update):
        none = dict.fromkeys(update.exposures, 0)
        return replace(update, exposures=none, blocks=(), layout=layout_of({}).fingerprint)

    def empty(site, header, payload):
        answer, _ = with_update(nothing)(site, header, payload)
        return answer, b""

    study = tiny_study(federation={"strategy": strategy}, training={"rounds": 2})
    federation = tiny_federation(tmp_path / "fed", study)
    models = ModelsByRound(tmp_path / "run", study, {})
    faults = dict.fromkeys(range(3), while_training(empty, 2))
    result = run_nodes(federation, tmp_path / "run", faults=faults, listeners=(models,))
    assert result["left_out"] == []
    for key, value in models.models[1].items():
        assert torch.equal(models.models[2][key], value), key


@pytest.mark.slow
def test_a_gap_is_of_the_average_that_the_sites_model_went_into(tmp_path, monkeypatch):
    """A site that was left out of a round has no gap in the next: its own model is of the round before."""
    gaps = {}
    gap_of = Averaging._gap

    def noted(loop, reply, own):
        found = gap_of(loop, reply, own)
        gaps[reply.update.round, reply.update.site] = found
        return found

    monkeypatch.setattr(Averaging, "_gap", noted)
    study = tiny_study(federation={"options": {"gap_step": 0.1}}, training={"rounds": 4})
    federation = tiny_federation(tmp_path / "fed", study)
    run_nodes(federation, tmp_path / "run", faults={1: while_training(raises, 2)})
    assert all(gaps[1, site] is None for site in SITES)
    assert gaps[2, "ash"] is not None
    assert gaps[3, "ash"] is not None
    assert gaps[3, "birch"] is None
    assert gaps[4, "birch"] is not None
