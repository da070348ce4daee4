"""Peak memory, time and error of streaming against the whole image.

    python benchmarks/check_stream.py --dim 24 --size 1024x768                                    # on a CPU
    python benchmarks/check_stream.py --dim 144 --size 2160x3840 --dtype bf16 --device cuda       # on a GPU
    python benchmarks/check_stream.py --dim 144 --size 2160x3840 --dtype bf16 --device meta       # shapes only: memory

Memory is what tensors hold at their peak, weights excluded, in GiB; on a GPU also what PyTorch reserved. The error is
relative RMS of the restored image against the same network streamed in float32, or float64 beside float32. Weights are
drawn of order 1 / sqrt(fan-in), so that the residual is as large as the image.
"""

import argparse
import time

import torch
from torch import Tensor

from slicescan.engine.memory import LiveMemory
from slicescan.models.xyscannet import XYScanNet

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
GIB = 2**30


def network(dim: int, device: str) -> XYScanNet:
    with torch.device(device):
        model = XYScanNet(dim)
    if device != "meta":
        torch.manual_seed(0)
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and not name.endswith("A_log"):
                torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return model.eval()


@torch.inference_mode()
def measure(way: str, run, x: Tensor, exact: Tensor | None) -> None:
    on_gpu = x.is_cuda
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start, cpu = time.perf_counter(), time.process_time()
    try:
        y = run(x)
    except torch.OutOfMemoryError:
        print(f"{way:12} does not fit", flush=True)
        return
    if on_gpu:
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        extra = f", reserved {torch.cuda.max_memory_reserved() / GIB:.2f} GiB"
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    if not on_gpu:
        memory = LiveMemory()
        memory.follow(x)
        with memory:
            run(x)
        peak, extra = memory.peak, f", {cpu:.1f} s of processor time"
    if x.is_meta:
        print(f"{way:12} {peak / GIB:.3f} GiB", flush=True)
        return
    error = "" if exact is None else f", error {((y.to(exact.dtype) - exact).norm() / exact.norm()).item():.3g}"
    print(f"{way:12} {peak / GIB:.3f} GiB{extra}, {seconds:.2f} s{error}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dim", type=int, default=24)
    parser.add_argument("--size", default="1024x768")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 16])
    parser.add_argument("--exact", action="store_true", help="compare with a wider dtype")
    options = parser.parse_args()
    h, w = map(int, options.size.split("x"))
    model = network(options.dim, options.device)
    x = torch.rand(1, 3, h, w, device=options.device)
    model.stream(x[:, :, :64, :64], 16)  # compiles
    exact = None
    if options.exact:
        wider = torch.float64 if options.dtype == "fp32" else torch.float32
        exact = model.to(wider).stream(x.to(wider))
    dtype = DTYPES[options.dtype]
    model, x = model.to(dtype), x.to(dtype)
    model.stream(x[:, :, :64, :64], 16)
    for rows in options.rows:
        measure(f"stream {rows}", lambda x, rows=rows: model.stream(x, rows), x, exact)
    measure("whole", model, x, exact)


if __name__ == "__main__":
    main()
