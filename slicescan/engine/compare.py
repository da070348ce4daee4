"""Set evaluations side by side: a table, the figures of every image as a plot, and the worst cases as pictures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from slicescan.engine.compare_pictures import draw_figures, draw_worst, save
from slicescan.engine.metrics.catalogue import METRICS, Metric
from slicescan.engine.results import Results, read_results, write_text

SHARED = ("protocol", "split", "variant", "names", "patch")
"""Facts that must be equal for figures to be comparable."""


def compare(runs: Sequence[str | Path], out: str | Path, *, worst: int = 6) -> str:
    """Write ``table.md``, ``figures.png`` and ``worst.png`` for several evaluations of one data set by one protocol.

    Means are over the images that every run has measured, so that a failed image favours none. The pictures show the
    images that the first run does worst on, where its squared error is largest; they need the restored images, see
    ``save`` of :func:`~slicescan.engine.evaluate.evaluate`.

    Args:
        runs: Folders of results; their names become the names in the table.
        out: Folder for what is written.
        worst: Images in the sheet of worst cases.

    Returns:
        The table.

    Raises:
        FileNotFoundError: A folder holds no results.
        ValueError: The evaluations cannot be compared; the message names what differs.
    """
    found = _read(runs)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    lead = next((name for name in METRICS if all(_figures(one, name) for one in found.values())), None)
    text = table(found)
    if lead is not None:
        common = _common(found, lead)
        columns = {run: [_figures(one, lead)[index] for index in common] for run, one in found.items()}
        text += "\n" + _against_first(columns, METRICS[lead])
        save(draw_figures(columns, METRICS[lead]), out / "figures.png")
        note = _write_worst(dict(zip(found, map(Path, runs), strict=True)), found, METRICS[lead], worst, out)
        text += note and "\n" + note
    write_text(out / "table.md", text)
    return text.rstrip()


def table(runs: Mapping[str, Results]) -> str:
    """Means of several evaluations as Markdown, the best of each column bold."""
    shown = [metric for name, metric in METRICS.items() if any(name in one.mean for one in runs.values())]
    arrows = {"higher": "↑", "lower": "↓"}
    lines = [
        "| run | model | " + " | ".join(f"{m.title} {arrows[m.better]}" for m in shown) + " | s/image |",
        "|---|---|" + "--:|" * (len(shown) + 1),
    ]
    means = {name: {m.name: _mean(runs, name, m) for m in shown} for name in runs}
    for name, one in runs.items():
        cells = [_cell(means, name, metric) for metric in shown]
        times = [row.seconds for row in one.rows if row.seconds is not None]
        speed = f"{sum(times) / len(times):.2f}" if times else "–"
        lines.append(f"| {name} | {one.about.get('model', '–')} | {' | '.join(cells)} | {speed} |")
    first = next(iter(runs.values()))
    counts = sorted({len(_common(runs, m.name)) for m in shown if m.kind != "set"})
    images = " to ".join(str(count) for count in counts[:1] + counts[1:][-1:]) or "0"
    lines += [
        "",
        f"Protocol `{first.about['protocol']}`: {first.about['measured']}. {images} images that all runs have.",
    ]
    devices = sorted({str(one.about["device"]) for one in runs.values() if "model" in one.about})
    lines += [f"Times on {', '.join(devices)}."] if devices else []
    return "\n".join(lines) + "\n"


def _read(runs: Sequence[str | Path]) -> dict[str, Results]:
    found: dict[str, Results] = {}
    for run in map(Path, runs):
        name = run.resolve().name
        name = name if name not in found else str(run)
        if name in found:
            raise ValueError(f"{run}: named twice")
        found[name] = read_results(run)
    if not found:
        raise ValueError("there are no results to compare")
    first = next(iter(found))
    for name, one in found.items():
        for key in SHARED:
            ours, theirs = found[first].about.get(key), one.about.get(key)
            if ours != theirs:
                what = "the images that were measured" if key == "names" else f"{key}: {ours} and {theirs}"
                raise ValueError(f"{first} and {name} cannot be compared: they differ in {what}")
    return found


def _figures(one: Results, metric: str) -> dict[int, float]:
    return {row.index: row.figures[metric] for row in one.rows if metric in row.figures}


def _common(runs: Mapping[str, Results], metric: str) -> list[int]:
    """Indices of the images that every run that has a metric has measured."""
    having = [set(figures) for figures in (_figures(one, metric) for one in runs.values()) if figures]
    return sorted(set.intersection(*having)) if having else []


def _mean(runs: Mapping[str, Results], name: str, metric: Metric) -> float | None:
    if metric.kind == "set":
        return runs[name].mean.get(metric.name)
    figures, common = _figures(runs[name], metric.name), _common(runs, metric.name)
    return sum(figures[index] for index in common) / len(common) if figures and common else None


def _cell(means: Mapping[str, Mapping[str, float | None]], name: str, metric: Metric) -> str:
    value = means[name][metric.name]
    if value is None:
        return "–"
    others = [row[metric.name] for row in means.values() if row[metric.name] is not None]
    best = (max if metric.better == "higher" else min)(others)  # type: ignore[type-var]
    text = f"{value:.{metric.digits}f}"
    return f"**{text}**" if len(others) > 1 and value == best else text


def _against_first(columns: Mapping[str, Sequence[float]], metric: Metric) -> str:
    """How much every run differs from the first, image by image, with the standard error of the mean."""
    first, lines = next(iter(columns)), []
    sign = 1 if metric.better == "higher" else -1
    for name, values in columns.items():
        gaps = [a - b for a, b in zip(values, columns[first], strict=True)]
        if name == first or not all(map(math.isfinite, gaps)) or len(gaps) < 2:
            continue
        mean = sum(gaps) / len(gaps)
        error = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1) / len(gaps))
        better = sum(sign * gap > 0 for gap in gaps) / len(gaps)
        lines.append(
            f"{name} against {first}: {metric.title} {mean:+.{metric.digits}f} ± {error:.{metric.digits}f}, "
            f"better on {100 * better:.0f} % of {len(gaps)} images.\n"
        )
    return "".join(lines)


def _write_worst(
    folders: Mapping[str, Path], runs: Mapping[str, Results], metric: Metric, count: int, out: Path
) -> str:
    """Write the sheet of worst cases; what stands in its way becomes a line of the table."""
    first = next(iter(runs.values()))
    figures = {name: _figures(one, metric.name) for name, one in runs.items()}
    sign = 1 if metric.better == "higher" else -1
    ours = figures[next(iter(runs))]
    chosen = sorted(_common(runs, metric.name), key=lambda index: sign * ours[index])[:count]
    names = {row.index: row.name for row in first.rows}
    lacking = [name for name, one in runs.items() if not one.about.get("restored")]
    if lacking:
        return f"No worst cases: {', '.join(lacking)} kept no restored images (evaluate with --save).\n"
    try:
        places = {name: folders[name] / one.about["restored"] for name, one in runs.items()}
        sheet = draw_worst([(index, names[index]) for index in chosen], first.about, places, figures, metric)
    except (OSError, ValueError) as error:
        return f"No worst cases: {' '.join(str(error).split())}.\n"
    save(sheet, out / "worst.png")
    return ""
