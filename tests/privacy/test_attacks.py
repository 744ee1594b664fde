"""The attacks of this folder as tables of figures, with and without protection: ``make attacks``.

The adversaries: a coordinator that keeps what comes (A) or asks under an approved study for what it likes
(B), and a hospital that lies (C).
"""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score, roc_curve

from client.data.dataset import load_data
from mmare.errors import RunError
from mmare.models.batch import Batch
from mmare.models.registry import build_model
from mmare.study.study import Study, parse_study
from mmare.wire.messages import Request, Split, Task, Update, WireError, decode
from mmare.wire.tensors import copy_tensors, global_tensors, pack
from server.store.model_file import load_model
from sites.config import load_site
from sites.features import load_features, write_features
from sites.federation import write_federation
from tests.federations import (
    SITES,
    WIDTHS,
    claiming,
    run_nodes,
    site_tables,
    tiny_study,
    while_training,
)
from tests.privacy.hospital import LIMIT, Hospital, read_tensors, sent_and_arrived
from tests.privacy.test_false_weights import ROWS, boasting, with_counts
from tests.privacy.test_models import TRAP_STUDY, robbed
from tests.privacy.test_moments import admit

pytestmark = pytest.mark.bench

MOMENTS = "moments, one patient more: cosine (A)"
WIDTH = 150  # of the tables
RUNS = 24  # of the membership attack: every patient is in half of them
PATIENTS = 64
RARE = 4  # patients of the rare class in a hospital's train split


OPEN_DOORS = {
    "client.training.service.check_arrival": lambda *_: None,
    "client.training.trainer.TrainedRound.of_enough": lambda trained, _limit: trained,
    "client.privacy.records.moments_record.MomentsRecord.settle": lambda _, fresh, *__: fresh,
}


@dataclass(frozen=True)
class Protection:
    """What stands between the attacker and the hospitals."""

    name: str
    privacy: dict = field(default_factory=dict)
    open_doors: bool = False  # as before: a site answers what it is asked
    summed: bool = False  # the coordinator learns the sum of three hospitals only

    def study(self, study: Study) -> Study:
        content = study.to_dict()
        content["privacy"] = {**content["privacy"], "min_count": LIMIT, **self.privacy}
        content["federation"] = {**content["federation"], "min_sites": len(SITES)}
        if self.is_private:  # moments are not released
            content["modality"] = [{**each, "scaling": "l2"} for each in content["modality"]]
        return tiny_study(**content)

    @property
    def is_private(self):
        return "dp" in self.privacy

    @contextmanager
    def in_force(self):
        with ExitStack() as stack:
            for target, value in OPEN_DOORS.items() if self.open_doors else ():
                stack.enter_context(patch(target, value))
            yield


PROTECTIONS = [
    Protection("doors open", open_doors=True),
    Protection("default"),
    Protection("secure sums", {"secure_sum": True}, summed=True),
    Protection("epsilon 8", {"dp": {"epsilon": 8.0, "delta": 1e-3}}),
    Protection("epsilon 3", {"dp": {"epsilon": 3.0, "delta": 1e-3}}),
]


@pytest.fixture(scope="module")
def table():
    """Rows of figures by attack and protection, printed at the end."""
    rows: dict[str, dict[str, str]] = {}
    yield rows
    view = Table("attack", *(protection.name for protection in PROTECTIONS))
    for attack, found in rows.items():
        view.add_row(attack, *(found.get(protection.name, "") for protection in PROTECTIONS))
    Console(width=WIDTH).print(view)


# A, B: what single answers tell


def hospitals(protection, folder, study, **more):
    """The hospital that is attacked, and those whose answers hide its own in a sum."""
    names = SITES if protection.summed else SITES[:1]
    # The sum of masked answers is that of plain ones, bit for bit (tests/equivalence/test_secure_sums.py).
    plain = replace(protection, privacy={**protection.privacy, "secure_sum": False})
    return [Hospital(folder / name, plain.study(study), seed=seed, **more) for seed, name in enumerate(names)]


def summed_change(answered):
    """The sum of the changes of some hospitals, by tensor; none where no hospital changed it."""
    total: dict[str, torch.Tensor] = {}
    for hospital, model, update in answered:
        sent, after = sent_and_arrived(model, update, hospital.tensors)
        for name, before in sent.items():
            total[name] = total.get(name, 0) + after[name] - before
    return total


def test_difference_of_moments(tmp_path, table):
    """One patient more: the cosine of the difference with its embedding."""
    table[MOMENTS] = {}
    study = tiny_study(training={"noise_probability": 0.0})
    for protection in PROTECTIONS:
        with protection.in_force():
            those = hospitals(protection, tmp_path / protection.name, study, missing=0.0)
            if protection.is_private:
                (told,) = {each.n for each in those[0].ask(Task.STATISTICS).moments}
                assert told == 0
                table[MOMENTS][protection.name] = "not released"
                continue
            before = total_of(those, "one")
            row = admit(those[0], 1)[0]
            gone = total_of(those, "two") - before
        cosine = abs(gone @ row) / np.linalg.norm(gone) / np.linalg.norm(row) if gone.any() else 0.0
        table[MOMENTS][protection.name] = f"{cosine:.3f}"
        assert cosine > 0.999 if protection.open_doors else cosine == 0


def total_of(those, run):
    return sum(np.array(each.ask(Task.STATISTICS, run=run).moments[0].total) for each in those)


@pytest.mark.parametrize(
    ("attack", "number", "bound"),
    [
        ("a crafted first model: patients read (B)", 1, None),
        ("a crafted second model, max_step = 0.5 (B)", 2, 0.5),
        ("a crafted second model, the default bound at a learning rate of .01 (B)", 2, None),
    ],
)
def test_a_crafted_model(tmp_path, table, attack, number, bound):
    for protection in PROTECTIONS:
        bounded = protection if bound is None else replace(protection, privacy={"max_step": bound})
        with bounded.in_force():
            those = hospitals(protection, tmp_path / protection.name, bounded.study(TRAP_STUDY))
            found = robbed(those[0], number, those[1:], honest_first=number > 1)
        refused = not isinstance(found, float)
        table.setdefault(attack, {})[protection.name] = f"refused ({found})" if refused else f"{found:.0%}"
        if protection.open_doors:
            assert found > 0.3
        elif number == 1 or bound is not None:
            assert refused


def test_a_block_of_one_patient(tmp_path, table):
    """One patient has ct: the cosine of the change of ct's adapter with the embedding."""
    for protection in PROTECTIONS:
        study = tiny_study(training={"optimizer": "sgd", "noise_probability": 0.0, "weight_decay": 0.0})
        with protection.in_force():
            those = hospitals(protection, tmp_path / protection.name, study, missing=0.0)
            having_one(those[0])
            answered = [(each, build_model(each.study), each.train(1)) for each in those]
        data = load_data(those[0].site, those[0].study)
        (row,) = data.embedding[0][data.rows[Split.TRAIN][data.present[data.rows[Split.TRAIN], 0]]]
        cosine = 0.0
        if "adapter.ct" in answered[0][2].blocks:
            direction = torch.linalg.svd(summed_change(answered)["adapters.adapters.0.weight"])[2][0]
            cosine = abs(float(torch.nn.functional.cosine_similarity(direction, row, dim=0)))
        table.setdefault("a block that one patient trains: cosine (A)", {})[protection.name] = f"{cosine:.3f}"
        assert (cosine > 0.999) is protection.open_doors


def having_one(hospital):
    """Leave ct to one patient of the train split."""
    source = hospital.site.modalities["ct"]
    data = pd.read_csv(hospital.site.manifest, dtype=str)
    first = data.loc[data["split"] == "train", "patient_id"].iloc[0]
    held = load_features(source.file)
    write_features(source.file.parent, source.file.stem, {first: held[first]})


GRADIENT_WIDTH = 48  # of a modality: more than the patients of three small hospitals who have it
SMALL = 36  # patients of each, about twelve of whom are trained on and have it


@pytest.mark.parametrize("strategy", ["fedavg", "fedsgd"])
def test_the_span_of_a_step(tmp_path, table, strategy):
    """Fewer patients than features: is a patient in the space that the change of an adapter spans?"""
    study = tiny_study(
        modality=[
            {"name": name, "kind": "features", "width": GRADIENT_WIDTH, "scaling": "zscore"}
            for name in WIDTHS
        ],
        model={"name": "mmare", "width": 64},
        training={"noise_probability": 0.0, "weight_decay": 0.0, "batch_size": 64},
        federation={"strategy": strategy},
    )
    told = table.setdefault(f"who is in a small hospital's step, {strategy}: AUC (A)", {})
    for protection in PROTECTIONS:
        with protection.in_force():
            those = hospitals(protection, tmp_path / protection.name, study, patients=SMALL)
            change = summed_change([(each, build_model(each.study), each.train(1)) for each in those])
        _, size, directions = torch.linalg.svd(change["adapters.adapters.0.weight"], full_matrices=False)
        spanned = directions[size > size[0] * 1e-5]
        scores, members = [], []
        for each, split in product(those, (Split.TRAIN, Split.TEST)):
            data = load_data(each.site, each.study)
            rows = data.embedding[0][data.rows[split]][data.present[data.rows[split], 0]]
            scores.append((torch.nn.functional.normalize(rows) @ spanned.T).norm(dim=1))
            members.append(torch.full((len(rows),), split is Split.TRAIN))
        auc = roc_auc_score(torch.cat(members), torch.cat(scores))
        told[protection.name] = f"{auc:.2f}"
        if strategy == "fedsgd":
            assert auc < 0.8 if protection.is_private else auc > 0.99  # of chance .5 ± .15


# A: who took part


@dataclass
class Membership:
    """Scores of every patient in every run, and who was in it: ``(runs, patients)``."""

    scores: list[np.ndarray]
    members: list[np.ndarray]

    def against(self, these: np.ndarray) -> tuple[float, float]:
        """AUC, and the true positive rate at a false positive rate of .01, of LiRA on some patients.

        Carlini et al. 2022, online with one variance for all, every run attacked by the others.
        """
        scores, members = (np.stack(each)[:, these] for each in (self.scores, self.members))
        ratios = np.zeros_like(scores)
        for run in range(len(scores)):
            others = np.arange(len(scores)) != run
            inside, outside = (
                np.ma.array(scores[others], mask=members[others] == out) for out in (False, True)
            )
            deviation = float(np.ma.concatenate([inside - inside.mean(0), outside - outside.mean(0)]).std())
            likely = [
                ((scores[run] - each.mean(0).data) / (deviation or 1.0)) ** 2 for each in (outside, inside)
            ]
            ratios[run] = likely[0] - likely[1]
        truth, ratios = members.ravel(), ratios.ravel()
        false, true, _ = roc_curve(truth, ratios)
        return float(roc_auc_score(truth, ratios)), float(np.interp(0.01, false, true))


def with_rare_class(name):
    """Of the train split, the first few patients of a site have the rare class."""
    tables = site_tables(name, tiny_study(), PATIENTS, 3, 0.3)
    train = tables.manifest.index[tables.manifest["split"] == "train"]
    tables.manifest.loc[train[RARE:], "label"] = "no"
    tables.manifest.loc[train[:RARE], "label"] = "yes"
    return tables


def without(tables, patients):
    features = {
        name: {patient: vector for patient, vector in held.items() if patient not in patients}
        for name, held in tables.features.items()
    }
    return replace(
        tables, manifest=tables.manifest[~tables.manifest["patient_id"].isin(patients)], features=features
    )


def confidence(model, batch):
    """Log odds of each patient's true class."""
    right = model.predict(batch).gather(1, batch.label[:, None]).double().squeeze(1).clamp(1e-9, 1 - 1e-9)
    return torch.logit(right).numpy()


def model_sent(study, payload):
    """The model of a request."""
    model = build_model(study)
    tensors = global_tensors(model)
    copy_tensors(tensors, read_tensors(payload, tensors))
    return model


class Eavesdropper:
    """What a coordinator keeps of a site's last update: its model."""

    def __init__(self, study):
        self.study = study
        self.model = None

    def __call__(self, site, header, payload):
        text, tensors = site(header, payload)
        if decode(Request, header).train:
            try:
                update = decode(Update, text)
            except WireError:  # masked
                return text, tensors
            model = model_sent(self.study, payload)
            copy_tensors(*sent_and_arrived(model, update, tensors))
            self.model = model
        return text, tensors


def test_membership(tmp_path, table):
    """LiRA on the final model and on one hospital's last update, of all patients and of the rare class."""
    tables = [with_rare_class(name) for name in SITES]
    study = tiny_study(training={"rounds": 12, "noise_probability": 0.0, "local_epochs": 2})
    write_federation(tmp_path / "all", study, tables)
    data = [load_data(load_site(tmp_path / "all" / name / "site.toml"), study) for name in SITES]
    batches = [
        Batch(tuple(part[rows] for part in each.embedding), each.present[rows], each.label[rows])
        for each in data
        for rows in (each.rows[Split.TRAIN],)
    ]
    ids = [each.manifest.loc[each.manifest["split"] == "train", "patient_id"].tolist() for each in tables]
    halves = [halves_of(len(each), seed) for seed, each in enumerate(ids)]
    for protection in PROTECTIONS:
        own, final = Membership([], []), Membership([], [])
        protected = protection.study(study)
        for run in range(RUNS):
            folder = tmp_path / f"{protection.name}-{run}"
            left_out = [
                {patient for patient, stays in zip(names, half[run], strict=True) if not stays}
                for names, half in zip(ids, halves, strict=True)
            ]
            write_federation(folder / "fed", protected, list(map(without, tables, left_out)))
            ear = Eavesdropper(protected)
            with protection.in_force():
                run_nodes(folder / "fed", folder / "run", faults={0: ear})
            model = load_model(folder / "run" / "model")
            final.scores.append(np.concatenate([confidence(model, batch) for batch in batches]))
            final.members.append(np.concatenate([half[run] for half in halves]))
            if ear.model is not None:
                own.scores.append(confidence(ear.model, batches[0]))
                own.members.append(halves[0][run])
        rare = np.concatenate([batch.label.numpy() == 1 for batch in batches])
        for what, found, these in (
            ("final model, all", final, np.ones_like(rare)),
            ("final model, rare class", final, rare),
            ("update of a hospital, all", own, np.ones(len(ids[0]), dtype=bool)),
            ("update of a hospital, rare class", own, rare[: len(ids[0])]),
        ):
            said = "no single update"
            if found.scores:
                said = "{:.2f}, {:.1%}".format(*found.against(these))
            table.setdefault(f"membership, {what}: AUC, TPR at 1 % FPR (A)", {})[protection.name] = said
        assert bool(own.scores) is not protection.summed
        if own.scores:
            auc, _ = own.against(rare[: len(ids[0])])
            assert auc < 0.7 if protection.is_private else auc > 0.8  # of chance .5 ± .06


def halves_of(count, seed):
    """Per run, who is in it: every patient in half of the runs, ``(RUNS, count)``."""
    random = np.random.default_rng(seed)
    return np.stack([random.permutation(np.arange(RUNS) % 2 == 0) for _ in range(count)], axis=1)


# C: what one lying hospital of three breaks


def clearer(tables):
    """The classes further apart, so that there is something to break."""
    positive = set(tables.manifest.loc[tables.manifest["label"] == "yes", "patient_id"])
    features = {
        name: {patient: vector + 2.0 * (patient in positive) for patient, vector in held.items()}
        for name, held in tables.features.items()
    }
    return replace(tables, features=features)


def flipped(tables):
    """Every label of the train split the other one."""
    train = tables.manifest["split"] == "train"
    other = {"no": "yes", "yes": "no"}
    tables.manifest.loc[train, "label"] = tables.manifest.loc[train, "label"].map(other)
    return tables


def times(factor):
    """A site that sends its change many times over."""

    def fault(site, header, payload):
        text, tensors = site(header, payload)
        try:
            update = decode(Update, text)
        except WireError:  # it refused
            return text, tensors
        model = model_sent(parse_study(decode(Request, header).study, "attack"), payload)
        sent, after = sent_and_arrived(model, update, tensors)
        larger = {name: before + factor * (after[name] - before) for name, before in sent.items()}
        return text, pack(larger).numpy().tobytes()

    return while_training(fault)


def boasts(site, header, payload):
    """A site that claims as many rows as it likes, with counts that agree."""
    task = decode(Request, header).task
    if task is Task.DESCRIBE:
        return boasting(lambda call: with_counts(call, ROWS, no=ROWS // 2, yes=ROWS // 2))(
            site, header, payload
        )
    return claiming(samples=ROWS)(site, header, payload) if task is Task.TRAIN else site(header, payload)


GUARDS = {
    "default": (),
    "max_share = 0.4": ("federation.max_share=0.4",),
    "max_norm = 2": ("federation.max_norm=2.0",),
    "median": ("federation.strategy=fedmedian",),
}
LIES = {
    "nothing": (False, None),
    "flips its labels": (True, None),
    "flips its labels, claims 26,000,000 rows": (True, boasts),
    "flips its labels, sends its change 100 times over": (True, times(100)),
}


def test_a_hospital_that_lies(tmp_path):
    view = Table("one hospital of three", *GUARDS, title="AUC on the test rows of the others")
    study = tiny_study(training={"rounds": 12, "noise_probability": 0.0}, privacy={"min_count": LIMIT})
    found = {}
    for lie, (flips, fault) in LIES.items():
        for guard, settings in GUARDS.items():
            folder = tmp_path / f"{lie}-{guard}"
            tables = [clearer(site_tables(name, study, 2 * PATIENTS, 3, 0.3)) for name in SITES]
            write_federation(folder / "fed", study, [flipped(tables[0]) if flips else tables[0], *tables[1:]])
            faults = {} if fault is None else {0: fault}
            try:
                result = run_nodes(folder / "fed", folder / "run", settings=settings, faults=faults)
            except RunError:
                continue
            each = result["metrics"]["test"]["sites"]
            found[lie, guard] = np.mean([each[name]["auc"] for name in SITES[1:]])
        said = [found.get((lie, guard)) for guard in GUARDS]
        view.add_row(lie, *("the run stops" if auc is None else f"{auc:.3f}" for auc in said))
    Console(width=WIDTH).print(view)
    honest = found["nothing", "default"]
    boast, scaled = list(LIES)[2:]
    assert found[boast, "max_share = 0.4"] > found[boast, "default"]
    assert found[scaled, "max_norm = 2"] > honest - 0.1
