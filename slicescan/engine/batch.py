"""Restore many files: which come in, where each goes, and what became of it."""

import glob
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slicescan.engine.photos import SUFFIXES, PhotoError, read_photo, write_photo


@dataclass(frozen=True)
class Job:
    """One file to restore."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a job: ``status`` is done, skipped or failed; ``error`` says why it failed."""

    job: Job
    status: str
    seconds: float
    error: str | None = None


def plan(inputs: Sequence[str], output: str | None, shard: tuple[int, int] = (0, 1)) -> list[Job]:
    """Find the files that inputs name, and decide where each result goes.

    Args:
        inputs: Files, folders (searched with their subfolders) and glob patterns.
        output: A file, if it ends in an image suffix and there is one input file; else a folder, in which results keep
            their relative names. None puts ``<stem>_restored<suffix>`` beside each input.
        shard: ``(i, n)``: only every n-th file, beginning with the i-th, 0-based.

    Raises:
        ValueError: A folder or pattern holds no image, two results would have one name, or a result would overwrite
            its input. Files that do not exist are planned, and fail by themselves.
    """
    found: list[tuple[Path, Path]] = []  # file, name relative to what the user gave
    for given in inputs:
        place = Path(given)
        if place.is_dir():
            files = sorted(file for file in place.rglob("*") if _is_image(file))
            if not files:
                raise ValueError(f"{given}: no images in this folder (looked for {', '.join(SUFFIXES)})")
            found += [(file, file.relative_to(place)) for file in files]
        elif not place.exists() and glob.has_magic(given):
            files = [Path(file) for file in sorted(glob.glob(given, recursive=True)) if Path(file).is_file()]
            if not files:
                raise ValueError(f"{given}: no file fits this pattern")
            found += [(file, Path(file.name)) for file in files]
        else:
            found.append((place, Path(place.name)))
    found = list(dict.fromkeys(found))
    if output is None:
        jobs = [Job(file, file.with_name(f"{file.stem}_restored{file.suffix}")) for file, _ in found]
    elif len(found) == 1 and Path(output).suffix.lower() in SUFFIXES and not Path(output).is_dir():
        jobs = [Job(found[0][0], Path(output))]
    else:
        jobs = [Job(file, Path(output) / name) for file, name in found]
    taken: dict[str, Path] = {}
    for job in jobs:
        target = os.path.abspath(job.target)
        if target in taken:
            raise ValueError(f"{taken[target]} and {job.source} would both be written to {job.target}")
        taken[target] = job.source
        if target == os.path.abspath(job.source):
            raise ValueError(f"{job.source}: the result would overwrite its input; choose another output")
    return jobs[shard[0] :: shard[1]]


def work(
    jobs: Sequence[Job], restore: Callable[[np.ndarray], np.ndarray], *, skip_existing: bool = False
) -> Iterator[Outcome]:
    """Do jobs one after the other; a failed one does not stop the rest.

    Args:
        jobs: What to do.
        restore: Takes and returns pixels, ``(h, w)`` or ``(h, w, 3)``, uint8 or uint16.
        skip_existing: Leave out jobs whose result is there already.
    """
    for job in jobs:
        start = time.monotonic()
        status, error = "done", None
        try:
            if skip_existing and job.target.exists():
                status = "skipped"
            else:
                photo = read_photo(job.source)
                write_photo(job.target, photo, restore(photo.pixels))
        except (PhotoError, OSError, MemoryError, ValueError, RuntimeError) as cause:
            status, error = "failed", one_line(cause, job.source)
        yield Outcome(job, status, time.monotonic() - start, error)


def one_line(error: BaseException, about: Path | str) -> str:
    """An error as one line that begins with the file it is about."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.startswith(str(about)) else f"{about}: {text}"


def _is_image(file: Path) -> bool:
    return file.is_file() and file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
