"""What every strategy keeps; a new strategy is tested here without being asked."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmare.errors import RunError, StudyError
from mmare.study.specs import FederationSpec, TrainingSpec
from mmare.study.strategy_options import STRATEGY_OPTIONS, FedAvgOptions
from server.aggregation.mean import Contribution
from server.aggregation.server_optimizers import fedsgd
from server.aggregation.strategies import STRATEGIES, Gathered, strategy_of
from server.store.checkpoint import read_checkpoint, write_checkpoint
from tests.properties import examples

MEANS = sorted(name for name, options in STRATEGY_OPTIONS.items() if issubclass(options, FedAvgOptions))
VARIANTS = {
    "default": {},
    "all-options": {"weighting": "exposure", "exponent": 0.5, "damping": 20.0, "gap_step": 1.0},
}
CASES = [
    pytest.param(name, options, id=f"{name}-{variant}")
    for name in sorted(STRATEGIES)
    for variant, options in VARIANTS.items()
    if name in MEANS or not options
]
STEPPING = {
    "fedadam",
    "fedavgm",
    "fedsgd",
    "fedyogi",
}  # they go beyond what sites sent; compared with Flower's elsewhere
EVERY = pytest.mark.parametrize(("name", "options"), CASES)
BETWEEN = pytest.mark.parametrize(
    ("name", "options"), [case for case in CASES if case.values[0] not in STEPPING]
)
WHOLE = pytest.mark.parametrize(
    ("name", "options"),
    [case for case in CASES if case.values[0] not in STEPPING and "damping" not in case.values[1]],
)
SITES = ("ash", "birch", "cedar", "elm", "fir")  # five: the trimmed mean cuts, krum chooses
PARTS = {
    "head": ("bias", "deep.weight", "count"),
    "ct": ("ct.weight",),
    "column": ("g[:,1]",),
    "idle": ("i",),
}
STEADY = TrainingSpec(weight_decay=0.0)  # a gradient of zero moves nothing
SENT = ("head", "ct", "column")  # of all; idle is trained nowhere


def strategy(name, options=()):
    return strategy_of(FederationSpec(strategy=name, options=dict(options)), lambda _: fedsgd(STEADY))


def source_of(seed):
    return torch.Generator().manual_seed(seed)


def tensors(seed):
    """As of a model: a scalar, a column of a wider weight and whole numbers among them."""
    source = source_of(seed)
    return {
        "bias": torch.randn((), generator=source),
        "deep.weight": torch.randn(3, 4, generator=source, dtype=torch.float64),
        "count": torch.randint(-50, 50, (3,), generator=source),
        "ct.weight": torch.randn(7, 2, generator=source),
        "g[:,1]": torch.randn(5, 2, generator=source)[:, 1],
        "i": torch.randn(2, generator=source),
    }


def contribution(site, seed, blocks=SENT, samples=None, held=None):
    source = source_of(seed + 1000 * sum(site.encode()))
    drawn = int(torch.randint(5, 40, (), generator=source))
    samples = drawn if samples is None else samples
    exposures = {
        block: int(torch.randint(1, 40, (), generator=source)) if block in blocks else 0 for block in PARTS
    }
    gap = float(torch.randn((), generator=source))
    values = tensors(seed + sum(site.encode())) if held is None else held
    sent = {name: values[name] for block in blocks for name in PARTS[block]}
    return Contribution(site, samples, exposures, tuple(blocks), lambda: sent, gap)


def a_round(seed=0, sites=SITES, state=None, current=None):
    """Every site sends its head; the other blocks are sent by some."""
    source = source_of(seed)
    parts = []
    for site in sites:
        some = [block for block in SENT if block == "head" or torch.rand((), generator=source) < 0.6]
        parts.append(contribution(site, seed, some))
    return Gathered(tensors(seed) if current is None else current, PARTS, parts, state or {})


def bits(found):
    return {name: (value.dtype, value.shape, value.numpy().tobytes()) for name, value in found.items()}


def both(result):
    return tuple(bits(part) for part in result)


def play(step, rounds, between=lambda state: state):
    """Several rounds, each on the model of the one before; returns all results."""
    current, state, results = tensors(0), {}, []
    for number in range(rounds):
        changed, state = step(a_round(number + 1, state=between(state), current=current))
        current = changed
        results.append((changed, state))
    return results


def test_every_strategy_has_options_and_the_other_way_round():
    assert STRATEGIES.keys() == STRATEGY_OPTIONS.keys()


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_an_unknown_option_is_refused_by_name(name):
    with pytest.raises(StudyError, match="'speed'"):
        strategy(name, {"speed": 1})


@EVERY
@examples(5)
@given(order=st.permutations(range(len(SITES))), seed=st.integers(0, 99))
def test_the_order_of_replies_does_not_matter_bit_for_bit(name, options, order, seed):
    gathered = a_round(seed)
    shuffled = replace(gathered, contributions=[gathered.contributions[index] for index in order])
    step = strategy(name, options)
    assert both(step(gathered)) == both(step(shuffled))


@EVERY
@pytest.mark.parametrize("scale", [3, 1000])
def test_the_scale_of_samples_does_not_matter(name, options, scale):
    step = strategy(name, {key: value for key, value in options.items() if key != "damping"})
    gathered = a_round(4)
    scaled = [
        replace(
            each,
            samples=each.samples * scale,
            exposures={block: count * scale for block, count in each.exposures.items()},
        )
        for each in gathered.contributions
    ]
    wanted, found = step(gathered), step(replace(gathered, contributions=scaled))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


@EVERY
def test_a_reply_without_samples_changes_nothing_and_is_not_read(name, options):
    def refuses():
        raise AssertionError("it was read")

    step, gathered = strategy(name, options), a_round(2)
    silent = Contribution("aspen", 0, dict.fromkeys(PARTS, 0), SENT, refuses, gap=99.0)
    more = replace(gathered, contributions=[silent, *gathered.contributions])
    assert both(step(more)) == both(step(gathered))


@EVERY
@pytest.mark.parametrize(
    "contributions", [[], [contribution("ash", 0, samples=0)]], ids=["none", "no-samples"]
)
def test_an_empty_round_is_refused_with_one_sentence(name, options, contributions):
    with pytest.raises(RunError, match=r"^no site sent an update with training samples"):
        strategy(name, options)(Gathered(tensors(0), PARTS, contributions))


@EVERY
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_never_gets_into_the_model(name, options, odd):
    held = {**tensors(1), "ct.weight": torch.full((7, 2), odd)}
    parts = [contribution(site, 1) for site in SITES[1:]]
    gathered = Gathered(tensors(0), PARTS, [contribution("ash", 1, held=held), *parts])
    step = strategy(name, options)
    if name == "trimmed-mean" or (name == "fedmedian" and not math.isnan(odd)):  # it is among what they cut
        changed, state = step(gathered)
        assert all(value.isfinite().all() for value in (*changed.values(), *state.values()))
    else:
        with pytest.raises(RunError, match="not finite"):
            step(gathered)


@EVERY
def test_names_shapes_and_dtypes_are_kept_and_what_comes_in_is_not_changed(name, options):
    gathered = a_round(3)
    held = [each.load() for each in gathered.contributions]
    before = [bits(each) for each in (gathered.current, *held)]
    step = strategy(name, options)
    changed, state = step(gathered)
    assert {key: (value.dtype, value.shape) for key, value in changed.items()} == {
        key: (value.dtype, value.shape) for key, value in gathered.current.items()
    }
    kept = bits(state)
    step(replace(gathered, state=state))
    assert bits(state) == kept
    assert [bits(each) for each in (gathered.current, *held)] == before


@BETWEEN
@examples(10)
@given(seed=st.integers(0, 999), count=st.integers(3, 5))
def test_a_value_lies_between_those_of_the_sites_and_the_one_before(name, options, seed, count):
    gathered = a_round(seed, SITES[:count])
    changed, _ = strategy(name, options)(gathered)
    for block, names in PARTS.items():
        sent = [each.load() for each in gathered.contributions if block in each.blocks]
        for key in names:
            values = torch.stack([gathered.current[key], *(each[key] for each in sent)]).double()
            slack = 1e-12 if changed[key].dtype == torch.float64 else 0.0
            assert (changed[key] >= values.amin(0) - slack).all()
            assert (changed[key] <= values.amax(0) + slack).all()


@EVERY
def test_blocks_that_nobody_sent_stay_bit_for_bit_with_what_is_kept_of_them(name, options):
    step = strategy(name, options)
    _, state = step(a_round(5))
    parts = [contribution(site, 6, ("head",)) for site in SITES]
    gathered = Gathered(tensors(7), PARTS, parts, state)
    changed, after = step(gathered)
    for block, names in PARTS.items():
        if block == "head":
            assert any(bits(changed)[key] != bits(gathered.current)[key] for key in names)
            continue
        assert all(bits(changed)[key] == bits(gathered.current)[key] for key in names)
        kept = [key for key in state if key.split("/", 1)[1] in (block, *names)]
        assert len(kept) >= 2 or name not in STEPPING
        assert all(bits(after)[key] == bits(state)[key] for key in kept)


@pytest.mark.parametrize("name", MEANS)
def test_by_exposure_a_block_that_was_sent_but_exercised_nowhere_stays(name):
    parts = [replace(contribution(site, 1), exposures={**dict.fromkeys(PARTS, 3), "ct": 0}) for site in SITES]
    gathered = Gathered(tensors(0), PARTS, parts)
    changed, state = strategy(name, {"weighting": "exposure", "gap_step": 0.5})(gathered)
    assert bits(changed)["ct.weight"] == bits(gathered.current)["ct.weight"]
    assert bits(changed)["bias"] != bits(gathered.current)["bias"]
    assert all(not value.any() for key, value in state.items() if key.endswith(("/ct", "/ct.weight")))


@EVERY
def test_sites_that_return_the_model_as_it_was_leave_it(name, options):
    current = tensors(5)
    parts = [contribution(site, 3, held=current) for site in SITES]
    changed, _ = strategy(name, options)(Gathered(current, PARTS, parts))
    torch.testing.assert_close(changed, current, rtol=1e-12, atol=1e-11)  # FedSGD's Adam magnifies rounding


@WHOLE
def test_one_site_alone_gets_its_own_tensors_or_a_sentence(name, options):
    current, alone = tensors(0), contribution("ash", 9)
    gathered = Gathered(current, PARTS, [alone])
    if name == "krum":
        with pytest.raises(
            RunError, match="krum with options malicious = 0 needs updates of at least 3 sites"
        ):
            strategy(name)(gathered)
        return
    changed, _ = strategy(name, options)(gathered)
    assert bits(changed) == bits({**current, **alone.load()})


@EVERY
def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(name, options, tmp_path):
    def killed_and_resumed(state):
        write_checkpoint(tmp_path / "round", {"model": torch.zeros(1), **state}, {})
        loaded, _ = read_checkpoint(tmp_path / "round")
        del loaded["model"]
        return loaded

    step = strategy(name, options)
    through = play(step, 4)
    resumed = play(strategy(name, options), 4, killed_and_resumed)
    for one, other in zip(through, resumed, strict=True):
        assert both(one) == both(other)
    states = [state for _, state in through]
    assert all(one.keys() == other.keys() for one, other in itertools.pairwise(states))
    assert bool(states[-1]) == (name in STEPPING or "gap_step" in options)


@EVERY
def test_each_site_is_read_once_at_most(name, options):
    gathered, reads = a_round(8), []

    def counted(each):
        return replace(each, load=lambda: reads.append(each.site) or each.load())

    strategy(name, options)(
        replace(gathered, contributions=[counted(each) for each in gathered.contributions])
    )
    assert sorted(reads) == sorted(SITES)
