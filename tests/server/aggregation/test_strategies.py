"""Each strategy against slow loops, its limit cases and Flower's own classes."""

import logging
import math
from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, MessageType, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.serverapp.strategy import FedAdam, FedAvgM, FedMedian, FedTrimmedAvg, FedYogi, Krum
from hypothesis import assume, given
from hypothesis import strategies as st

from mmare.errors import RunError
from mmare.study.choices import OptimizerName
from mmare.study.specs import FederationSpec, TrainingSpec
from mmare.study.strategy_options import FedAvgMOptions, FedAvgOptions, Weighting
from mmare.wire.sharing import GRADIENTS
from server.aggregation.mean import Contribution
from server.aggregation.robust import changes_gram, points_of, runs
from server.aggregation.server_optimizers import fedavgm, fedsgd
from server.aggregation.site_weights import gap_factors, site_weights
from server.aggregation.strategies import Gathered, strategy_of
from tests.properties import examples

PARTS = {"head": ("bias",), "ct": ("ct.weight", "ct.bias"), "columns": ("g",)}
STEADY = TrainingSpec(learning_rate=0.1, weight_decay=0.0)
SHAPES = {"bias": (3,), "ct.weight": (2, 4), "ct.bias": (), "g": (5,)}


def strategy(name, **options):
    return strategy_of(FederationSpec(strategy=name, options=options))


def tensors(seed, dtype=torch.float32):
    source = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=source, dtype=dtype) for name, shape in SHAPES.items()}


def contribution(place, samples=10, exposures=None, seed=0, held=None, gap=None):
    """Of a site that sends the blocks that it exercised; without exposures all samples exercised all."""
    exposures = dict.fromkeys(PARTS, samples) if exposures is None else exposures
    values = tensors(100 * seed + place + 1) if held is None else held
    blocks = tuple(block for block in PARTS if exposures[block] > 0)
    sent = {name: values[name] for block in blocks for name in PARTS[block]}
    return Contribution(f"site-{place:02d}", samples, exposures, blocks, lambda: sent, gap)


def replies(contributions):
    """As Flower's own strategies would receive them."""
    at_hand = Metadata(0, "", 0, 0, "", "", 0.0, 1.0, MessageType.TRAIN)
    return [
        make_message(
            at_hand,
            RecordDict(
                {
                    "arrays": ArrayRecord(
                        {name: Array(value.numpy()) for name, value in each.load().items()}
                    ),
                    "metrics": MetricRecord({"num-examples": each.samples}),
                }
            ),
        )
        for each in contributions
    ]


def arrays_of(record):
    return {name: torch.from_numpy(np.asarray(array.numpy())) for name, array in record.items()}


def assert_close(found, wanted, **tolerance):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].double(), value.double(), msg=name, **tolerance)


COUNTS = st.lists(st.integers(1, 10**6), min_size=1, max_size=6)
EXPOSED = st.lists(st.lists(st.integers(0, 30), min_size=3, max_size=3), min_size=1, max_size=5)


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_fedsgd_steps_as_torch_does(kind):
    training = TrainingSpec(optimizer=OptimizerName(kind), learning_rate=0.05, weight_decay=0.1)
    value, source = torch.randn(7), torch.Generator().manual_seed(1)
    wanted = torch.nn.Parameter(value.clone())
    made = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[kind]
    theirs, ours = made([wanted], lr=0.05, weight_decay=0.1), fedsgd(training)
    moments = [torch.zeros(7) for _ in ours.moments]
    for count in range(1, 6):
        wanted.grad = torch.randn(7, generator=source)
        theirs.step()
        value, moments = ours.step(value, -wanted.grad, moments, count)
        torch.testing.assert_close(value, wanted.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [0.3, 1.0])
def test_the_schedules_factor_shortens_the_step(factor):
    sent = contribution(1, held={name: torch.zeros(shape) for name, shape in SHAPES.items()})
    current = {name: torch.ones(shape) for name, shape in SHAPES.items()}
    made = strategy_of(FederationSpec(strategy="fedsgd"), lambda _: fedsgd(STEADY))
    changed, _ = made(Gathered(current, PARTS, [sent], rate_factor=factor))
    for value in changed.values():
        torch.testing.assert_close(value, torch.full_like(value, 1 - 0.1 * factor))


def test_damping_shortens_the_steps_of_the_optimiser_by_block_and_no_others():
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    sent = contribution(1, samples=40, exposures={"head": 40, "ct": 10, "columns": 40}, held=zeros)
    current = {name: torch.ones(shape) for name, shape in SHAPES.items()}
    free = fedavgm(FedAvgMOptions(server_learning_rate=GRADIENTS))
    made = strategy_of(
        FederationSpec(strategy="fedsgd", options={"damping": 30.0}),
        lambda block: free if block == "columns" else fedsgd(STEADY),
    )
    changed, _ = made(Gathered(current, PARTS, [sent]))
    for name, wanted in {"bias": 1 - 0.1 * 40 / 70, "ct.bias": 1 - 0.1 * 10 / 40, "g": 0.0}.items():
        torch.testing.assert_close(changed[name], torch.full_like(changed[name], wanted))


def exposed_round(table, seed=0):
    """A row per site: exposures of head, ct and columns."""
    parts = [
        contribution(place, max(1, *row), dict(zip(PARTS, row, strict=True)), seed)
        for place, row in enumerate(table)
    ]
    return Gathered(tensors(0), PARTS, parts)


# Weights by samples and by exposure


@given(COUNTS, st.integers(1, 5))
def test_exposure_is_fedavg_bit_for_bit_where_nothing_is_missing(counts, merges):
    parts = [
        contribution(place, count, {"head": count, "ct": count * merges, "columns": 0})
        for place, count in enumerate(counts)
    ]
    sent = {
        "head": PARTS["head"],
        "ct": PARTS["ct"],
    }  # of the columns nobody sends: no sample misses anything
    gathered = Gathered(tensors(0), sent, parts)
    found, plain = strategy("exposure")(gathered)[0], strategy("fedavg")(gathered)[0]
    assert all(torch.equal(found[name], plain[name]) for name in SHAPES)


@given(EXPOSED, st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.sampled_from([0.0, 1.0, 50.0]))
def test_exposure_is_its_equation(table, exponent, damping):
    gathered = exposed_round(table)
    found, _ = strategy("exposure", exponent=exponent, damping=damping)(gathered)
    for block, names in PARTS.items():
        senders = [each for each in gathered.contributions if each.exposures[block] > 0]
        total = sum(each.exposures[block] for each in senders)
        for name in names:
            before = gathered.current[name].double()
            wanted = before.clone()
            for each in senders:
                share = each.exposures[block] ** exponent
                share /= sum(other.exposures[block] ** exponent for other in senders)
                wanted += total / (total + damping) * share * (each.load()[name].double() - before)
            torch.testing.assert_close(found[name].double(), wanted, rtol=1e-5, atol=1e-6)


@given(EXPOSED)
def test_fedavg_is_the_mean_of_whole_models(table):
    """A site that did not exercise a block has it as it received it."""
    gathered = exposed_round(table)
    found, _ = strategy("fedavg")(gathered)
    total = sum(each.samples for each in gathered.contributions)
    for name, before in gathered.current.items():
        wanted = sum(
            each.samples / total * each.load().get(name, before).double() for each in gathered.contributions
        )
        torch.testing.assert_close(found[name].double(), wanted, rtol=1e-5, atol=1e-6)


def test_by_samples_one_of_five_sites_moves_its_modality_five_times_slower():
    row, without = [10, 10, 10], [10, 0, 10]
    gathered = exposed_round([row, without, without, without, without])
    sent, before = gathered.contributions[0].load()["ct.weight"], gathered.current["ct.weight"]
    slow, _ = strategy("fedavg")(gathered)
    torch.testing.assert_close(slow["ct.weight"], before + (sent - before) / 5)
    quick, _ = strategy("exposure")(gathered)
    assert torch.equal(quick["ct.weight"], sent)


def test_fedprox_averages_as_fedavg():
    gathered = exposed_round([[3, 1, 2], [9, 0, 4]])
    prox, plain = strategy("fedprox", mu=0.5)(gathered)[0], strategy("fedavg")(gathered)[0]
    assert all(torch.equal(prox[name], plain[name]) for name in SHAPES)


def test_large_exposures_and_exponents_do_not_overflow():
    huge = 10**12
    gathered = exposed_round([[huge, huge, 1], [huge, 1, huge]])
    found, _ = strategy("exposure", exponent=10.0, damping=1e12)(gathered)
    assert all(value.isfinite().all() for value in found.values())


# Factors by generalisation gap

GAPS = st.dictionaries(
    st.sampled_from("abcdef"), st.none() | st.floats(-5, 5, allow_subnormal=False), min_size=1
)


@given(st.lists(GAPS, min_size=1, max_size=4), st.floats(0.01, 1.0))
def test_factors_are_those_of_a_loop(rounds, step):
    factors, loop = {}, {}
    for gaps in rounds:
        factors = gap_factors(gaps, factors, step)
        for site in gaps:
            loop.setdefault(site, 1.0)
        before, largest = dict(loop), max((abs(gap) for gap in gaps.values() if gap is not None), default=0.0)
        for site, gap in gaps.items():
            if gap is not None and largest > 0:
                loop[site] = max(0.0, loop[site] + step * (gap / largest))
        if sum(loop.values()) == 0:
            loop = before
        elif largest > 0:
            mean = math.fsum(loop.values()) / len(loop)
            loop = {site: value / mean for site, value in loop.items()}
        assert factors == pytest.approx(loop)
        assert sum(factors.values()) / len(factors) == pytest.approx(1.0)


def test_a_site_that_averaging_serves_worse_gains_and_one_without_a_gap_does_not_move():
    found = gap_factors({"better": -0.2, "unknown": None, "worse": 0.4}, {}, 0.3)
    assert found["worse"] > found["unknown"] > found["better"]
    assert found["unknown"] / found["worse"] == pytest.approx(1 / 1.3)
    assert gap_factors({"a": None, "b": None}, {"a": 1.25, "b": 0.75}, 0.3) == {"a": 1.25, "b": 0.75}


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_gap_that_is_not_finite_is_none(odd):
    assert gap_factors({"a": odd, "b": 0.1}, {}, 0.5) == gap_factors({"a": None, "b": 0.1}, {}, 0.5)


def test_factors_of_which_none_would_be_left_stay():
    assert gap_factors({"a": -0.1, "b": -0.1}, {}, 1.0) == {"a": 1.0, "b": 1.0}


def test_factors_multiply_weights_and_live_in_the_state():
    step = strategy("fedavg", gap_step=0.5)
    parts = [contribution(0, 10, gap=0.2), contribution(1, 30, gap=None)]
    gathered = Gathered(tensors(0), PARTS, parts)
    found, state = step(gathered)
    assert {name: float(value) for name, value in state.items()} == pytest.approx(
        {"gap/site-00": 1.2, "gap/site-01": 0.8}
    )
    one, other = (each.load()["bias"].double() for each in parts)
    wanted = (10 * 1.2 * one + 30 * 0.8 * other) / (10 * 1.2 + 30 * 0.8)
    torch.testing.assert_close(found["bias"].double(), wanted, rtol=1e-6, atol=1e-7)
    absent, kept = step(Gathered(tensors(0), PARTS, parts[1:], state))
    assert torch.equal(absent["bias"], parts[1].load()["bias"])
    assert kept == state


def test_without_gaps_the_factors_change_nothing():
    gathered = exposed_round([[3, 1, 2], [9, 0, 4]])
    found, plain = strategy("exposure", gap_step=1.0)(gathered)[0], strategy("exposure")(gathered)[0]
    assert all(torch.equal(found[name], plain[name]) for name in SHAPES)


@pytest.mark.parametrize("weighting", list(Weighting))
def test_factors_of_zero_that_leave_nobody_are_left_out(weighting):
    parts = [contribution(0, 10), contribution(1, 30)]
    factors = {each.site: 0.0 for each in parts}
    options = FedAvgOptions(weighting)
    assert site_weights(PARTS, parts, options, factors) == site_weights(PARTS, parts, options, {})
    found = site_weights(PARTS, parts, options, {"site-00": 0.0, "site-01": 2.0})
    assert found["ct"].sites == {"site-00": 0.0, "site-01": 60.0}


# Server optimisers


def flower_of(name, options):
    rate = options["server_learning_rate"]
    if name == "fedavgm":
        return FedAvgM(server_learning_rate=rate, server_momentum=options["momentum"])
    made = FedAdam if name == "fedadam" else FedYogi
    return made(eta=rate, beta_1=options["beta1"], beta_2=options["beta2"], tau=options["tau"])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fedavgm", {"server_learning_rate": 0.7, "momentum": 0.8}),
        ("fedadam", {"server_learning_rate": 0.05, "beta1": 0.8, "beta2": 0.95, "tau": 1e-2}),
        ("fedyogi", {"server_learning_rate": 0.05, "beta1": 0.8, "beta2": 0.95, "tau": 1e-2}),
    ],
)
@pytest.mark.parametrize("weighting", list(Weighting))
def test_server_optimisers_are_flowers_where_nothing_is_missing(name, options, weighting):
    step, flower = strategy(name, **options, weighting=weighting.value), flower_of(name, options)
    current, state, theirs = tensors(0), {}, tensors(0)
    for number in range(1, 6):
        parts = [contribution(place, 10 + 7 * place, seed=number) for place in range(3)]
        current, state = step(Gathered(current, PARTS, parts, state))
        if name == "fedavgm":
            flower.current_arrays = ArrayRecord({key: Array(value.numpy()) for key, value in theirs.items()})
        else:
            flower.current_arrays = {key: value.numpy() for key, value in theirs.items()}
        theirs = arrays_of(flower.aggregate_train(number, replies(parts))[0])
        assert_close(current, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(current["bias"], tensors(0)["bias"], atol=1e-2)


def test_without_momentum_and_with_step_1_fedavgm_is_fedavg():
    gathered = exposed_round([[3, 1, 2], [9, 0, 4]])
    found, _ = strategy("fedavgm", momentum=0.0)(gathered)
    assert_close(found, strategy("fedavg")(gathered)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["fedadam", "fedavgm", "fedyogi"])
def test_a_block_that_rests_a_round_goes_on_as_if_the_round_had_not_been(name):
    step = strategy(name, weighting="exposure")
    both, head = [contribution(0), contribution(1)], {"head": 5, "ct": 0, "columns": 0}
    first, state = step(Gathered(tensors(0), PARTS, both))
    rested = step(Gathered(first, PARTS, [contribution(0, exposures=head)], state))
    twice = step(Gathered(rested[0], PARTS, both, rested[1]))
    at_once = step(Gathered(first, PARTS, both, state))
    for key in ("ct.weight", "ct.bias", "g"):
        assert torch.equal(twice[0][key], at_once[0][key])
    assert int(twice[1]["steps/ct"]) == 2
    assert int(twice[1]["steps/head"]) == 3
    assert not torch.equal(twice[0]["bias"], at_once[0]["bias"])


def test_a_server_that_overflows_stops_with_a_sentence():
    step = strategy("fedavgm", server_learning_rate=1e6)
    held = {name: torch.full(shape, 1e34) for name, shape in SHAPES.items()}
    with pytest.raises(RunError, match="strategy fedavgm made values that are not finite"):
        step(Gathered(tensors(0), PARTS, [contribution(0, held=held)]))


# What compares sites


@examples(30)
@given(EXPOSED, st.sampled_from([0.0, 0.2, 0.34, 0.49]))
def test_median_and_trimmed_mean_are_loops_over_the_sites_that_sent_a_block(table, share):
    gathered = exposed_round(table)
    median, trimmed = strategy("fedmedian")(gathered)[0], strategy("trimmed-mean", share=share)(gathered)[0]
    for block, names in PARTS.items():
        for name in names:
            sent = [each.load()[name] for each in gathered.contributions if each.exposures[block] > 0]
            if not sent:
                assert torch.equal(median[name], gathered.current[name])
                assert torch.equal(trimmed[name], gathered.current[name])
                continue
            for place in np.ndindex(SHAPES[name]):
                values = sorted(float(value[place]) for value in sent)
                cut = int(share * len(values))
                kept = values[cut : len(values) - cut]
                middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
                assert float(median[name][place]) == pytest.approx(middle, rel=1e-5, abs=1e-6)
                assert float(trimmed[name][place]) == pytest.approx(sum(kept) / len(kept), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "flower"), [("fedmedian", FedMedian()), ("trimmed-mean", FedTrimmedAvg(beta=0.2))]
)
@pytest.mark.parametrize("at_once", [1, 7, 2**20])
def test_in_runs_of_coordinates_they_are_flowers_on_whole_models(name, flower, at_once, monkeypatch):
    monkeypatch.setattr("server.aggregation.strategies.runs", partial(runs, values_at_once=at_once))
    parts = [contribution(place) for place in range(6)]
    found, _ = strategy(name)(Gathered(tensors(0), PARTS, parts))
    wanted = arrays_of(flower.aggregate_train(1, replies(parts))[0])
    assert_close(found, wanted, rtol=1e-6, atol=1e-7)


def krum_loop(gathered, malicious):
    """The site with the smallest sum of squared distances to its n - f - 2 nearest, by whole models."""
    models = []
    for each in gathered.contributions:
        sent = each.load()
        values = [sent.get(name, value) for name, value in gathered.current.items()]
        models.append(torch.cat([value.reshape(-1).double() for value in values]))
    scores = []
    for place, one in enumerate(models):
        others = [float((one - other).square().sum()) for index, other in enumerate(models) if index != place]
        scores.append(sum(sorted(others)[: len(models) - malicious - 2]))
    return scores


@examples(30)
@given(
    st.lists(st.lists(st.integers(0, 30), min_size=3, max_size=3), min_size=5, max_size=7), st.integers(0, 1)
)
def test_krum_is_a_loop_over_whole_models(table, malicious):
    gathered = exposed_round(table)
    scores = krum_loop(gathered, malicious)
    ranked = sorted(scores)
    assume(ranked[1] - ranked[0] > 1e-9)
    found, state = strategy("krum", malicious=malicious)(gathered)
    chosen = gathered.contributions[scores.index(ranked[0])].load()
    wanted = {**gathered.current, **chosen}
    assert all(torch.equal(found[name], wanted[name]) for name in SHAPES)
    assert state == {}


@pytest.mark.parametrize("seed", range(5))
def test_krum_chooses_as_flower_does_of_whole_models(seed):
    parts = [contribution(place, seed=seed) for place in range(6)]
    found, _ = strategy("krum", malicious=1)(Gathered(tensors(0), PARTS, parts))
    wanted = arrays_of(Krum(num_malicious_nodes=1).aggregate_train(1, replies(parts))[0])
    assert all(torch.equal(found[name], wanted[name]) for name in SHAPES)


def test_krum_sees_small_changes_of_large_models():
    current = {name: value + 1000 for name, value in tensors(0).items()}
    source = torch.Generator().manual_seed(1)
    parts = []
    for place in range(6):
        held = {
            name: value + 1e-3 * (place + 1) * torch.randn(value.shape, generator=source)
            for name, value in current.items()
        }
        parts.append(contribution(place, held=held))
    gathered = Gathered(current, PARTS, parts)
    scores = krum_loop(gathered, 1)
    chosen = parts[scores.index(min(scores))].load()
    found, _ = strategy("krum", malicious=1)(gathered)
    assert all(torch.equal(found[name], chosen[name]) for name in SHAPES)


def test_krum_leaves_out_a_site_that_lies():
    parts = [
        contribution(place, held={k: v + 0.01 * place for k, v in tensors(1).items()}) for place in range(4)
    ]
    liar = contribution(9, 10**6, held={name: torch.full(shape, 1e6) for name, shape in SHAPES.items()})
    found, _ = strategy("krum", malicious=1)(Gathered(tensors(0), PARTS, [liar, *parts]))
    assert all(value.abs().max() < 10 for value in found.values())


@pytest.mark.parametrize(("malicious", "needed"), [(0, 3), (1, 5), (2, 7)])
def test_krum_needs_two_sites_more_than_twice_the_malicious(malicious, needed):
    step = strategy("krum", malicious=malicious)
    parts = [contribution(place) for place in range(needed)]
    step(Gathered(tensors(0), PARTS, parts))
    with pytest.raises(RunError, match=f"at least {needed} sites, found {needed - 1}"):
        step(Gathered(tensors(0), PARTS, parts[1:]))


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 99))
def test_points_have_the_distances_of_the_changes(sites, width, seed):
    source = torch.Generator().manual_seed(seed)
    current = {"w": torch.randn(width, generator=source), "v": torch.randn(2, 2, generator=source)}
    sent = [
        {"w": torch.randn(width, generator=source), **({"v": torch.ones(2, 2)} if place % 2 else {})}
        for place in range(sites)
    ]
    gram = changes_gram(current, sent)
    points = points_of(gram)
    models = [
        torch.cat([each.get(name, value).reshape(-1).double() for name, value in current.items()])
        for each in sent
    ]
    wanted = torch.cdist(
        torch.stack(models), torch.stack(models), compute_mode="donot_use_mm_for_euclid_dist"
    )
    origin = torch.cat([value.reshape(-1).double() for value in current.values()])
    changes = torch.stack(models) - origin
    torch.testing.assert_close(gram, changes @ changes.T)
    found = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["fedmedian", "krum", "trimmed-mean"])
def test_flower_does_not_tell_of_every_piece(name, caplog):
    caplog.set_level(logging.INFO)
    strategy(name)(Gathered(tensors(0), PARTS, [contribution(place) for place in range(3)]))
    assert [record for record in caplog.records if record.name == "flwr"] == []
    logging.getLogger("flwr").info("still told")
    assert logging.getLogger("flwr").filters == []
