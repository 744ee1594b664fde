from functools import partial

import numpy as np
import pytest
import torch

from mmare.errors import StudyError
from server.aggregation import Contribution, weighted_mean
from server.strategy import STRATEGIES, fedavg, strategy_of


def tensors_of(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(4, 3, generator=generator),
        "moment": torch.randn(5, generator=generator, dtype=torch.float64),
        "steps": torch.randint(-100, 100, (2, 2), generator=generator),
    }


def contribution(site, samples=1, tensors=None):
    held = tensors_of(sum(site.encode())) if tensors is None else tensors
    return Contribution(site, samples, {}, lambda: held)


def refuses_to_load():
    raise AssertionError("a site of weight zero was read")


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


WEIGHTS = {"a": 3, "b": 10, "c": 1}


def test_the_mean_is_numpys():
    parts = [contribution(site) for site in WEIGHTS]
    found = weighted_mean(parts, WEIGHTS)
    for name in ("weight", "moment", "steps"):
        stack = np.stack([part.load()[name].numpy() for part in parts]).astype(np.float64)
        wanted = np.average(stack, axis=0, weights=list(WEIGHTS.values()))
        wanted = np.rint(wanted) if name == "steps" else wanted
        np.testing.assert_allclose(found[name].numpy(), wanted, rtol=1e-6)


def test_dtypes_are_kept():
    found = weighted_mean([contribution(site) for site in WEIGHTS], WEIGHTS)
    dtypes = {name: value.dtype for name, value in found.items()}
    assert dtypes == {"weight": torch.float32, "moment": torch.float64, "steps": torch.int64}


@pytest.mark.parametrize("order", [(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_the_order_of_contributions_does_not_matter_bit_for_bit(order):
    parts = [contribution(site) for site in WEIGHTS]
    assert same(weighted_mean(parts, WEIGHTS), weighted_mean([parts[index] for index in order], WEIGHTS))


@pytest.mark.parametrize("scale", [0.001, 7, 1e12])
def test_the_scale_of_weights_does_not_matter(scale):
    parts = [contribution(site) for site in WEIGHTS]
    wanted = weighted_mean(parts, WEIGHTS)
    found = weighted_mean(parts, {site: weight * scale for site, weight in WEIGHTS.items()})
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


def test_a_site_of_weight_zero_is_not_read():
    parts = [contribution("a"), Contribution("b", 0, {}, refuses_to_load)]
    assert same(weighted_mean(parts, {"a": 2, "b": 0}), tensors_of(ord("a")))


def test_one_contribution_comes_back_bit_for_bit():
    odd = {"weight": torch.tensor([0.1, -0.0, 1e-45, 3.4e38]), "steps": torch.tensor([2**40 + 1, -7])}
    found = weighted_mean([contribution("a", tensors=odd)], {"a": 0.3})
    for name, value in odd.items():
        assert found[name].numpy().tobytes() == value.numpy().tobytes()


def test_contributions_are_not_changed():
    held = tensors_of(1)
    weighted_mean([contribution("a", tensors=held), contribution("b")], {"a": 1, "b": 2})
    assert same(held, tensors_of(1))


@pytest.mark.parametrize(
    ("sites", "weights"),
    [
        pytest.param((), {}, id="no-contribution"),
        pytest.param(("a", "b"), {"a": 0, "b": 0}, id="no-weight"),
    ],
)
def test_nothing_to_average_is_refused(sites, weights):
    with pytest.raises(ValueError, match="positive weight"):
        weighted_mean([Contribution(site, 0, {}, refuses_to_load) for site in sites], weights)


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

    parts = [Contribution(str(index), 1, {}, partial(Tracked, str(index))) for index in range(5)]
    weighted_mean(parts, {str(index): 1 for index in range(5)})
    assert len(most) == 5
    assert max(most) <= 2  # the one that is read while the name still holds the one before


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_leaves_a_model_that_all_sites_returned_alone(name):
    current = {**tensors_of(5), "kept": torch.tensor([9.0])}
    parts = [contribution(site, samples, tensors_of(5)) for site, samples in WEIGHTS.items()]
    found = strategy_of(name)(current, parts)
    assert found.keys() == current.keys()
    for key, value in current.items():
        torch.testing.assert_close(found[key], value)


def test_fedavg_weighs_by_samples_and_keeps_what_no_site_returns():
    current = {"w": torch.tensor([100.0]), "scaling": torch.tensor([2.0])}
    parts = [
        contribution("a", 1, {"w": torch.tensor([1.0])}),
        contribution("b", 3, {"w": torch.tensor([5.0])}),
    ]
    assert same(fedavg(current, parts), {"w": torch.tensor([4.0]), "scaling": torch.tensor([2.0])})
    assert current["w"].item() == 100.0


def test_an_unknown_strategy_is_named_with_the_known_ones():
    with pytest.raises(StudyError, match=r"strategy must be one of .*fedavg.*, found 'fedsum'"):
        strategy_of("fedsum")
