from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmare.models.batch import Batch
from mmare.models.hiding.shapley import MOST_MODALITIES, explain_modalities, shapley_values
from mmare.models.registry import build_model
from tests.mmare.models.examples import a_batch, a_study, generator, patterns

WIDTHS = (8, 8, 5, 3)
PRIOR = torch.tensor([0.7, 0.3])


def softmax(logits):
    return logits.softmax(dim=1)


def games(players, seed):
    return torch.randn(3, 2**players, 2, generator=generator(seed), dtype=torch.float64)


def by_permutations(value, players):
    """The definition: what a player adds to those before, averaged over all orders of joining."""
    shares = dict.fromkeys(players, 0.0)
    orders = list(permutations(players))
    for order in orders:
        for place, player in enumerate(order):
            gain = value(frozenset(order[: place + 1])) - value(frozenset(order[:place]))
            shares[player] = shares[player] + gain / len(orders)
    return shares


def explained(model, batch):
    with torch.no_grad():
        whole = softmax(model(batch))
    return whole, explain_modalities(model, batch, whole, PRIOR, softmax)


@pytest.fixture(scope="module")
def model():
    return build_model(a_study(WIDTHS, width=8)).eval()


@given(players=st.integers(1, 5), seed=st.integers(0, 99))
def test_values_are_the_average_over_all_orders(players, seed):
    values = games(players, seed)
    found = shapley_values(values)
    for game, shares in zip(values, found, strict=True):
        wanted = by_permutations(lambda who, game=game: game[sum(2**one for one in who)], range(players))
        for player, share in wanted.items():
            torch.testing.assert_close(shares[player], share)


@given(players=st.integers(1, 5), seed=st.integers(0, 99))
def test_values_are_efficient_and_linear(players, seed):
    one, other = games(players, seed), games(players, seed + 100)
    torch.testing.assert_close(shapley_values(one).sum(dim=1), one[:, -1] - one[:, 0])
    torch.testing.assert_close(shapley_values(one) + shapley_values(other), shapley_values(one + other))


@given(players=st.integers(2, 5), seed=st.integers(0, 99), dummy=st.integers(0, 4))
def test_a_dummy_gets_what_it_adds_alone(players, seed, dummy):
    player = dummy % players
    values, alone = games(players, seed), torch.tensor([0.5, -0.5], dtype=torch.float64)
    coalitions = torch.arange(2**players)
    inside = (coalitions & 2**player) > 0
    values[:, inside] = values[:, coalitions[inside] - 2**player] + alone
    torch.testing.assert_close(shapley_values(values)[:, player], alone.expand(3, 2))


@given(players=st.integers(2, 5), seed=st.integers(0, 99))
def test_players_who_may_be_exchanged_get_the_same(players, seed):
    values = games(players, seed)
    coalitions = torch.arange(2**players)
    first, second = coalitions & 1, (coalitions >> 1) & 1
    exchanged = coalitions - first - 2 * second + 2 * first + second
    found = shapley_values((values + values[:, exchanged]) / 2)
    torch.testing.assert_close(found[:, 0], found[:, 1])


def test_modalities_are_hidden_in_the_model_itself(model):
    """Every pattern of presence at once, against the definition with a forward pass per coalition."""
    batch = a_batch(WIDTHS, patterns(len(WIDTHS)))
    whole, found = explained(model, batch)
    for row, there in enumerate(batch.present):
        single = tuple(part[row : row + 1] for part in batch.embedding)

        def value(who, single=single):
            if not who:
                return PRIOR
            visible = torch.tensor([[slot in who for slot in range(len(WIDTHS))]])
            with torch.no_grad():
                return softmax(model(Batch(single, visible)))[0]

        wanted = by_permutations(value, there.nonzero().flatten().tolist())
        for slot in range(len(WIDTHS)):
            share = wanted.get(slot, torch.zeros(2)).double()
            torch.testing.assert_close(found[row, slot], share, rtol=0, atol=1e-6)
    assert bool((found[~batch.present] == 0).all())
    torch.testing.assert_close(found.sum(dim=1), whole.double() - PRIOR.double(), rtol=0, atol=1e-12)


def test_a_modality_that_the_model_ignores_gets_nothing():
    batch = a_batch(WIDTHS, patterns(len(WIDTHS)))

    def deaf(seen):
        kept = seen.present.clone()
        kept[:, 1] = False
        return kept.sum(dim=1, keepdim=True) * torch.tensor([[0.0, 0.5]]) + PRIOR.log()

    _, found = explained(deaf, batch)
    assert bool((found[:, 1] == 0).all())
    assert bool((found[batch.present[:, 0], 0, 1] > 0).all())


def test_too_many_modalities_are_refused():
    many = MOST_MODALITIES + 1
    batch = a_batch((1,) * many, torch.ones(1, many, dtype=torch.bool))
    with pytest.raises(ValueError, match="11 modalities have too many subsets, expected 10 at most"):
        explain_modalities(lambda _: PRIOR, batch, PRIOR[None], PRIOR, softmax)
