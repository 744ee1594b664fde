"""A folder in the layout of a MONAI bundle around a model package: metadata, network data format, inference.

https://docs.monai.io/en/stable/mb_specification.html. The configuration reads the package, so that its seal
is checked whenever the bundle is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mmare.package.sealed import NOTICE, as_json, zipped

if TYPE_CHECKING:
    from mmare.package.package import Package

__all__ = ["bundle_files"]

_MONAI: Final = "1.6.1"  # whose layout this is
_PACKAGE: Final = "models/package.zip"
_INFERENCE: Final = {
    "imports": ["$from pathlib import Path", "$from mmare.package.package import read_package"],
    "bundle_root": ".",
    "package": f"$read_package(Path(@bundle_root) / '{_PACKAGE}')",
    "network_def": {
        "_target_": "mmare.models.hiding.masked.MaskedModel",
        "model": "$@package.model",
        "calibration": "$@package.calibration",
    },
}


def bundle_files(package: Package) -> dict[str, bytes]:
    """The bundle's files by path."""
    return {
        "configs/metadata.json": as_json(_metadata(package)),
        "configs/inference.json": as_json(_INFERENCE),
        "docs/README.md": package.sealed.files["README.md"],
        _PACKAGE: zipped(package.sealed),
    }


def _metadata(package: Package) -> dict[str, Any]:
    study, said, facts = package.study, package.card["statements"], package.facts
    vectors = {
        each.name: {
            "type": "vector",
            "format": "embedding",
            "modality": each.name,
            "num_channels": 1,
            "spatial_shape": [each.width],
            "dtype": "float32",
            "value_range": [],
            "is_patch_data": False,
            "channel_def": {"0": f"{each.encoder}, any values where the modality is absent"},
        }
        for each in study.modalities
    }
    present = {
        "type": "vector",
        "format": "presence",
        "modality": "n/a",
        "num_channels": 1,
        "spatial_shape": [len(study.modalities)],
        "dtype": "bool",
        "value_range": [0, 1],
        "is_patch_data": False,
        "channel_def": {str(slot): each.name for slot, each in enumerate(study.modalities)},
    }
    probabilities = {
        "type": "probabilities",
        "format": "classes",
        "num_channels": len(study.classes),
        "spatial_shape": [],
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": False,
        "channel_def": {str(label): name for label, name in enumerate(study.classes)},
    }
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
        "meta_schema_20240725.json",
        "version": "0.1.0",
        "changelog": {"0.1.0": f"run {facts.run}, package {package.digest}"},
        "monai_version": _MONAI,
        "pytorch_version": facts.versions["torch"],
        "numpy_version": facts.versions["numpy"],
        "required_packages_version": {"federated-mmare": facts.versions["federated-mmare"]},
        "name": study.name,
        "task": f"{' or '.join(study.classes)}, with whichever modalities a patient has",
        "description": said["summary"],
        "authors": said["developer"],
        "copyright": said["licence"],
        "intended_use": f"{said['intended_use']}; {NOTICE}",
        "data_source": f"{len(package.card['training']['rows'])} sites",
        "eval_metrics": {
            name: values[0]
            for name, values in package.card["test"]["pooled"].items()
            if isinstance(values, list)
        },
        "references": [],
        "network_data_format": {
            "inputs": {"present": present, **vectors},
            "outputs": {"pred": probabilities},
        },
    }
