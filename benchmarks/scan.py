"""The table of the scan: every backend and peer that runs here, with and without gradients: time, memory, ratios.

``python benchmarks/scan.py [--device cuda] [--dtype bf16 fp32] [--part table long linear] [--only WORD]
[--without torch] [--rounds 5] [--once 20] [--gradients 4] [--json FILE]``

Times are medians in ms, as a program that calls the scan sees them; on a GPU also without the host, as replays of CUDA
graphs, which the ratios to the floors are of. "extra" is what a call holds at its highest beyond its arguments, as a
share of their bytes. Before a case is timed, the results and all gradients of every way to scan it are compared with
the first one's. What fails is named and left out, and the exit code is 1. What takes longer than ``--once`` seconds is
timed by that first run alone, and its memory is not measured. A way whose forward pass takes longer than
``--gradients`` seconds, or whose gradients would not fit into memory, is measured forwards alone, in three rounds. The
file is written anew after every case.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout, installed or not

from benchmarks.cases import CPU, GPU, KNOWN, LINEAR_CPU, LINEAR_GPU, LONG, Case
from benchmarks.measure import GIB, captured, floors, interleaved, machine, memory, times
from benchmarks.peers import MAPS, MATERIALISED, OWN_LAYOUT, WITH_LAYOUT, Peer, ours, peers, runs
from slicescan.ops.call import ScanCall
from slicescan.ops.dispatch import report

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TOLERANCE = {"bf16": 2e-2, "fp16": 3e-3, "fp32": 1e-4}  # of two implementations that should agree, relative RMS
PARTS = ("table", "long", "linear")
PASSES = ("forward", "both")
SLOW_ROUNDS = 3  # of ways that are measured forwards alone, and of what is beside them
Row = dict[str, Any]


def cases_of(part: str, device: str) -> tuple[Case, ...]:
    """The cases of a part of the table."""
    if part == "long":
        return LONG if device == "cuda" else ()
    if part == "linear":
        return LINEAR_GPU if device == "cuda" else LINEAR_CPU
    return GPU if device == "cuda" else CPU


def ways_of(part: str, device: str, without: list[str]) -> dict[str, Peer]:
    """Every way to scan the cases of a part, ours first; plain loops are left out where they would take minutes."""
    names = [s.name for s in report(device) if s.reason is None and s.name not in ("reference", "mamba_ssm")]
    ways = {name: ours(name) for name in names} | ({} if part == "linear" else peers(device))
    slow = () if part == "table" else ("torch",)
    return {name: peer for name, peer in ways.items() if name not in (*slow, *without)}


def compile_ahead(cases: Iterable[Case], kinds: list[str], device: str) -> None:
    """Compile the CUDA kernels of all cases side by side; at their first use they would be compiled one by one."""
    from benchmarks import check_cuda

    def calls() -> Iterator[ScanCall]:
        for case, kind, axis in itertools.product(cases, kinds, "wh"):
            tensors = case.arguments(DTYPES[kind], device)
            mixes = {name: tensors[name].unsqueeze(3) for name in ("B", "C")}
            yield ScanCall(**(tensors | mixes), axis=axis, delta_softplus=True)

    check_cuda.compile_ahead(calls())


def measure(case: Case, kind: str, axis: str, ways: dict[str, Peer], options: argparse.Namespace) -> Row:
    """Figures of one case for every way to scan it, and the ratios between them."""
    device = options.device
    arguments = case.arguments(DTYPES[kind], device)
    found: Row = {"case": case.name, "dtype": kind, "axis": axis, "ways": {}}
    elements, given = arguments["u"].numel(), sum(arguments[name].nbytes for name in MAPS)
    functions = compared(arguments, kind, axis, ways, found["ways"], options.gradients)
    forwards_alone = len(functions["both"]) < len(functions["forward"])
    if device == "cuda":
        torch.cuda.empty_cache()
        found["floor_exponentials"], found["floor_bytes"] = floors(elements, case.n, 4 * arguments["u"].nbytes)
        if "H100" in torch.cuda.get_device_name():
            found["known"] = KNOWN.get((case.name, kind, axis), {})
    for label, runs_ in functions.items():
        slow = [name for name in runs_ if found["ways"][name][f"{label}_once"] > options.once * 1e3]
        once = {name: found["ways"][name][f"{label}_once"] for name in slow}
        often = {name: run for name, run in runs_.items() if name not in slow}
        if label == "forward" and forwards_alone and device == "cpu":
            timed_often = interleaved(often, device, rounds=min(SLOW_ROUNDS, options.rounds))
        else:
            timed_often = times(often, device, rounds=options.rounds)
        for name, ms in (once | timed_often).items():
            extra = None if name in slow else memory(often[name], device) / given
            found["ways"][name] |= {label: ms, f"{label}_ns": ms * 1e6 / elements, f"{label}_extra": extra}
        if device == "cuda":
            for name, ms in times(_replays(often), device).items():
                found["ways"][name][f"{label}_device"] = ms
    add_ratios(found)
    return found


def _replays(runs_: dict[str, Callable[[], Any]]) -> dict[str, Callable[[], Any]]:
    """The same kernels started by the device alone, of those that can be captured into a CUDA graph."""
    found = {}
    for name, run in runs_.items():
        try:
            found[name] = captured(run)
        except RuntimeError as error:
            print(f"{name} cannot be captured: {str(error).splitlines()[0]}", flush=True)
    return found


def compared(
    arguments: dict[str, Tensor], kind: str, axis: str, ways: dict[str, Peer], found: Row, gradients_below: float = 4
) -> dict[str, dict[str, Callable[[], Any]]]:
    """What is to be timed of each pass, by way; those that fail or find something else go into ``found`` only.

    Gradients are left out, and ``found`` says why, where the forward pass takes more than ``gradients_below`` seconds.
    """
    functions: dict[str, dict[str, Callable[[], Any]]] = {label: {} for label in PASSES}
    exact: dict[str, Tensor] = {}
    for name, peer in ways.items():
        if name == MATERIALISED and (lacking := _lacking(arguments, FORWARD)):
            found[name] = {"fails": lacking}
            continue
        try:
            forward, both = runs(peer, arguments, axis)
            y, forward_once = timed(forward)
            if forward_once > gradients_below * 1e3 and name != MATERIALISED:  # perhaps that was the compiler
                y, forward_once = timed(forward)
            row: Row = {"forward_once": forward_once}
            results, measured = {"y": y}, {"forward": forward}
            long = forward_once > gradients_below * 1e3
            alone = f"its forward pass takes {forward_once / 1e3:.1f} s" if long else None
            if name == MATERIALISED and alone is None:
                alone = _lacking(arguments)
            if alone is None:
                if y.is_cuda:
                    both()  # compiles
                gradients, row["both_once"] = timed(both)
                results |= dict(zip(arguments, gradients, strict=True))
                measured["both"] = both
            else:
                row["no_gradients"] = alone
            exact = results | exact
            error, what = difference(results, exact, peer, axis)
            found[name] = {"difference": error, **row}
            if error <= TOLERANCE[kind]:
                for label, run in measured.items():
                    functions[label][name] = run
            else:
                found[name]["fails"] = f"{what} is another: relative error {error:.1e}"
        except Exception as error:  # a compiler's, the device's, a peer's: the others are measured all the same
            words = str(error).strip().partition("\n")[0]
            found[name] = {"fails": f"{type(error).__name__}: {words}"}
        results, measured, y, gradients = {}, {}, None, None  # the next way needs the room
    return functions


FORWARD, WITH_GRADIENTS = 25, 70
"""How many times its arguments the materialised loop once took."""


def _lacking(arguments: dict[str, Tensor], times_arguments: int = WITH_GRADIENTS) -> str | None:
    """Why the materialised loop would take more memory than there is, if so."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    there = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    needed = times_arguments * sum(x.nbytes for x in arguments.values())
    return f"needs about {needed / GIB:.0f} GiB, there are {there / GIB:.0f}" if needed > there else None


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a function returns, and the time of this one run in ms."""
    start = time.perf_counter()
    result = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, (time.perf_counter() - start) * 1e3


def difference(results: dict[str, Tensor], exact: dict[str, Tensor], peer: Peer, axis: str) -> tuple[float, str]:
    """The largest relative error of a result or gradient, and its name; ``exact`` is laid out as the peer has it."""
    laid = peer.prepare({name: x for name, x in exact.items() if name != "y"}, axis)
    laid["y"] = peer.prepare({"u": exact["y"]}, axis)["u"]
    names = {name: "the output" if name == "y" else f"the gradient of {name}" for name in results}
    return max((_relative(x, laid[name]), names[name]) for name, x in results.items())


def _relative(x: Tensor, exact: Tensor) -> float:
    off, scale = (torch.linalg.vector_norm(part, dtype=torch.float64) for part in (x.float() - exact.float(), exact))
    return (off / scale).nan_to_num(torch.inf).item()


def add_ratios(found: Row) -> None:
    """Floors, how much faster a way is than each peer, and peers beside what is known of them."""
    bases = [name for name in (OWN_LAYOUT, WITH_LAYOUT, MATERIALISED) if "forward" in found["ways"].get(name, {})]
    for row in found["ways"].values():
        if "forward" not in row:
            continue
        for floor in ("floor_exponentials", "floor_bytes"):
            if found.get(floor):
                row[f"times_{floor}"] = row.get("forward_device", row["forward"]) / found[floor]
        others = [base for base in bases if found["ways"][base] is not row]
        row["faster"] = {
            base: {p: found["ways"][base][p] / row[p] for p in PASSES if p in row and p in found["ways"][base]}
            for base in others
        }
        if "both_device" in row:
            keys = {p: f"{p}_device" for p in PASSES}
            row["faster_device"] = {
                base: {p: found["ways"][base][key] / row[key] for p, key in keys.items()}
                for base in others
                if "both_device" in found["ways"][base]
            }
    for base, known in found.get("known", {}).items():
        if base in bases:
            found["ways"][base]["of_known"] = {p: found["ways"][base][p] / ms for p, ms in known.items()}


def show(found: Row) -> None:
    """Print the figures of one case, with the ratios to the floors and to every peer."""
    head = f"{found['case']}, {found['dtype']}, axis {found['axis']}"
    if found.get("floor_exponentials"):
        head += f"; floors: exponentials {found['floor_exponentials']:.3f}, bytes {found['floor_bytes']:.3f} ms"
    print(f"\n{head}")
    for name, row in found["ways"].items():
        if "fails" in row:
            print(f"  {name:<26} {row['fails']}", flush=True)
            continue
        line = f"  {name:<26}"
        for label, title in zip(PASSES, ("forward", "with gradients"), strict=True):
            if label not in row:
                line += f" {title} not measured: {row['no_gradients']}"
                continue
            line += f" {title} {row[label]:9.3f} ms"
            if label == "forward" and "times_floor_bytes" in row:
                line += f", {row['times_floor_exponentials']:.2f} and {row['times_floor_bytes']:.2f} x the floors"
            gains = [f"{gain[label]:.2f} x {base}" for base, gain in row["faster"].items() if label in gain]
            line += f" (speed {', '.join(gains)})" if gains else ""
            if f"{label}_device" in row:
                gains = [f"{gain[label]:.2f} x {base}" for base, gain in row["faster_device"].items()]
                line += f" [device alone {row[f'{label}_device']:.3f} ms" + (f", {', '.join(gains)}]" if gains else "]")
        extra = [row.get(f"{label}_extra") for label in PASSES]
        line += "  extra " + ", ".join("not measured" if x is None else f"{x:.2f}" for x in extra)
        if "of_known" in row:
            line += "  of known " + ", ".join(f"{ratio:.2f}" for ratio in row["of_known"].values())
        print(line, flush=True)


def linear(rows: list[Row]) -> Iterator[Row]:
    """Time an element of the larger map over that of the smaller, for each way, dtype and axis."""
    for key in dict.fromkeys((row["dtype"], row["axis"]) for row in rows):
        small, large = (row["ways"] for row in rows if (row["dtype"], row["axis"]) == key)
        for name in small:
            if "both" in small[name] and "both" in large.get(name, {}):
                ratios = {p: large[name][f"{p}_ns"] / small[name][f"{p}_ns"] for p in PASSES}
                yield {"way": name, "dtype": key[0], "axis": key[1], **ratios}


def store(path: Path, result: Row) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, path)


def versions() -> dict[str, str]:
    """Versions of what else is measured."""
    try:
        return {"mamba_ssm": importlib.metadata.version("mamba_ssm")}
    except importlib.metadata.PackageNotFoundError:
        return {}


def options_from(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), nargs="+")
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="backends and peers to leave out")
    parser.add_argument("--rounds", type=int, default=5, help="rounds on a CPU")
    parser.add_argument("--once", type=float, default=20.0, metavar="SECONDS", help="longer runs are not repeated")
    parser.add_argument(
        "--gradients", type=float, default=4.0, metavar="SECONDS", help="slower forward passes are measured alone"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    options = options_from(words)
    device, kinds = options.device, options.dtype or (["bf16", "fp32"] if options.device == "cuda" else ["fp32"])
    result: Row = {**machine(device), **versions(), "unit": "ms", "rows": [], "linear": []}
    print(result["device"], flush=True)
    if device == "cuda" and "cuda" in ways_of("linear", device, options.without):
        chosen = [case for part in options.part for case in cases_of(part, device) if options.only in case.name]
        compile_ahead(chosen, kinds, device)
    for kind in kinds:
        for part in options.part:
            ways = ways_of(part, device, options.without)
            rows = []
            for case in cases_of(part, device):
                for axis in "w" if part == "long" else "wh":
                    if options.only in case.name:
                        rows.append({"part": part, **measure(case, kind, axis, ways, options)})
                        show(rows[-1])
                        result["rows"].append(rows[-1])
                        if options.json:
                            store(options.json, result)
            if part == "linear" and len({row["case"] for row in rows}) == 2:
                for ratio in linear(rows):
                    result["linear"].append(ratio)
                    print("time an element, large over small map: {way}, {dtype}, axis {axis}: forward {forward:.2f}, "
                          "with gradients {both:.2f}".format(**ratio), flush=True)  # fmt: skip
                if options.json:
                    store(options.json, result)
    return int(any("fails" in way for row in result["rows"] for way in row["ways"].values()))


if __name__ == "__main__":
    sys.exit(main())
