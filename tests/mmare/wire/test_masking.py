import secrets

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmare.wire.masking import (
    LARGEST,
    MaskError,
    context_of,
    from_fixed,
    join_shares,
    majority,
    mask,
    open_share,
    own_seed,
    public_key,
    seal_share,
    split_seed,
    to_fixed,
    unmask,
)
from mmare.wire.messages import Split
from mmare.wire.sums import evaluation_layout
from tests.federations import tiny_study

KEYS = {f"site-{index}": secrets.token_bytes(32) for index in range(8)}


def group(sites):
    roster = {site: public_key(KEYS[site]) for site in sites}
    return roster, context_of("hash", "run", "round/1", roster)


@given(
    numbers=st.lists(st.lists(st.floats(-LARGEST, LARGEST), min_size=3, max_size=3), min_size=3, max_size=8)
)
def test_the_masked_sum_is_the_plain_sum_bit_for_bit(numbers):
    values = {site: to_fixed(torch.tensor(row)) for site, row in zip(KEYS, numbers, strict=False)}
    roster, context = group(values)
    masked = [mask(KEYS[site], site, roster, context, steps) for site, steps in values.items()]
    seeds = {site: own_seed(KEYS[site], context) for site in values}
    assert torch.equal(unmask(torch.stack(masked).sum(0), seeds), torch.stack(list(values.values())).sum(0))


@given(kept=st.sets(st.integers(0, 6), max_size=6))
def test_without_one_site_or_one_seed_the_sum_is_noise(kept):
    sites = list(KEYS)[:7]
    roster, context = group(sites)
    zeros = torch.zeros(200, dtype=torch.int64)
    masked = [mask(KEYS[site], site, roster, context, zeros) for site in sites]
    seeds = {site: own_seed(KEYS[site], context) for site in sites}
    some = sum((masked[index] for index in kept), torch.zeros(200, dtype=torch.int64))
    opened = unmask(some, {sites[index]: seeds[sites[index]] for index in kept})
    if kept:
        assert opened.double().std() > 2.0**60  # uniform over 2**64: 2**62.2
    assert unmask(sum(masked), dict(list(seeds.items())[1:])).double().std() > 2.0**60


def test_a_mask_depends_on_all_that_it_is_for():
    roster, context = group(list(KEYS)[:3])
    others = [
        context_of("other", "run", "round/1", roster),
        context_of("hash", "other", "round/1", roster),
        context_of("hash", "run", "round/2", roster),
        context_of("hash", "run", "round/1", {**roster, "site-9": "00"}),
    ]
    steps = torch.zeros(4, dtype=torch.int64)
    masks = {
        tuple(mask(KEYS["site-0"], "site-0", roster, each, steps).tolist()) for each in [context, *others]
    }
    assert len(masks) == len(others) + 1


@given(sites=st.integers(3, 9), extra=st.integers(0, 8))
def test_a_majority_of_shares_opens_a_seed_and_fewer_do_not(sites, extra):
    names = [f"s{index}" for index in range(sites)]
    seed = secrets.token_bytes(16)
    shares = split_seed(seed, names, majority(sites))
    enough = names[-min(sites, majority(sites) + extra) :]
    assert join_shares({name: shares[name] for name in enough}, names) == seed
    fewer = names[: majority(sites) - 1]
    assert join_shares({name: shares[name] for name in fewer}, names) != seed


def test_a_share_opens_at_its_recipient_for_its_sum_only():
    (_, one), (_, two), (_, other) = list(KEYS.items())[:3]
    sealed = seal_share(one, public_key(two), b"sum", b"0123456789abcdef")
    assert open_share(two, public_key(one), b"sum", sealed) == b"0123456789abcdef"
    for private, sender, context, text in (
        (other, public_key(one), b"sum", sealed),
        (two, public_key(other), b"sum", sealed),
        (two, public_key(one), b"another", sealed),
        (two, public_key(one), b"sum", sealed[:-2] + "00"),
        (two, public_key(one), b"sum", "no hex"),
    ):
        with pytest.raises(MaskError):
            open_share(private, sender, context, text)


def test_patterns_of_many_modalities_are_left_out_of_the_sum():
    modality = {"kind": "features", "width": 2, "scaling": "none"}
    few, many = (
        tiny_study(modality=[{"name": f"m{index}", **modality} for index in range(count)]) for count in (8, 9)
    )
    lengths = [evaluation_layout(study, [Split.TEST], patterns=True).length for study in (few, many)]
    assert lengths[0] > 255 * lengths[1]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), LARGEST * 1.01])
def test_a_number_that_could_overflow_is_refused(number):
    with pytest.raises(MaskError):
        to_fixed(torch.tensor([0.0, number], dtype=torch.float64))


def test_fixed_point_keeps_seven_digits_behind_the_point():
    values = torch.tensor([1 / 3, -2.5e-7, 1e6 + 1e-6], dtype=torch.float64)
    assert (from_fixed(to_fixed(values)) - values).abs().max() <= 2.0**-25


@pytest.mark.parametrize("key", ["", "00" * 31, "zz" * 32, "00" * 32])
def test_a_public_key_that_is_none_is_refused(key):
    roster, context = group(list(KEYS)[:2])
    with pytest.raises(MaskError):
        mask(KEYS["site-0"], "site-0", {**roster, "odd": key}, context, torch.zeros(1, dtype=torch.int64))
