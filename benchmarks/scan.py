"""The table of the scan: every backend and peer that runs here, with and without gradients: time, memory, ratios.

``python benchmarks/scan.py [--device cuda] [--dtype bf16 fp32] [--only WORD] [--rounds 5] [--json FILE]``

Times are medians in ms. "extra" is what a call holds at its highest beyond its arguments, as a share of their bytes.
Before it is timed, each result is compared with the first backend's.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout, installed or not

from benchmarks.cases import CPU, GPU, LONG, Case
from benchmarks.measure import floors, machine, memory, times
from benchmarks.peers import MAPS, OWN_LAYOUT, ours, peers, runs
from slicescan.ops.dispatch import report

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TOLERANCE = {"bf16": 2e-2, "fp16": 3e-3, "fp32": 1e-4}  # of two implementations that should agree, relative RMS


def rows(case: Case, kind: str, axis: str, device: str, rounds: int) -> dict[str, Any]:
    """Figures of one case for every way to scan it."""
    arguments = case.arguments(DTYPES[kind], device)
    ways = {
        s.name: ours(s.name) for s in report(device) if s.reason is None and s.name not in ("reference", "mamba_ssm")
    }
    ways |= {} if case in LONG and device == "cpu" else peers(device)
    forward, both = {}, {}
    for name, peer in ways.items():
        forward[name], both[name] = runs(peer, arguments, axis)
    agree(forward, kind, own=OWN_LAYOUT)
    given = sum(arguments[name].nbytes for name in MAPS)
    found: dict[str, Any] = {"case": case.name, "dtype": kind, "axis": axis, "ways": {}}
    if device == "cuda":
        moved = 4 * arguments["u"].nbytes
        found["floor_exponentials"], found["floor_bytes"] = floors(arguments["u"].numel(), case.n, moved)
    t_forward, t_both = times(forward, device, rounds=rounds), times(both, device, rounds=rounds)
    for name in ways:
        found["ways"][name] = {
            "forward": t_forward[name],
            "both": t_both[name],
            "forward_extra": memory(forward[name], device) / given,
            "both_extra": memory(both[name], device) / given,
        }
    return found


def agree(forward: dict, kind: str, own: str) -> None:
    """Stop if two ways to scan do not give the same map; a result in another layout is left to the tests."""
    results = {name: run() for name, run in forward.items() if name != own}
    first = next(iter(results.values())).double()
    for name, y in results.items():
        error = ((y.double() - first).norm() / first.norm()).item()
        if not error <= TOLERANCE[kind]:
            raise SystemExit(f"{name} gives another result: relative error {error:.1e}")


def show(found: dict[str, Any]) -> None:
    """Print the figures of one case, with the ratio of every peer to the first backend."""
    head = f"{found['case']}, {found['dtype']}, axis {found['axis']}"
    if found.get("floor_exponentials"):
        head += f"; floors: exponentials {found['floor_exponentials']:.3f}, bytes {found['floor_bytes']:.3f} ms"
    print(f"\n{head}")
    best = next(iter(found["ways"].values()))
    for name, row in found["ways"].items():
        floor = (
            f"  {row['forward'] / found['floor_exponentials']:.2f} x floor" if found.get("floor_exponentials") else ""
        )
        print(
            f"  {name:<26} forward {row['forward']:9.3f} ms ({row['forward'] / best['forward']:5.2f} x){floor}"
            f"   with gradients {row['both']:9.3f} ms ({row['both'] / best['both']:5.2f} x)"
            f"   extra {row['forward_extra']:.2f}, {row['both_extra']:.2f}",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), nargs="+")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--rounds", type=int, default=5, help="rounds on a CPU")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    cases = [case for case in (GPU + LONG if options.device == "cuda" else CPU) if options.only in case.name]
    kinds = options.dtype or (["bf16", "fp32"] if options.device == "cuda" else ["fp32"])
    result = {**machine(options.device), "unit": "ms", "rows": []}
    print(result["device"])
    for kind in kinds:
        for case in cases:
            for axis in "w" if case in LONG else "wh":
                found = rows(case, kind, axis, options.device, options.rounds)
                show(found)
                result["rows"].append(found)
    if options.json:
        fresh = options.json.with_name(options.json.name + ".new")
        fresh.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        os.replace(fresh, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
