"""How far tests look: a few examples, and one case of a costly test, by default; all of them in CI."""

import os

import pytest
from hypothesis import settings

FEW = 5
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")  # or "ci"


def examples(most):
    """Settings of a test whose examples are costly or many: ``most`` of them in CI."""
    return settings(max_examples=most if PROFILE == "ci" else min(most, FEW))


def first_quick(*cases):
    """Parameters of a costly test: its first case by default, the others among the slow tests."""
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*values[0]), *(pytest.param(*each, marks=pytest.mark.slow) for each in values[1:])]
