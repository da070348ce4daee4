"""Every file of ``benchmarks/results`` as tables, so that a page has the figures that are committed and no others.

A file may have any keys; only ``device`` is demanded, because a figure without its machine says nothing. Files of
pytest-benchmark name theirs in ``machine_info``.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.study.tables import render  # noqa: E402
from benchmarks.tables import longest, network, notes, profile, scan, scan_on_cpu, streamed, training  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
CURVES = """
```{eval-rst}
.. plot:: pictures/training.py draw
   :alt: Loss and gain of two training runs over their minutes
```
"""

LAID_OUT = {
    "scan_cpu": scan_on_cpu,
    "scan_h100": lambda _: scan(whole=True),
    "network_cpu": network,
    "network_h100": lambda result: "\n\n".join([network(result), streamed(result)]),
    "profile_h100": lambda result: "\n\n".join([profile(result), longest(result)]),
    "study": render,
    "training_xyscannet_tiny": lambda _: training() + "\n" + CURVES,
}
"""Results that are too deep for a plain table, and what lays them out."""

KINDS = {
    "loading": (
        "Loading pictures",
        "How soon a run over many small pictures begins, and what loading costs a step (`benchmarks/loading.py`). "
        "`cached` and `loaded` are medians of a step in ms, without and with loading; `ratio` is that of the means.",
    ),
    "compiled": (
        "Under `torch.compile`",
        "The whole network as one graph, compiled for one size, beside eager mode, as PyTorch sets itself up: without "
        "cuDNN's search for its fastest kernels (`benchmarks/compiled.py`). Errors are those of what the network adds "
        "to the image, relative to float32.",
    ),
    "onnx": ("ONNX beside PyTorch", "With the compiled scan (`benchmarks/onnx_speed.py`)."),
    "quality": (
        "Quality of weights",
        "Synthetic blur on photographs that were not trained on; PSNR in dB, LPIPS lower is better "
        "(`benchmarks/quality.py`). `gain` is what the restoration adds to the PSNR, `sharp psnr` what is left of a "
        "sharp crop.",
    ),
    "network": (
        "Networks and layers beside their conventional composition",
        "The composition has ordinary modules of PyTorch and mamba-ssm's kernel, its causal convolution without "
        "causal-conv1d, so that its ratios are kind to ours; the last columns have what is published of such networks "
        "on the same kind of card, with causal-conv1d, as they are commonly run (`benchmarks/network.py`). `graph` "
        "replays a CUDA graph, which spares the host; `eager` depends on how fast the host is. An image is streamed in "
        "strips: the same result with bounded memory.",
    ),
    "network_cpu": (
        "Networks beside their conventional composition on a CPU",
        "The composition has ordinary modules of PyTorch and the scan of Mamba's reference implementation, written "
        "with tensors and a loop over steps (`benchmarks/network.py`). Memory is the peak, weights included.",
    ),
    "profile": (
        "Where the time of the networks goes",
        "One step of each, eagerly, under PyTorch's profiler (`benchmarks/profile_network.py`). A step is timed "
        "without the profiler; where it is longer than its kernels together, the device waits for the host, which a "
        "CUDA graph spares. Below, the kernels that take longest.",
    ),
    "two": (
        "Training on two GPUs",
        "Patches a second of `slicescan train` with the same batch on each GPU (`benchmarks/two_gpus.py`); `faster` is "
        "what both do together over what one does alone.",
    ),
    "scan": (
        "The scan alone",
        "Times in ms (`benchmarks/scan.py`). On a GPU the device alone, as replays of CUDA graphs, and how many times "
        "faster than mamba-ssm it is forwards / with gradients; the last column includes the host, which small maps "
        "wait for. The floor is that of the exponentials.",
    ),
    "scan_cpu": (
        "The scan alone on a CPU",
        "Medians in ms of runs in turn (`benchmarks/scan.py --device cpu`). The plain recurrence is that of Mamba's "
        "reference implementation, written with tensors for all steps and a loop over them; where its gradients take "
        "too long or do not fit into memory, it is measured forwards alone.",
    ),
    "study": ("The ablations of the paper at equal budget", "Trained and measured by `benchmarks/study`."),
    "training": (
        "Training of weights",
        "The runs behind the quality of weights, from their logs (`benchmarks/training_log.py`): the same photographs, "
        "blur, loss and batches for the same time. The shipped `xyscannet_tiny` had an earlier run on top, NAFNet "
        "began with random weights; compare the two with that in mind. Gains are those of the quality check, in "
        "brackets after how many steps.",
    ),
    "uniform": (
        "Beside deconvolution that knows the kernel",
        "The quality check without rotation, so that every pixel is blurred alike (`benchmarks/quality.py --uniform`).",
    ),
}
"""Heading and a word on each kind of result, by the file's name or the first word of it."""

MACHINE = ("device", "cuda", "torch", "triton", "python", "slicescan", "backend", "onnx", "onnxruntime")


class BenchmarkTables(SphinxDirective):
    """A section for each file of results."""

    def run(self) -> list[nodes.Node]:
        """Read the files anew whenever the page is written."""
        self.env.note_reread()
        files = sorted(RESULTS.glob("*.json"))
        if not files:
            raise SphinxError(f"{RESULTS} has no results; the page of benchmarks would be empty")
        parts = []
        for file in files:
            self.env.note_dependency(str(file))
            parts.append(section(file.stem, json.loads(file.read_text(encoding="utf-8"))))
        return self.parse_text_to_nodes("\n\n".join(parts), allow_section_headings=True)


def section(stem: str, result: Mapping[str, Any]) -> str:
    """A file as Markdown: device, settings, then a table for each group of figures.

    Raises:
        SphinxError: The file does not say on what device its figures were measured.
    """
    if "machine_info" in result and "benchmarks" in result:
        result = of_pytest_benchmark(result)
    if not result.get("device"):
        raise SphinxError(f"benchmarks/results/{stem}.json names no device: add the key 'device' to the file")
    kind, _, rest = stem.partition("_")
    heading, about = KINDS.get(stem) or KINDS.get(kind, (kind.capitalize(), ""))
    lines = [f"## {heading}: `{rest}`" if rest else f"## {heading}", "", about, ""]
    versions = ", ".join(f"{key} {result[key]}" for key in MACHINE[1:] if result.get(key))
    lines += [f"**{result['device']}**{f' · {versions}' if versions else ''} · `benchmarks/results/{stem}.json`", ""]
    if stem in LAID_OUT:
        return "\n".join([*lines, LAID_OUT[stem](result), "", notes(result.get("rows", []))])
    figures = {key: value for key, value in result.items() if key not in MACHINE}
    single = [f"{words(key)} **{cell(value)}**" for key, value in figures.items() if is_plain(value)]
    lines += [" · ".join(single), ""]
    for key, value in figures.items():
        if not is_plain(value) and (rows := list(rows_of(value))):
            lines += [f"**{words(key)}**", "", table(rows), ""]
    return "\n".join(lines)


def of_pytest_benchmark(result: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a file of pytest-benchmark, in ms."""
    info = result["machine_info"]
    times = [
        {"name": run["name"]} | {f"{key} in ms": run["stats"][key] * 1e3 for key in ("min", "median", "mean", "stddev")}
        for run in result["benchmarks"]
    ]
    device = (info.get("cpu") or {}).get("brand_raw") or info.get("processor")
    return {"device": device, "python": info.get("python_version"), "times": times}


def is_plain(value: Any) -> bool:
    """Whether a value fits a cell."""
    return not isinstance(value, dict | list) or (
        isinstance(value, list) and all(not isinstance(item, dict | list) for item in value)
    )


def is_record(value: Any) -> bool:
    """Whether a value is one row of a table."""
    return isinstance(value, dict) and all(map(is_plain, value.values()))


def rows_of(value: Any, path: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """Nested figures as rows: lists and groups of records become rows, and what stands beside them is repeated."""
    if isinstance(value, list):
        for item in value:
            yield from rows_of(item, path)
        return
    plain = {key: item for key, item in value.items() if is_plain(item)}
    inner = {key: item for key, item in value.items() if key not in plain}
    if not inner:
        yield ({"name": " / ".join(path)} if path else {}) | plain
    for key, item in inner.items():
        group = isinstance(item, list) or all(is_record(each) for each in item.values())
        yield from (plain | row for row in rows_of(item, path if group else (*path, key)))


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a table of Markdown; numbers to the right, those of a column with as many decimals."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    numeric = [all(isinstance(row.get(key), int | float | None) for row in rows) for key in columns]
    lines = [[words(key) for key in columns], ["--:" if right else "---" for right in numeric]]
    places = {key: decimals([row.get(key) for row in rows]) for key in columns}
    lines += [[cell(row.get(key), places[key]) for key in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def decimals(values: list[Any]) -> int | None:
    """Decimals that give the largest of some numbers four digits; None if they are better written one by one."""
    sizes = [abs(value) for value in values if isinstance(value, float) and math.isfinite(value)]
    if not sizes or max(sizes) < 1e-2 or max(sizes) >= 1e4:
        return None
    return 3 - max(0, math.floor(math.log10(max(sizes))))


def words(key: str) -> str:
    """A key as people write it."""
    return key.replace("_", " ").replace("|", "\\|")


def cell(value: Any, places: int | None = None) -> str:
    """A value, to four digits unless decimals are given."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and places is not None:
        return f"{value:.{places}f}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(cell, value)) or "–"
    text = str(value).replace("|", "\\|")
    return f"`{text[:12]}…`" if len(text) == 64 and " " not in text else text


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the directive ``benchmark-tables``."""
    app.add_directive("benchmark-tables", BenchmarkTables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
