"""An exported model in onnxruntime against the same model in PyTorch: error, file size, time on a CPU.

``python -m benchmarks.onnx_speed [--model xyscannet_tiny] [--size 256] [--threads 1] [--json FILE]``.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import onnx
import onnxruntime
import torch

from benchmarks.measure import machine, times
from slicescan import create_model, list_pretrained
from slicescan.engine.export import export

SIZES = [(1, 52, 76), (2, 36, 132)]
"""Batch, height, width: none of them the size that the model is traced with."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="xyscannet_tiny")
    parser.add_argument("--size", type=int, default=256, help="side of the timed image")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = create_model(options.model, pretrained=options.model in list_pretrained()).eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        start = time.perf_counter()
        path = export(model, Path(folder) / "model.onnx")
        seconds, size = time.perf_counter() - start, path.stat().st_size
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    errors = {}
    for b, h, w in [*SIZES, (1, options.size, options.size)]:
        x = torch.rand(b, model.in_chans, h, w)
        with torch.no_grad():
            expected = model(x)
        found = torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
        errors[f"{b}x{model.in_chans}x{h}x{w}"] = ((found - expected).abs().max() / expected.abs().max()).item()

    x = torch.rand(1, model.in_chans, options.size, options.size)

    def in_torch() -> None:
        with torch.no_grad():
            model(x)

    median = times({"torch": in_torch, "onnxruntime": lambda: session.run(None, {"input": x.numpy()})}, "cpu")
    figures = {
        "model": options.model,
        **machine("cpu"),
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "file_bytes": size,
        "export_seconds": round(seconds, 1),
        "largest_error_over_largest_output": errors,
        "timed": f"1x{model.in_chans}x{options.size}x{options.size}",
        "ms": {name: round(value, 1) for name, value in median.items()},
    }
    print(json.dumps(figures, indent=1))
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
