"""Each patient's own gradient, clipped and summed after one backward pass (ghost clipping, Li et al. 2022).

Of every use of a layer its input, its output and whose row each is are recorded; the gradients of the outputs
then give the norm of each patient's gradient over all parameters, and the clipped sum, without a gradient
per patient. A model's code stays as it is but for two things: rows that are not one per patient in the
batch's order stand below `of_patients`, and a parameter that is added to rows is expanded to them.

A use of another kind is an error, but a loss that compares patients would go unseen: a model says with
``MultimodalModel.SEPARATE`` that its patients do not meet, and tests compare it with a loop over patients.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ClippedSum", "clipped_sum", "of_patients", "recording"]

_MATRIX: Final = 2  # dimensions
_TINY: Final = 1e-12  # norm of a gradient that is not divided by

_rows: ContextVar[Tensor | None] = ContextVar("rows", default=None)
_recording: ContextVar[bool] = ContextVar("recording", default=False)

Rectangle = tuple[int, int, int, int]  # first row, first column, rows, columns of a parameter


@contextmanager
def of_patients(rows: Tensor) -> Iterator[None]:
    """Within, the first axis of what layers read runs over these patients ``(T,)`` of the batch."""
    before = _rows.set(rows)
    try:
        yield
    finally:
        _rows.reset(before)


def recording() -> bool:
    """Whether uses of parameters are recorded: then layers must be called one by one."""
    return _recording.get()


@dataclass(frozen=True)
class ClippedSum:
    """Gradients by parameter name, summed over patients, and the norms ``(B,)`` before clipping."""

    gradients: Mapping[str, Tensor]
    norms: Tensor


@dataclass(frozen=True)
class _Use:
    """One use of a parameter: of a matrix its part and the input, of a vector what multiplies it, if any."""

    name: str
    part: Rectangle | None
    factor: Tensor | None  # (T, …, W)
    output: int  # place among the recorded outputs
    patients: Tensor  # (T,)


def clipped_sum(
    model: nn.Module,
    losses: Callable[[], Tensor],
    patients: int,
    clip: float,
    into: Callable[[], Mapping[str, Tensor]] | None = None,
) -> ClippedSum:
    """Clip the gradient of each patient's loss to the L2 norm ``clip`` over all parameters, and add them up.

    Args:
        model: Whose parameters, as far as they require gradients, are looked at.
        losses: Gives the loss of each patient, ``(B,)``, by a forward pass of the model.
        patients: B.
        clip: C.
        into: Gives, once the backward pass is done, tensors by parameter name to which the sum is added; by
            default zeros.

    Raises:
        ValueError: If a parameter is used in a way whose gradients of single patients are not known.
    """
    recorder = _Recorder(model, patients)
    before = _recording.set(True)
    try:
        with recorder:
            total = losses().sum()
    finally:
        _recording.reset(before)
    found = torch.autograd.grad(total, recorder.outputs, allow_unused=True)
    at_output = [
        torch.zeros_like(output) if gradient is None else gradient
        for output, gradient in zip(recorder.outputs, found, strict=True)
    ]
    matrices = _by_part(recorder.uses, at_output, recorder.everyone)
    vectors = _by_patient(recorder.uses, at_output, patients)
    squares = torch.zeros(patients, device=total.device)
    for part in matrices.values():
        squares += part.squares(patients)
    for table in vectors.values():
        squares += table.square().sum(dim=1)
    norms = squares.clamp_min(0).sqrt()  # (B,)
    scale = (clip / norms.clamp_min(_TINY)).clamp_max(1)  # (B,)
    sums = into() if into else {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for (name, (row, column, height, width)), part in matrices.items():
        part.add_weighted(scale, sums[name][row : row + height, column : column + width])
    for name, table in vectors.items():
        sums[name].addmv_(table.T, scale)
    return ClippedSum(sums, norms)


class _Recorder(TorchFunctionMode):
    """Records every use of a model's parameters in a forward pass."""

    def __init__(self, model: nn.Module, patients: int) -> None:
        super().__init__()
        self.uses: list[_Use] = []
        self.outputs: list[Tensor] = []
        self._names = {id(value): name for name, value in model.named_parameters() if value.requires_grad}
        self.everyone = torch.arange(patients, device=next(model.parameters()).device)

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 - torch's
        types: Any,  # noqa: ANN401 - torch's
        args: Any = (),  # noqa: ANN401 - torch's
        kwargs: Any = None,  # noqa: ANN401 - torch's
    ) -> Any:  # noqa: ANN401 - torch's
        result = func(*args, **(kwargs or {}))
        if func is functional.linear:
            self._linear(result, *args, **(kwargs or {}))
        elif func is functional.layer_norm:
            self._layer_norm(result, *args, **(kwargs or {}))
        elif func is Tensor.expand and self._name(args[0]):
            result = result.clone()  # no view of the parameter: what is done with it counts as its own
            self._note(args[0], None, self._output(result))
        else:
            self._check(func, result, args, kwargs or {})
        return result

    def _linear(self, result: Tensor, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        place = self._output(result)
        self._note(weight, rows.detach(), place)
        self._note(bias, None, place)

    def _layer_norm(
        self,
        result: Tensor,
        rows: Tensor,
        shape: tuple[int, ...],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> None:
        place = self._output(result)
        if self._name(weight):
            self._note(weight, functional.layer_norm(rows.detach(), shape, None, None, eps), place)
        self._note(bias, None, place)

    def _output(self, result: Tensor) -> int:
        self.outputs.append(result)
        return len(self.outputs) - 1

    def _note(self, parameter: Tensor | None, factor: Tensor | None, place: int) -> None:
        name = self._name(parameter)
        if parameter is None or not name:
            return
        patients = _rows.get()
        patients = self.everyone if patients is None else patients
        if len(self.outputs[place]) != len(patients):
            raise ValueError(
                f"{name} acts on {len(self.outputs[place])} rows of {len(patients)} patients; expected "
                "of_patients to say whose rows they are"
            )
        matrix = parameter.ndim == _MATRIX
        self.uses.append(_Use(name, _rectangle(name, parameter) if matrix else None, factor, place, patients))

    def _name(self, value: object) -> str:
        """Of the parameter that this is, or is a view of; empty if it is neither."""
        if not isinstance(value, Tensor):
            return ""
        return self._names.get(id(value)) or self._names.get(id(value._base)) or ""

    def _check(self, func: Any, result: object, args: object, kwargs: dict[str, object]) -> None:  # noqa: ANN401 - torch's
        """Refuse what makes of a parameter more than a view."""
        name = next(filter(None, map(self._name, _tensors((args, *kwargs.values())))), "")
        if name and any(made.requires_grad and not self._name(made) for made in _tensors(result)):
            raise ValueError(
                f"{name} is used by {getattr(func, '__name__', func)}, where the gradients of single "
                "patients are not known; expected a linear layer, LayerNorm, or a parameter expanded to rows"
            )


@dataclass(frozen=True)
class _Rows:
    """Inputs and gradients of the outputs of one part of a matrix, over all of its uses."""

    inputs: Tensor  # (T, W)
    gradients: Tensor  # (T, D)
    patients: Tensor  # (T,)
    single: bool  # each patient has one row, in the batch's order

    def squares(self, patients: int) -> Tensor:
        """Squared norm of each patient's gradient ``(B,)``: over pairs of its rows, (a·a') (g·g')."""
        if self.single:
            return self.inputs.square().sum(dim=1) * self.gradients.square().sum(dim=1)
        counts = torch.bincount(self.patients, minlength=patients)  # (B,)
        order = self.patients.argsort(stable=True)
        place = torch.empty_like(order)  # of a row among those of its patient
        first = counts.cumsum(dim=0) - counts
        place[order] = torch.arange(len(order), device=order.device) - first[self.patients[order]]
        most = int(counts.max())
        products = []
        for rows in (self.inputs, self.gradients):
            padded = rows.new_zeros(patients, most, rows.shape[1])
            padded[self.patients, place] = rows
            products.append(padded @ padded.transpose(1, 2))  # (B, R, R)
        return (products[0] * products[1]).sum(dim=(1, 2))

    def add_weighted(self, scale: Tensor, into: Tensor) -> None:
        """Add the gradient ``(D, W)`` with each patient's part scaled by ``(B,)``."""
        into.addmm_((self.gradients * scale[self.patients].unsqueeze(1)).T, self.inputs)


def _by_part(
    uses: list[_Use], at_output: list[Tensor], everyone: Tensor
) -> dict[tuple[str, Rectangle], _Rows]:
    """The rows of every part of every matrix."""
    grouped: defaultdict[tuple[str, Rectangle], list[_Use]] = defaultdict(list)
    for use in uses:
        if use.part is not None:
            grouped[use.name, use.part].append(use)
    for (name, one), (other_name, other) in combinations(grouped, 2):
        if name == other_name and _overlap(one, other):
            raise ValueError(f"{name} is used in two parts that overlap")
    found = {}
    for key, each in grouped.items():
        parts = [(_flat(use.factor), _flat(at_output[use.output]), _repeated(use)) for use in each]
        single = len(each) == 1 and each[0].patients is everyone and len(parts[0][0]) == len(everyone)
        inputs, gradients, patients = (torch.cat(columns) for columns in zip(*parts, strict=True))
        found[key] = _Rows(inputs, gradients, patients, single)
    return found


def _by_patient(uses: list[_Use], at_output: list[Tensor], patients: int) -> dict[str, Tensor]:
    """The gradient of every vector by patient, ``(B, D)``."""
    found: dict[str, Tensor] = {}
    for use in uses:
        if use.part is not None:
            continue
        gradient = at_output[use.output]
        values = gradient if use.factor is None else gradient * use.factor
        values = values.sum(dim=tuple(range(1, values.ndim - 1))) if values.ndim > _MATRIX else values
        table = found.setdefault(use.name, values.new_zeros(patients, values.shape[-1]))
        table.index_add_(0, use.patients, values)
    return found


def _rectangle(name: str, value: Tensor) -> Rectangle:
    """Which part of a matrix a view of it is."""
    whole = value if value._base is None else value._base
    if value.stride() != whole.stride() or whole.stride(1) != 1:
        raise ValueError(f"{name} is used turned or with steps; expected it, or some of its rows and columns")
    row, column = divmod(int(value.storage_offset()) - int(whole.storage_offset()), whole.stride(0))
    return row, column, *value.shape


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return all(
        one[axis] < other[axis] + other[axis + 2] and other[axis] < one[axis] + one[axis + 2]
        for axis in (0, 1)
    )


def _flat(rows: Tensor | None) -> Tensor:
    assert rows is not None  # noqa: S101 - a matrix acts on rows
    return rows.reshape(-1, rows.shape[-1])


def _repeated(use: _Use) -> Tensor:
    """Whose each of the flattened rows is."""
    return use.patients.repeat_interleave(len(_flat(use.factor)) // max(len(use.patients), 1))


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)
