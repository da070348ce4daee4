"""Write the generated tables of the README and the model cards: measured sizes, and figures of ``benchmarks/results``.

``python benchmarks/tables.py`` rewrites the text between ``<!-- table: NAME -->`` and ``<!-- end of table -->``;
``--check`` changes nothing and fails if a table is out of date.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run from a checkout, installed or not

from benchmarks.cases import published  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"


def models() -> str:
    """Parameters, multiply-adds and state updates of every registered model, counted on shapes alone."""
    import torch

    import slicescan
    from slicescan.engine.profile import WorkCounter
    from slicescan.layers import cross_scan

    cross_scan.PIECE = 2**60  # in bands the same work takes more steps to follow
    rows = ["| model | parameters | GMACs at 256×256 | scan updates at 256×256 | weights |", "|---|--:|--:|--:|---|"]
    for name in slicescan.list_models():
        with torch.device("meta"):
            model = slicescan.create_model(name)
            image = torch.empty(1, getattr(model, "in_chans", 3), 256, 256)
        with torch.no_grad(), WorkCounter() as counter:
            model(image)
        params = sum(weight.numel() for weight in model.parameters())
        weights = "in the package" if name in slicescan.list_pretrained() else "–"
        rows.append(
            f"| `{name}` | {params:,} | {counter.macs / 1e9:.1f} | {counter.scan_updates / 1e9:.2f} G | {weights} |"
        )
    return "\n".join(rows)


def quality() -> str:
    """Means of the quality check as stored by ``benchmarks/quality.py``."""
    rows = _quality_head("model")
    for file in sorted(RESULTS.glob("quality_*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        rows.append(_quality_row(f"`{result['model']}`", result))
        rows += [_quality_row(name, one) for name, one in result.get("beside", {}).items()]
    return "\n".join(rows)


def uniform() -> str:
    """The quality check without rotation, beside deconvolution with the kernel known."""
    rows = _quality_head("method")
    for file in sorted(RESULTS.glob("uniform_*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        mean = result["mean"]
        lpips = f"{mean['lpips_in']:.3f}" if mean.get("lpips_in") is not None else "–"
        rows.append(f"| the blurred crop itself | {mean['psnr_in']:.2f} dB | – | – | – | {lpips} | – |")
        rows.append(_quality_row(f"`{result['model']}`", result))
        rows += [_quality_row(name, one) for name, one in result.get("beside", {}).items()]
    return "\n".join(rows)


def training() -> str:
    """The runs that the shipped weights and what stands beside them come from, by ``benchmarks/training_log.py``."""
    rows = [
        "| recipe | began with | steps | time | a step | loss, first and last thousand steps | gain along the way |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    for file in sorted(RESULTS.glob("training_*.json")):
        for run in json.loads(file.read_text(encoding="utf-8"))["runs"]:
            points = run["points"]
            step = statistics.median(point["seconds_per_step"] for point in points) * 1e3
            ends = [
                [point["loss"] for point in points if point["step"] <= 1000],
                [point["loss"] for point in points if point["step"] > run["steps"] - 1000],
            ]
            gains = ", ".join(f"{one['gain_db']:+.2f} dB ({one['step']:,})" for one in run["measured"])
            cells = [f"`{run['run']}`", run["start"], f"{run['steps']:,}", f"{run['seconds']:.0f} s", f"{step:.1f} ms"]
            cells += [" → ".join(f"{statistics.mean(losses):.4f}" for losses in ends), gains or "–"]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _quality_head(first: str) -> list[str]:
    return [
        f"| {first} | blurred | restored | mean gain | smallest gain | LPIPS blurred → restored | sharp crop kept at |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]


def _quality_row(name: str, result: dict) -> str:
    mean, kept = result["mean"], result["sharp_psnr"]
    lpips = f"{mean['lpips_in']:.3f} → {mean['lpips_out']:.3f}" if mean.get("lpips_out") is not None else "–"
    return (
        f"| {name} | {mean['psnr_in']:.2f} dB | {mean['psnr_out']:.2f} dB | {mean['gain']:+.2f} dB "
        f"| {result['min_gain']:+.2f} dB | {lpips} | {'–' if kept is None else f'{kept:.1f} dB'} |"
    )


def scan(whole: bool = False) -> str:
    """The scan beside mamba-ssm: the device alone, and as a program that calls it sees it; rows of maps, or all."""
    result = json.loads((RESULTS / "scan_h100.json").read_text(encoding="utf-8"))
    rows = [
        "| map | dtype | axis | forward | times the floor | with gradients | mamba-ssm, its layout | faster "
        "| faster, host included |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        ours, peer = row["ways"]["cuda"], row["ways"].get("mamba-ssm, its layout")
        if not whole and (row["part"] != "table" or row["axis"] == "h"):
            continue
        cells = [row["case"], row["dtype"], row["axis"], f"{ours['forward_device']:.3f} ms"]
        cells += [f"{ours['times_floor_exponentials']:.2f}", f"{ours['both_device']:.3f} ms"]
        if peer:
            cells.append(f"{peer['forward_device']:.3f} / {peer['both_device']:.3f} ms")
            for key in ("faster_device", "faster"):
                gain = ours[key]["mamba-ssm, its layout"]
                cells.append(f"{gain['forward']:.1f} / {gain['both']:.1f} ×")
        rows.append(f"| {' | '.join(cells + ['–'] * (9 - len(cells)))} |")
    return "\n".join(rows)


def scan_on_cpu(result: Mapping[str, Any]) -> str:
    """The scan on a CPU, by every way that ran, beside the recurrence written down with tensors."""
    rows = [
        "| map | axis | way | forward | with gradients | faster than the plain recurrence |",
        "|---|---|---|--:|--:|--:|",
    ]
    for row in result["rows"]:
        for name, way in row["ways"].items():
            times = [f"{way[label]:,.1f} ms" if label in way else "–" for label in ("forward", "both")]
            gains = [f"{gain:.1f}" for by in way.get("faster", {}).values() for gain in by.values()]
            faster = f"{' / '.join(gains)} ×" if gains else "–"
            rows.append(f"| {' | '.join([row['case'], row['axis'], name, *times, faster])} |")
    return "\n".join(rows)


def network(result: Mapping[str, Any]) -> str:
    """Networks and layers beside their conventional composition and what is published, by ``benchmarks/network.py``."""
    rows = [
        "| what | input | dtype | pass | way | ours | conventional, same run | faster | published | faster |",
        "|---|---|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        known = published(row) if "H100" in result["device"] else {}
        for way in ("eager", "compile", "graph"):
            ours, theirs = (row["ways"].get(f"{who}, {way}", {}) for who in ("ours", "conventional"))
            if "ms" in ours:
                about = [row["what"], "×".join(map(str, row["shape"])), row["dtype"], row["pass"], way]
                cells = [*about, _cost(ours), *_beside(ours, theirs), *_beside(ours, known)]
                rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def notes(rows: Iterable[Mapping[str, Any]]) -> str:
    """What is to be known of some rows: each note once, behind the rows that have it."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if "note" in row:
            found.setdefault(row["note"], []).append(row)
    lines = []
    for note, noted in found.items():
        cases = [", ".join(_case(row)) for row in noted] if len(noted) < 4 else [row["what"] for row in noted]
        lines.append(f"- {'; '.join(dict.fromkeys(cases))}: {note}.")
    return "\n".join(lines)


def _cost(way: Mapping[str, float | None]) -> str:
    memory = f", {way['gib']:.2f} GiB" if way.get("gib") else ""
    return f"{way['ms']:.1f} ms{memory}"


def _beside(ours: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    if not other.get("ms"):
        return ["–", "–"]
    return [_cost(other), f"{other['ms'] / ours['ms']:.2f} ×"]


def networks() -> str:
    """Whole networks beside what is published of their implementations on the same kind of card."""
    rows = [
        "| network | input | dtype | pass | published | ours | faster | as a CUDA graph | faster |",
        "|---|---|---|---|--:|--:|--:|--:|--:|",
    ]
    result = json.loads((RESULTS / "network_h100.json").read_text(encoding="utf-8"))
    for row in result["rows"]:
        if not (known := published(row)):
            continue
        cells = [row["what"].replace("dim", "XYScanNet, dim"), "×".join(map(str, row["shape"])), row["dtype"]]
        cells += [row["pass"], _cost(known)]
        for way in ("eager", "graph"):
            ours = row["ways"].get(f"ours, {way}", {})
            cells += [_cost(ours), _beside(ours, known)[1]] if "ms" in ours else ["–", "–"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", notes(filter(published, result["rows"]))]).rstrip()


def streamed(result: Mapping[str, Any]) -> str:
    """Whole and streamed images: time, memory, time a pixel, and the error of bf16 against float32."""
    rows = ["| network | image | time | memory | a pixel | error |", "|---|---|--:|--:|--:|--:|"]
    for row in (row for row in result["rows"] if row["part"] == "stream"):
        for way, found in row["ways"].items():
            if "ms" in found:
                error = f"{found['error']:.2e}" if found.get("error") is not None else "–"
                cells = [f"{found['ms']:.0f} ms", f"{found['gib']:.2f} GiB", f"{found['ns_a_pixel']:.0f} ns", error]
            else:
                cells = [found["fails"], "–", "–", "–"]
            rows.append(f"| {' | '.join([row['what'], way, *cells])} |")
    return "\n".join(rows) if len(rows) > 2 else ""


def profile(result: Mapping[str, Any], least: float = 0.02) -> str:
    """Where the device's time goes, by ``benchmarks/profile_network.py``; what is below ``least`` is the rest."""
    largest: dict[str, float] = {}
    for kind, cost in (item for row in result["rows"] for item in row["kinds"].items()):
        largest[kind] = max(largest.get(kind, 0.0), cost["share"])
    kinds = sorted((kind for kind, share in largest.items() if share >= least), key=lambda kind: -largest[kind])
    head = ["what", "input", "dtype", "pass", "a step", "its kernels", "launches", *kinds, "the rest"]
    rows = [f"| {' | '.join(head)} |", f"|---|---|---|---|{'--:|' * (len(head) - 4)}"]
    for row in result["rows"]:
        cells = [*_case(row), f"{row['eager_ms']:.1f} ms", f"{row['device_ms']:.1f} ms", f"{row['launches']:,}"]
        for kind in kinds:
            cost = row["kinds"].get(kind)
            cells.append(f"{cost['ms']:.1f} ms, {cost['share']:.0%}" if cost else "–")
        rest = sum(cost["ms"] for kind, cost in row["kinds"].items() if kind not in kinds)
        rows.append(f"| {' | '.join([*cells, f'{rest:.1f} ms'])} |")
    return "\n".join(rows)


def longest(result: Mapping[str, Any], count: int = 4) -> str:
    """The kernels that take longest in each row of a profile."""
    rows = [
        "| what | input | dtype | pass | kernel | kind | time | share | launches |",
        "|---|---|---|---|---|---|--:|--:|--:|",
    ]
    for row in result["rows"]:
        for kernel in row["longest"][:count]:
            name = kernel["name"] if len(kernel["name"]) <= 48 else f"{kernel['name'][:47]}…"
            cells = [*_case(row), f"`{name}`", kernel["kind"], f"{kernel['ms']:.2f} ms", f"{kernel['share']:.0%}"]
            rows.append(f"| {' | '.join([*cells, str(kernel['launches'])])} |")
    return "\n".join(rows)


def _case(row: Mapping[str, Any]) -> list[str]:
    return [row["what"], "×".join(map(str, row["shape"])), row["dtype"], row["pass"]]


TABLES = {
    "models": models,
    "quality": quality,
    "uniform": uniform,
    "training": training,
    "scan": scan,
    "networks": networks,
}


def rewrite(text: str) -> str:
    """``text`` with every marked table replaced by its current content."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end of table -->)"
        if re.search(pattern, text, flags=re.DOTALL):
            content = table() + "\n"
            text = re.sub(pattern, lambda m, content=content: m[1] + content + m[2], text, flags=re.DOTALL)
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail instead of writing when a table is out of date")
    options = parser.parse_args()
    stale = []
    for file in (ROOT / "README.md", *sorted((ROOT / "slicescan" / "weights").glob("*.md"))):
        before = file.read_text(encoding="utf-8")
        after = rewrite(before)
        if after != before:
            stale.append(file.name)
            if not options.check:
                file.write_text(after, encoding="utf-8")
    if stale:
        print(f"{'out of date' if options.check else 'rewritten'}: {', '.join(stale)}")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
