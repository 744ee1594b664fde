"""Encoders as ONNX graphs beside torch on the processor: seconds, largest difference, peak memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.printed import report

pytestmark = [pytest.mark.bench]

# Each case is a process of its own, so that its peak is its own. Weights are random, of the published shapes.
CODE = """
import json, resource, sys, time
from pathlib import Path
import torch
from client.encoders.files.networks import IMAGE, open_network
from client.encoders.files.contract import load_contract
from client.encoders.files.folder import EncoderFolder
from client.encoders.med3d import random_med3d
from client.encoders.resnet50_wsi import TruncatedResNet50

which, how, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
shape = (1, 1, 56, 448, 448) if which == "med3d" else (16, 3, 256, 256)
given = torch.randn(shape, generator=generator)

def network():
    if which == "med3d":
        return random_med3d().eval()
    made = TruncatedResNet50().eval()
    for name, value in made.state_dict().items():
        if value.is_floating_point() and value.ndim > 1:
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5)
    return made

if how == "export":
    torch.onnx.export(network(), (given,), folder / "model.onnx", dynamo=True, external_data=False)
    raise SystemExit
if how == "onnx":
    open_one = open_network(EncoderFolder(folder, load_contract(folder)), torch.device("cpu"))
    call = lambda: open_one({IMAGE: given})
else:
    made = network().requires_grad_(False)
    def call():
        with torch.inference_mode():
            return made(given)
call()
spent = []
for _ in range(3):
    began = time.process_time()
    found = call()
    spent.append(time.process_time() - began)
torch.save(found, folder / f"{how}.pt")
peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
print(json.dumps({"cpu_s": round(sorted(spent)[1] / shape[0], 4), "peak_mb": peak_mb}))
"""
CONTRACT = """name = "{which}"
format = "onnx"
licence = "MIT"
[input]
kind = "{kind}"
[output]
width = {width}
"""


def called(which, how, folder):
    done = subprocess.run(
        [sys.executable, "-c", CODE, which, how, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) if how != "export" else {}


@pytest.mark.parametrize(("which", "kind", "width"), [("med3d", "volume", 512), ("resnet50", "tiles", 1024)])
def test_onnx_beside_torch(tmp_path, which, kind, width):
    import torch

    (tmp_path / "encoder.toml").write_text(CONTRACT.format(which=which, kind=kind, width=width))
    called(which, "export", tmp_path)
    found = {}
    for how in ("torch", "onnx"):
        figures = called(which, how, tmp_path)
        found[how] = torch.load(tmp_path / f"{how}.pt", weights_only=True)  # noqa: TID251 - written above
        report(f"{which}, {how}, float32, one thread, per input", **figures)
    apart = float((found["onnx"] - found["torch"]).abs().max() / found["torch"].abs().max())
    report(f"{which}, onnx beside torch", largest_difference=f"{apart:.2g}")
    assert apart < 1e-4
