"""Studies with differential privacy that the tests share."""

from tests.federations import tiny_study

SETTINGS = {  # what such a study needs beside dp
    "modality": [
        {"name": "ct", "kind": "features", "width": 8, "scaling": "l2"},
        {"name": "wsi", "kind": "features", "width": 16, "scaling": "l2"},
    ],
    "training": {"rounds": 2, "batch_size": 8, "learning_rate": 0.01, "noise_probability": 0.0},
}


def private_study(epsilon=8.0, **sections):
    """A study whose rounds are few enough for the tiny sites; of other sections as `tiny_study`."""
    training = {**SETTINGS["training"], **sections.pop("training", {})}
    privacy = {"min_count": 5, "dp": {"epsilon": epsilon, "delta": 1e-3}, **sections.pop("privacy", {})}
    return tiny_study(**{**SETTINGS, **sections, "training": training, "privacy": privacy})
