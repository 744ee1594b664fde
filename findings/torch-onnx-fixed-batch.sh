#!/usr/bin/env bash
# torch 2.15.0: Python's len of a tensor is a plain number to torch.export, which therefore refuses to call its rows
# dynamic. torch.onnx.export then takes its draft export, raises nothing, and makes a graph for exactly as many rows as it
# was shown, although dynamic_shapes asks for any number. With shape[0] in place of len the graph takes any number. Fails
# when either changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0 onnxscript==0.7.2
"$folder/venv/bin/python" - <<'PY'
import torch


class ByLen(torch.nn.Module):
    def forward(self, rows):
        return rows + torch.zeros(len(rows), 1)


class ByShape(torch.nn.Module):
    def forward(self, rows):
        return rows + torch.zeros(rows.shape[0], 1)


def rows_of(model):
    any_number = {"rows": {0: torch.export.Dim("patients", min=1)}}
    options = {"dynamo": True, "verbose": False, "dynamic_shapes": any_number}
    made = torch.onnx.export(model.eval(), (torch.ones(5, 3),), **options)
    rows, _ = made.model_proto.graph.input[0].type.tensor_type.shape.dim
    return rows.dim_param or rows.dim_value


print("rows that the graph takes: by len", rows_of(ByLen()), "and by shape", rows_of(ByShape()))
assert rows_of(ByLen()) == 5
assert isinstance(rows_of(ByShape()), str)
PY
