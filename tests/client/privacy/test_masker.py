import hashlib
from dataclasses import replace

import pytest
import torch

from client.privacy.masker import KEY_FILE, Masker
from mmare.errors import SiteCode, SiteError
from mmare.wire.masking import join_shares
from mmare.wire.messages import Request, SecureSum, Task
from tests.federations import tiny_study

STUDY = tiny_study(privacy={"secure_sum": True, "min_count": 0}, federation={"min_sites": 3})
VALUE = torch.tensor([1.0, 2.0])
SITES = ("ash", "elm", "fir", "oak", "yew")


@pytest.fixture
def sites(tmp_path):
    return {site: Masker(site, tmp_path / site) for site in SITES}


def request_to(sites, names=SITES, **changes):
    roster = {name: sites[name].public_key for name in names}
    fields = {"round": 1, "sum": SecureSum.ROUND, "roster": roster, **changes}
    return Request(Task.TRAIN, "run", STUDY.to_dict(), **fields)


def parts_of(sites, request):
    return {name: sites[name].protect(request, STUDY, VALUE) for name in request.roster}


def openings(sites, names):
    """Per site, what asks it to open the sum of the named ones."""
    request = request_to(sites, names)
    parts = parts_of(sites, request)
    wanted = Request(Task.UNMASK, "run", request.study, round=1, sum=request.sum, roster=request.roster)
    return {
        site: replace(wanted, shares={sender: part.shares[site] for sender, (part, _) in parts.items()})
        for site in names
    }


def opening(sites, names):
    return openings(sites, names)["ash"]


def refused(call, *arguments: object):
    with pytest.raises(SiteError) as caught:
        call(*arguments)
    assert caught.value.code is SiteCode.SUM


def test_another_value_of_one_answer_is_never_masked_even_after_a_restart(sites, tmp_path):
    request = request_to(sites)
    first = sites["ash"].protect(request, STUDY, VALUE)[1]
    again = Masker("ash", tmp_path / "ash")
    assert again.protect(request, STUDY, VALUE)[1] == first
    for other in (request, request_to(sites, SITES[:4])):
        refused(again.protect, other, STUDY, VALUE + 1e-6)
    again.protect(request_to(sites, round=2), STUDY, VALUE + 1)


def test_a_smaller_group_gets_the_same_value_under_another_mask(sites):
    masked = {sites["ash"].protect(request_to(sites, names), STUDY, VALUE)[1] for names in (SITES, SITES[:4])}
    assert len(masked) == 2


def test_only_one_group_of_an_answer_is_opened(sites):
    first, second = opening(sites, SITES), opening(sites, SITES[:4])
    opened = sites["ash"].reveal(first, STUDY)
    assert sites["ash"].reveal(first, STUDY) == opened
    refused(sites["ash"].reveal, second, STUDY)


def test_shares_ask_for_a_majority_of_the_largest_group_that_was_named(sites):
    """Two groups cannot both be opened: of two majorities one site is in both."""
    opening(sites, SITES)
    names = sorted(SITES[:3])
    wanted = openings(sites, names)
    shares = {site: bytes.fromhex(sites[site].reveal(wanted[site], STUDY).shares["ash"]) for site in names}
    digests = [
        hashlib.sha256(join_shares({site: shares[site] for site in names[:count]}, names)).hexdigest()
        for count in (2, 3)
    ]
    digest = sites["ash"].protect(request_to(sites, names), STUDY, VALUE)[0].seed_digest
    assert [found == digest for found in digests] == [False, True]


@pytest.mark.parametrize(
    "change",
    [
        lambda roster: dict(list(roster.items())[:2]),
        lambda roster: {**roster, "ash": roster["elm"]},
        lambda roster: {name: key for name, key in roster.items() if name != "ash"},
        lambda roster: {"ash": roster["ash"], "elm": roster["elm"], "fir": roster["elm"]},
        lambda roster: {**roster, "odd": "no key"},
    ],
    ids=["two-sites", "another-key", "without-itself", "one-site-twice", "no-key"],
)
def test_a_group_that_does_not_protect_is_refused(sites, change):
    request = request_to(sites)
    odd = request_to(sites, roster=change(dict(request.roster)))
    refused(sites["ash"].protect, odd, STUDY, VALUE)


def test_a_hospital_that_confirmed_keys_takes_part_with_these_only(sites, tmp_path):
    request = request_to(sites)
    confirmed = {name: key for name, key in request.roster.items() if name != "ash"}
    Masker("ash", tmp_path / "ash", confirmed).protect(request, STUDY, VALUE)
    for peers in (dict(list(confirmed.items())[1:]), {**confirmed, "elm": confirmed["fir"]}):
        refused(Masker("ash", tmp_path / "ash", peers).protect, request, STUDY, VALUE)


def test_nothing_is_opened_that_was_not_masked_here(sites):
    wanted = opening(sites, SITES)
    refused(sites["ash"].reveal, replace(wanted, round=2), STUDY)
    refused(sites["ash"].reveal, replace(wanted, shares={}), STUDY)
    swapped = {**wanted.shares, "elm": wanted.shares["fir"]}
    refused(sites["ash"].reveal, replace(wanted, shares=swapped), STUDY)


def test_the_key_is_the_worker_s_alone(sites, tmp_path):
    assert sites["ash"].public_key == Masker("ash", tmp_path / "ash").public_key
    path = tmp_path / "ash" / "secure-sums" / KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
