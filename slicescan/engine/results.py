"""Results of an evaluation on disk: a table of images, a summary, and shards that become one."""

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicescan.engine.metrics.catalogue import METRICS

OF_A_SHARD = ("images", "failed", "mean", "seconds", "device", "backend", "unavailable", "shard")
"""Facts in which shards of one evaluation may differ."""


@dataclass(frozen=True)
class Row:
    """Figures of one image.

    Attributes:
        index: Place among the pairs of the data set.
        name: Relative name of the blurred picture.
        figures: Metrics by name.
        seconds: Time to restore it; None for restored files.
        error: Why it has no figures, or not all of them.
    """

    index: int
    name: str
    figures: Mapping[str, float]
    seconds: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Results:
    """An evaluation: how it was made, and the figures of every image.

    Attributes:
        about: Protocol, model, weights, data, settings, versions: everything that the figures depend on.
        rows: In the order of the data set.
    """

    about: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def mean(self) -> dict[str, float]:
        """Mean of every metric over the images that have it; sets of images have their own figure."""
        found = {}
        for name in METRICS:
            values = [row.figures[name] for row in self.rows if name in row.figures]
            if values:
                found[name] = sum(values) / len(values)
        return found | self.about.get("sets", {})

    @property
    def errors(self) -> list[str]:
        """One line for each image or metric that failed."""
        failed = [f"{row.name}: {row.error}" for row in self.rows if row.error]
        return failed + list(dict.fromkeys(self.about.get("unavailable", {}).values()))

    def summary(self) -> dict[str, Any]:
        """What goes into ``summary.json``."""
        counts = {"images": len(self.rows), "failed": sum(bool(row.error) for row in self.rows)}
        return {**self.about, **counts, "mean": self.mean}


def write_results(folder: str | Path, results: Results) -> None:
    """Write ``images.csv`` and ``summary.json``, or those of a shard; each appears when it is complete."""
    folder = Path(folder)
    table, summary = _files(folder, results.about.get("shard"))
    names = [name for name in METRICS if any(name in row.figures for row in results.rows)]
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["index", "name", *names, "seconds", "error"])
    for row in results.rows:
        figures = [repr(row.figures[name]) if name in row.figures else "" for name in names]
        seconds = "" if row.seconds is None else f"{row.seconds:.4f}"
        lines.writerow([row.index, row.name, *figures, seconds, row.error])
    table.parent.mkdir(parents=True, exist_ok=True)
    write_text(table, text.getvalue())
    write_text(summary, json.dumps(_plain(results.summary()), indent=1, allow_nan=False) + "\n")


def read_results(folder: str | Path, shard: str | None = None) -> Results:
    """Read what :func:`write_results` wrote.

    Raises:
        FileNotFoundError: There is no evaluation in this folder.
        ValueError: Its files are damaged.
    """
    table, summary = _files(Path(folder), shard)
    for file in (table, summary):
        if not file.is_file():
            raise FileNotFoundError(f"{folder}: no results of an evaluation ({file.name} is not there)")
    try:
        about = json.loads(summary.read_text(encoding="utf-8"))
        with table.open(encoding="utf-8", newline="") as lines:
            rows = tuple(_row(line) for line in csv.DictReader(lines))
        if len(rows) != about["images"]:
            raise ValueError(f"{len(rows)} images of {about['images']}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: damaged results ({error})") from None
    for made in ("images", "failed", "mean"):
        about.pop(made)
    return Results(about, rows)


def merge(folder: str | Path, count: int) -> Results | None:
    """Join the shards ``0/count`` to ``count-1/count`` of one evaluation; None while some are missing.

    Raises:
        ValueError: The shards are not of one evaluation; the message names what differs.
    """
    names = [f"{i}/{count}" for i in range(count)]
    if not all(file.is_file() for name in names for file in _files(Path(folder), name)):
        return None
    shards = [read_results(folder, name) for name in names]
    first = shards[0]
    for name, shard in zip(names, shards, strict=True):
        for key in first.about.keys() | shard.about.keys():
            ours, theirs = first.about.get(key), shard.about.get(key)
            if ours != theirs and key not in OF_A_SHARD:
                raise ValueError(f"{folder}: shards 0/{count} and {name} differ in {key}: {ours} and {theirs}")
    rows = sorted((row for shard in shards for row in shard.rows), key=lambda row: row.index)
    if [row.index for row in rows] != list(range(first.about["pairs"])):
        raise ValueError(f"{folder}: the shards have {len(rows)} images, not each of {first.about['pairs']} once")
    about = {key: value for key, value in first.about.items() if key != "shard"}
    about["seconds"] = sum(shard.about["seconds"] for shard in shards)
    about["unavailable"] = {k: v for shard in shards for k, v in shard.about["unavailable"].items()}
    for key in ("device", "backend"):
        about[key] = ", ".join(sorted({str(shard.about[key]) for shard in shards if shard.about[key]})) or None
    return Results(about, tuple(rows))


def write_text(file: Path, text: str) -> None:
    """Write a file under a temporary name and rename it."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}.partial")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, file)


def _files(folder: Path, shard: str | None) -> tuple[Path, Path]:
    if shard is None:
        return folder / "images.csv", folder / "summary.json"
    stem = shard.replace("/", "-of-")
    return folder / "shards" / f"{stem}.csv", folder / "shards" / f"{stem}.json"


def _row(line: dict[str, str]) -> Row:
    figures = {name: float(line[name]) for name in METRICS if line.get(name)}
    seconds = float(line["seconds"]) if line["seconds"] else None
    return Row(int(line["index"]), line["name"], figures, seconds, line["error"])


def _plain(value: Any) -> Any:
    """JSON has no infinity: it becomes text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
