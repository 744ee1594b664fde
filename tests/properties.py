"""How far property tests look: a few examples by default, all that they ask for in CI."""

import os

from hypothesis import settings

FEW = 5
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")  # or "ci"


def examples(most):
    """Settings of a test whose examples are costly or many: ``most`` of them in CI."""
    return settings(max_examples=most if PROFILE == "ci" else min(most, FEW))
