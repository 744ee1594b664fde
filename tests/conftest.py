"""For every test: one thread, as sites compute by default, and no deadline on property tests.

Several test processes on a few cores spend most of their time in each other's threads otherwise, and sums of
more threads are other bits.
"""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch

from hypothesis import settings

from tests.properties import FEW, PROFILE

settings.register_profile("quick", deadline=None, max_examples=FEW)
settings.register_profile("ci", deadline=None, max_examples=40)
settings.load_profile(PROFILE)


def pytest_collection_finish():
    """What imports and collection made stays: do not look through it again and again for garbage."""
    gc.freeze()
