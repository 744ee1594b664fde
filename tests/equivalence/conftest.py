import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """As the engine computes, whatever ran before: sums of more threads are other bits."""
    torch.set_num_threads(1)
