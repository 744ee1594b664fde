"""Whoever answers first, by whichever thread: the same bits."""

import threading
from itertools import pairwise, permutations

import pytest

from mmare.wire.messages import Request, decode
from tests.federations import SITES, events, outcome, run_nodes, tiny_federation, while_training
from tests.properties import first_quick

SHORT = ("training.rounds=3",)


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    return tiny_federation(tmp_path_factory.mktemp("federation") / "fed")


@pytest.fixture(scope="module")
def quiet(federation, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "quiet"
    run_nodes(federation, out, settings=SHORT)
    return out


def answering_in(order):
    """Faults that hold an update back until the server has taken that of the site before, and a listener."""
    taken = {(number, site): threading.Event() for number in (1, 2, 3) for site in SITES}

    def listen(event):
        if event["event"] == "site_update" and event["train_loss"] is not None:
            taken[event["round"], event["site"]].set()

    def after(before):
        def fault(site, header, payload):
            answer = site(header, payload)
            assert taken[decode(Request, header).round, before].wait(20)
            return answer

        return while_training(fault)

    return {SITES.index(site): after(before) for before, site in pairwise(order)}, listen


def replies(out):
    """Sites in the order in which their updates of the second round came."""
    found = [event for event in events(out, "site_update") if event["train_loss"] is not None]
    return [event["site"] for event in found if event["round"] == 2]


@pytest.mark.parametrize("order", first_quick(*((order,) for order in permutations(SITES) if order != SITES)))
def test_the_order_of_replies_does_not_matter(federation, quiet, tmp_path, order):
    faults, listen = answering_in(order)
    run_nodes(
        federation, tmp_path / "run", settings=SHORT, faults=faults, listeners=(listen,), workers=len(SITES)
    )
    assert tuple(replies(tmp_path / "run")) == order
    assert outcome(tmp_path / "run") == outcome(quiet)


def test_the_order_of_nodes_does_not_matter(federation, quiet, tmp_path):
    run_nodes(federation, tmp_path / "run", settings=SHORT, reverse=True)
    assert outcome(tmp_path / "run") == outcome(quiet)


@pytest.mark.slow
def test_running_again_gives_the_same_bits(federation, quiet, tmp_path):
    run_nodes(federation, tmp_path / "run", settings=SHORT)
    assert outcome(tmp_path / "run") == outcome(quiet)


@pytest.mark.slow
def test_another_seed_gives_other_bits(federation, quiet, tmp_path):
    run_nodes(federation, tmp_path / "run", settings=(*SHORT, "study.seed=4"))
    assert outcome(tmp_path / "run")["last"] != outcome(quiet)["last"]


@pytest.mark.slow
def test_sites_side_by_side_share_models_without_mixing_them(federation, quiet, tmp_path):
    run_nodes(federation, tmp_path / "run", settings=SHORT, workers=3)
    assert outcome(tmp_path / "run") == outcome(quiet)
