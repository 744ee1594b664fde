"""The weighted mean against numpy; what it reads, and what it leaves alone."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.aggregation.mean import BlockWeights, Contribution, to_dtype, weighted_mean

PARTS = {"first": ("weight",), "second": ("moment", "steps")}
EVERY = tuple(PARTS)
WEIGHTS = {"a": 3, "b": 10, "c": 1}


def tensors_of(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(4, 3, generator=generator),
        "moment": torch.randn(5, generator=generator, dtype=torch.float64),
        "steps": torch.randint(-100, 100, (2, 2), generator=generator),
    }


CURRENT = tensors_of(0)


def contribution(site, tensors=None, blocks=EVERY):
    held = tensors_of(sum(site.encode())) if tensors is None else tensors
    return Contribution(site, 1, {}, blocks, lambda: held)


def refuses_to_load():
    raise AssertionError("a site without a say was read")


def mean(contributions, weights=WEIGHTS, stay=0.0):
    return weighted_mean(CURRENT, PARTS, contributions, dict.fromkeys(PARTS, BlockWeights(weights, stay)))


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any),
    st.floats(0, 100),
    st.integers(0, 99),
)
def test_the_mean_is_numpys(counts, stay, seed):
    sites = [chr(ord("a") + index) for index in range(len(counts))]
    parts = [contribution(site, tensors_of(seed + index)) for index, site in enumerate(sites, start=1)]
    found = mean(parts, dict(zip(sites, counts, strict=True)), stay)
    for name, value in CURRENT.items():
        stack = np.stack([part.load()[name].numpy() for part in parts] + [value.numpy()]).astype(np.float64)
        wanted = np.average(stack, axis=0, weights=[*counts, stay])
        if name == "steps":
            assert np.abs(found[name].numpy() - wanted).max() <= 0.5 + 1e-9
        else:
            np.testing.assert_allclose(found[name].numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_dtypes_are_kept():
    found = mean([contribution(site) for site in WEIGHTS])
    assert {name: value.dtype for name, value in found.items()} == {
        "weight": torch.float32,
        "moment": torch.float64,
        "steps": torch.int64,
    }


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_of_contributions_does_not_matter_bit_for_bit(order):
    parts = [contribution(site) for site in WEIGHTS]
    shuffled = {site: WEIGHTS[site] for site in (list(WEIGHTS)[index] for index in order)}
    assert same(mean(parts), mean([parts[index] for index in order], shuffled))


@pytest.mark.parametrize("scale", [0.001, 7, 1e12])
def test_the_scale_of_weights_does_not_matter(scale):
    parts = [contribution(site) for site in WEIGHTS]
    found = mean(parts, {site: weight * scale for site, weight in WEIGHTS.items()}, 5 * scale)
    for name, value in mean(parts, WEIGHTS, 5).items():
        torch.testing.assert_close(found[name], value)


def test_a_site_without_a_say_is_not_read():
    silent = Contribution("b", 0, {}, EVERY, refuses_to_load)
    assert same(mean([contribution("a"), silent], {"a": 2, "b": 0}), tensors_of(ord("a")))
    assert same(mean([contribution("a"), silent], {"a": 2}), tensors_of(ord("a")))


def test_blocks_are_averaged_over_the_sites_that_sent_them():
    parts = [contribution("a", blocks=("first",)), contribution("b", blocks=("second",))]
    weights = {"first": BlockWeights({"a": 1}), "second": BlockWeights({"b": 1})}
    found = weighted_mean(CURRENT, PARTS, parts, weights)
    assert torch.equal(found["weight"], tensors_of(ord("a"))["weight"])
    assert torch.equal(found["moment"], tensors_of(ord("b"))["moment"])
    assert torch.equal(found["steps"], tensors_of(ord("b"))["steps"])


@pytest.mark.parametrize("stay", [0.0, 3.0])
def test_a_block_without_a_say_stays_bit_for_bit(stay):
    odd = torch.tensor([0.1, -0.0, 1e-45, 3.4e38])
    weights = {"all": BlockWeights({"a": 0.0}, stay)}
    parts = [Contribution("a", 1, {}, ("all",), refuses_to_load)]
    found = weighted_mean({"w": odd}, {"all": ("w",)}, parts, weights)
    assert found["w"].numpy().tobytes() == odd.numpy().tobytes()


def test_one_contribution_comes_back_bit_for_bit():
    odd = {"w": torch.tensor([0.1, -0.0, 1e-45, 3.4e38]), "n": torch.tensor([2**40 + 1, -7])}
    current = {name: torch.zeros_like(value) for name, value in odd.items()}
    part = Contribution("a", 1, {}, ("all",), lambda: odd)
    found = weighted_mean(current, {"all": ("w", "n")}, [part], {"all": BlockWeights({"a": 0.3})})
    for name, value in odd.items():
        assert found[name].numpy().tobytes() == value.numpy().tobytes()


def test_what_comes_in_is_not_changed():
    held, current = tensors_of(1), {name: value.clone() for name, value in CURRENT.items()}
    mean([contribution("a", held), contribution("b")], {"a": 1, "b": 2}, 1)
    assert same(held, tensors_of(1))
    assert same(current, CURRENT)


def test_columns_of_a_weight_are_averaged_in_place_of_the_column():
    weight = torch.arange(6.0).view(3, 2)
    sent = {"w[:,1]": torch.tensor([10.0, 20.0, 30.0])}
    part = Contribution("a", 1, {}, ("column",), lambda: sent)
    found = weighted_mean(
        {"w[:,1]": weight[:, 1]}, {"column": ("w[:,1]",)}, [part], {"column": BlockWeights({"a": 1}, 1)}
    )
    assert found["w[:,1]"].tolist() == [5.5, 11.5, 17.5]
    assert torch.equal(weight, torch.arange(6.0).view(3, 2))


def test_only_one_site_is_in_memory_at_a_time():
    alive, most = set(), []

    class Tracked(dict):
        def __init__(self, site) -> None:
            super().__init__(w=torch.ones(2))
            self.site = site
            alive.add(site)
            most.append(len(alive))

        def __del__(self) -> None:
            alive.discard(self.site)

    names = [str(index) for index in range(5)]
    parts = [Contribution(name, 1, {}, ("all",), partial(Tracked, name)) for name in names]
    weights = {"all": BlockWeights(dict.fromkeys(names, 1))}
    weighted_mean({"w": torch.zeros(2)}, {"all": ("w",)}, parts, weights)
    assert most == [1] * 5


def test_whole_numbers_are_rounded_and_floats_are_not():
    values = torch.tensor([1.5, 2.5, -0.6], dtype=torch.float64)
    assert to_dtype(values, torch.int32).tolist() == [2, 2, -1]
    assert torch.equal(to_dtype(values, torch.float32), values.float())
