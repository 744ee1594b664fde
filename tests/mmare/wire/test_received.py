import hashlib

import torch

from mmare.wire.received import digest_of, flat_of


def test_what_follows_from_a_payload_is_made_once_and_of_that_payload():
    one, other = bytes([1, 2, 3]), bytes([4, 5, 6])
    first = flat_of(one)
    assert first.tolist() == [1, 2, 3]
    assert flat_of(one) is first
    assert digest_of(one) == hashlib.sha256(one).digest()
    assert digest_of(other) == hashlib.sha256(other).digest()
    assert torch.equal(flat_of(other), torch.tensor([4, 5, 6], dtype=torch.uint8))
    assert digest_of(one) == hashlib.sha256(one).digest()
