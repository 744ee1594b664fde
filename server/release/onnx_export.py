"""The model as one ONNX graph: embeddings and presence in, calibrated probabilities out."""

from __future__ import annotations

import io
import itertools
import logging
import warnings
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, Any, Final

import torch

from mmare.errors import InputError, RunError
from mmare.models.batch import Batch
from mmare.models.hiding.masked import MaskedModel
from mmare.package.sealed import NOTICE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmare.package.package import Package

__all__ = ["ONNX_FILE", "onnx_model"]

ONNX_FILE: Final = "model.onnx"
PRESENT: Final = "present"  # input: bool, patients x modalities; the others are called as their modalities
OUTPUTS: Final = ("probabilities", "logits")
TOLERANCE: Final = 1e-4  # of a probability: float32 sums in another order
PATIENTS: Final = 3  # drawn per presence pattern


def onnx_model(package: Package) -> bytes:
    """The graph, compared with torch on every presence pattern, on more patients than it was made with.

    Raises:
        InputError: If the extra ``onnx`` is not installed, or the study's model has no such form.
        RunError: If the graph gives other probabilities than torch.
    """
    try:
        import onnxruntime  # noqa: PLC0415 - an extra
        import onnxscript  # noqa: F401, PLC0415 - torch needs it to export
    except ImportError:
        raise InputError("--onnx needs more packages: pip install 'federated-mmare[onnx]'") from None
    model = MaskedModel(package.model, package.calibration).eval()
    present, embedding = _patients(package)
    names = [modality.name for modality in package.study.modalities]
    patients = torch.export.Dim("patients", min=1)
    try:
        with _silence():
            program = torch.onnx.export(
                model,
                (present[1:], *(part[1:].nan_to_num() for part in embedding)),  # one less than are compared
                input_names=[PRESENT, *names],
                output_names=[*OUTPUTS],
                dynamic_shapes={PRESENT: {0: patients}, "embedding": tuple({0: patients} for _ in names)},
                dynamo=True,
                verbose=False,
            )
            assert program is not None  # noqa: S101 - with dynamo
            proto = program.model_proto
            _forget_sources(proto)
            session = onnxruntime.InferenceSession(proto.SerializeToString())
            rows = {n: part.numpy() for n, part in zip(names, embedding, strict=True)}
            found = session.run([OUTPUTS[0]], {PRESENT: present.numpy(), **rows})[0]
    except Exception as error:
        raise InputError(
            f"the model {package.study.model.name} has no ONNX form ({type(error).__name__})"
        ) from None
    with torch.inference_mode():
        expected = package.judge(package.model(Batch(embedding, present))).probability
    difference = (torch.from_numpy(found).double() - expected).abs().max().item()
    if not difference <= TOLERANCE:  # NaN, too
        raise RunError(f"the ONNX graph gives other probabilities than the model, by up to {difference:g}")
    facts = {
        "notice": NOTICE,
        "study_hash": package.facts.study_hash,
        "run": package.facts.run,
        "difference": f"{difference:.1e}",  # from torch
    }
    for key, value in facts.items():
        proto.metadata_props.add(key=key, value=value)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's warnings, logs and dumps of graphs from the terminal; errors still rise."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _patients(package: Package) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Patients of every presence pattern, spread as in training, NaN where a modality is absent."""
    modalities = package.study.modalities
    patterns = [each for each in itertools.product((False, True), repeat=len(modalities)) if any(each)]
    present = torch.tensor(patterns).repeat(PATIENTS, 1)  # (B, M)
    generator = torch.Generator().manual_seed(0)
    embedding = []
    for slot, modality in enumerate(modalities):
        drawn = torch.randn(len(present), modality.width, generator=generator)
        rows = package.mean(modality.name) + drawn * package.deviation(modality.name)
        embedding.append(torch.where(present[:, slot : slot + 1], rows, torch.nan))
    return present, tuple(embedding)


def _forget_sources(proto: Any) -> None:  # noqa: ANN401 - onnx has no types here
    """Remove the exporter's notes, which name files of this machine."""
    del proto.metadata_props[:]
    for graph in (proto.graph, *proto.functions):
        for part in (graph, *graph.node, *graph.value_info):
            del part.metadata_props[:]
            part.doc_string = ""
    for part in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del part.metadata_props[:]
