import pytest
import torch

from mmare.models.batch import Batch

PRESENT = torch.tensor([[True, False], [True, True]])


def parts(patients=2, dtype=torch.float32):
    return torch.zeros(patients, 3, dtype=dtype), torch.zeros(patients, 5, dtype=dtype)


def test_a_batch_knows_its_size():
    batch = Batch(parts(), PRESENT, torch.tensor([0, 1]))
    assert len(batch) == 2
    assert batch.widths == (3, 5)
    assert Batch(parts(), PRESENT).label is None


@pytest.mark.parametrize(
    ("embedding", "present", "label", "words"),
    [
        pytest.param(parts(), PRESENT.float(), None, "present must be bool", id="float mask"),
        pytest.param(parts(), PRESENT[:, :1], None, r"shape \(2, 2\), found \(2, 1\)", id="a slot short"),
        pytest.param(parts(3), PRESENT, None, r"shape \(3, 2\), found \(2, 2\)", id="a patient short"),
        pytest.param((parts()[0], parts(3)[1]), PRESENT, None, "every embedding", id="uneven parts"),
        pytest.param((parts()[0], torch.zeros(2)), PRESENT, None, "every embedding", id="no width"),
        pytest.param(parts(dtype=torch.int64), PRESENT, None, "floating point", id="whole numbers"),
        pytest.param(parts(), PRESENT & PRESENT[:, 1:], None, "at least one modality", id="nothing there"),
        pytest.param(parts(), PRESENT, torch.tensor([0.0, 1.0]), "label must be int64", id="float label"),
        pytest.param(parts(), PRESENT, torch.tensor([0]), r"label must be int64 of shape \(2,\)", id="label"),
        pytest.param((), torch.zeros(0, 2, dtype=torch.bool), None, "present must be", id="no modalities"),
    ],
)
def test_inconsistent_tensors_are_refused(embedding, present, label, words):
    with pytest.raises(ValueError, match=words):
        Batch(embedding, present, label)
