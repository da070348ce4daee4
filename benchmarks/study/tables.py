"""The study's figures in the layout of the paper's tables 5, 7 and 8, with the paper's order beside ours."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

GIB = 2**30
PAPER: Mapping[str, Mapping[str, float]] = {
    "psnr": {"inter": 31.91, "intra": 32.18, "hybrid": 32.11},
    "lpips": {"mambair": 0.094, "hybrid": 0.091},
    "niqe": {"skip": 3.46, "aff": 3.40, "hybrid": 3.41},
    "step_ms": {"mambair": 189, "hybrid": 82, "inter": 65, "intra": 103},
    "train_ms": {"mambair": 189, "hybrid": 82, "inter": 65, "intra": 103},
    "infer_ms": {"mambair": 196, "hybrid": 165, "inter": 153, "intra": 167},
    "train_bytes": {"mambair": 17.39, "hybrid": 11.60, "inter": 10.36, "intra": 12.82},
    "infer_bytes": {"mambair": 8.38, "hybrid": 4.51, "inter": 3.82, "intra": 4.67},
}
"""XYScanNet (arXiv 2412.10338): Tables 5 and 7 on GoPro, NIQE of Table 8 on HIDE. Only their order is compared.

A step's time is that of the runs, which replay a CUDA graph; other times are compared if they are of graphs too,
because the host decides eager ones.
"""

TITLES = {
    "psnr": ("PSNR", "{:.2f} dB"),
    "lpips": ("LPIPS", "{:.3f}"),
    "niqe": ("NIQE", "{:.2f}"),
    "step_ms": ("step while trained", "{:.1f} ms"),
    "train_ms": ("training step", "{:.1f} ms"),
    "infer_ms": ("image", "{:.1f} ms"),
    "train_bytes": ("training memory", "{:.2f} GiB"),
    "infer_bytes": ("image memory", "{:.2f} GiB"),
}
MODULES, SCANNERS, FUSIONS = ("mambair", "hybrid"), ("inter", "intra", "hybrid"), ("skip", "aff", "hybrid")
QUALITY, COSTS = ("psnr", "lpips", "niqe", "step_ms"), ("train_ms", "infer_ms", "train_bytes", "infer_bytes")


def spread(variant: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    """Mean over the seeds, and half of the distance between the extremes; None if it was not measured."""
    values = [run[key] for run in variant["runs"] if run.get(key) is not None]
    return (mean(values), (max(values) - min(values)) / 2) if values else None


def value(result: Mapping[str, Any], name: str, key: str) -> float | None:
    """One figure of a variant, in ms, GiB, dB or none."""
    variant = result["variants"].get(name, {})
    if key in QUALITY:
        found = spread(variant, key) if "runs" in variant else None
        return found[0] if found else None
    cost = variant.get("costs", {}).get(key)
    return None if cost is None else cost / GIB if key.endswith("bytes") else cost


def table(result: Mapping[str, Any], names: Sequence[str], keys: Sequence[str]) -> str:
    """Markdown: a row for each variant, a column for each figure."""
    rows = [
        "| variant | parameters | " + " | ".join(TITLES[key][0] for key in keys) + " |",
        "|---|--:|" + "--:|" * len(keys),
    ]
    for name in names:
        variant = result["variants"].get(name, {})
        if "runs" not in variant:
            continue
        cells = []
        for key in keys:
            number = value(result, name, key)
            text = "–" if number is None else TITLES[key][1].format(number)
            found = spread(variant, key) if key in QUALITY else None
            cells.append(text if not found or len(variant["runs"]) < 2 else f"{text} ± {found[1]:.2g}")
        rows.append(f"| {name} | {variant['params']:,} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def costs_table(result: Mapping[str, Any]) -> str:
    """Markdown: what each variant costs at the width of the paper, with our kernels and composed conventionally."""
    rows = [
        "| variant | " + " | ".join(TITLES[key][0] for key in COSTS) + " |",
        "|---|" + "--:|" * len(COSTS),
    ]
    for name, variant in result["variants"].items():
        if "ours" not in (both := variant.get("costs_dim48", {})):
            continue
        cells = []
        for key in COSTS:
            ours, theirs = (both[way][key] / (GIB if key.endswith("bytes") else 1) for way in ("ours", "conventional"))
            cells.append(f"{TITLES[key][1].format(ours)} / {TITLES[key][1].format(theirs)} ({theirs / ours:.1f} ×)")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows) if len(rows) > 2 else ""


def fields_table(result: Mapping[str, Any]) -> str:
    """Markdown: how local what each variant adds to a pixel is, of the first seed's network."""
    rows = [
        "| variant | 50 % within | 90 % within | 99 % within | beyond 4 pixels | on the pixel's row and column |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, variant in result["variants"].items():
        if not (field := (variant.get("receptive_field") or {}).get("change")):
            continue
        radii = [f"{field[f'radius_{share}']:.1f} px" for share in (50, 90, 99)]
        beyond = f"{100 * (1 - field['share_within']['4']):.2f} %"
        rows.append(f"| {name} | {' | '.join(radii)} | {beyond} | {100 * field['cross']:.1f} % |")
    return "\n".join(rows) if len(rows) > 2 else ""


def agreement(result: Mapping[str, Any]) -> list[str]:
    """For every pair of variants and figure that both have: whether the order is the paper's, or within the spread."""
    lines = []
    for key, paper in PAPER.items():
        if key in ("train_ms", "infer_ms") and result.get("costs_about", {}).get("way") != "graph":
            continue
        names = [name for name in paper if value(result, name, key) is not None]
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                ours = value(result, first, key) - value(result, second, key)  # type: ignore[operator]
                theirs = paper[first] - paper[second]
                apart = sum(
                    found[1]
                    for name in (first, second)
                    if key in QUALITY and (found := spread(result["variants"][name], key))
                )
                verdict = "as in the paper" if ours * theirs > 0 else "reversed"
                if abs(ours) <= apart:
                    verdict = "within the spread"
                lines.append(f"{TITLES[key][0]}, {first} against {second}: {verdict}")
    return lines


def render(result: Mapping[str, Any]) -> str:
    """All tables, and where the order agrees."""
    parts = []
    if "iterations" in result:
        seeds = ", ".join(map(str, result["seeds"]))
        about = f"{result['iterations']} steps, seeds {seeds}, synthetic blur on {result['photographs']} photographs"
        parts.append(about)
    if "costs_about" in result:
        device, graph = result["costs_about"]["device"], result["costs_about"].get("way") == "graph"
        parts.append(
            f"Times of replayed CUDA graphs, eager memory: {device}"
            if graph
            else f"Eager times and memory: {device}. Eager times include the host, which starts the kernels of such "
            "narrow networks more slowly than a GPU runs them; a step while trained replays a CUDA graph."
        )
    if result.get("trained_on"):
        parts.append(f"Trained on: {result['trained_on']}")
    measured = any("costs" in variant for variant in result["variants"].values())
    keys = (*QUALITY, *COSTS) if measured else QUALITY
    parts += [
        "Vision modules (Table 5)",
        table(result, MODULES, keys),
        "Scanners (Table 7)",
        table(result, SCANNERS, keys),
        "Fusion (Table 8)",
        table(result, FUSIONS, QUALITY),
        "\n".join(f"- {line}" for line in agreement(result)),
    ]
    if fields := fields_table(result):
        parts += [
            "Effective receptive field of what the network adds (128×128, share of the gradient's energy)",
            fields,
        ]
    if wide := costs_table(result):
        parts += ["Width 48: ours / the conventional composition, forward and backward of 4×256×256, one image", wide]
    return "\n\n".join(filter(None, parts))
