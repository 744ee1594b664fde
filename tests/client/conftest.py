"""Random weights of encoders are drawn once for all tests: it takes longer than encoding with them."""

from functools import cache

import pytest

from client.encoders import med3d


@pytest.fixture(scope="session", autouse=True)
def _drawn_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(med3d, "random_med3d", cache(med3d.random_med3d))
        yield
