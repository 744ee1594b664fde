import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """As sites compute by default; tiny models on a busy machine are slower with more."""
    torch.set_num_threads(1)
