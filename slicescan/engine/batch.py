"""Restore many files: which come in, where each goes, and what became of it."""

import glob
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slicescan.engine.photos import SUFFIXES, check_format, read_photo, write_photo


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


@dataclass(frozen=True)
class Found:
    """A file, its name relative to what the user gave, and whether the user gave it by that very name."""

    file: Path
    name: Path
    named: bool


def plan(inputs: Sequence[str], output: str | None, shard: tuple[int, int] = (0, 1)) -> list[Job]:
    """Find the files that inputs name, and decide where each result goes.

    Args:
        inputs: Files, folders (searched with their subfolders) and glob patterns, which fit images and folders. What a
            search comes upon is left out if it is hidden, in the output folder, or a result beside its input.
        output: A file, if it ends in an image suffix and there is one input file; else a folder, in which results keep
            their names relative to the folder given, or to the folders of a pattern before its first wildcard. None
            puts ``<stem>_restored<suffix>`` beside each input.
        shard: ``(i, n)``: only every n-th file, beginning with the i-th, 0-based.

    Raises:
        ValueError: A folder or pattern holds no image, two results would have one name, or a result would overwrite an
            input. Files that do not exist are planned, and fail by themselves.

    Example:
        >>> plan(["a.jpg"], None)[0].target.name, plan(["a.jpg", "b.jpg"], "out")[1].target.as_posix()
        ('a_restored.jpg', 'out/b.jpg')
    """
    every: dict[str, Found] = {}
    for given in inputs:
        for one in _files(given, output):
            every.setdefault(os.path.abspath(one.file), one)
    found = list(every.values())
    if output is None:
        results = {os.path.realpath(_beside(one.file)) for one in found}
        found = [one for one in found if one.named or os.path.realpath(one.file) not in results]
        jobs = [Job(one.file, _beside(one.file)) for one in found]
    elif len(found) == 1 and not Path(inputs[0]).is_dir() and _names_file(output):
        jobs = [Job(found[0].file, Path(output))]
    else:
        jobs = [Job(one.file, Path(output) / one.name) for one in found]
    _check_targets(jobs)
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
                check_format(job.target, photo)
                _check_place(job.target)
                write_photo(job.target, photo, restore(photo.pixels))
        except Exception as cause:  # whatever it is, the other files are not to blame
            status, error = "failed", one_line(cause, job.source)
        yield Outcome(job, status, time.monotonic() - start, error)


def one_line(error: BaseException, about: Path | str) -> str:
    """An error as one line that begins with the file it is about.

    Example:
        >>> one_line(ValueError("of no use"), "a.jpg"), one_line(KeyError("b"), "a.jpg")
        ('a.jpg: of no use', "a.jpg: KeyError: 'b'")
    """
    text = " ".join(str(error).split())
    if not text:
        text = type(error).__name__
    elif not isinstance(error, ValueError | OSError | MemoryError | RuntimeError | ImportError):
        text = f"{type(error).__name__}: {text}"  # its words were not meant for users
    return text if text.startswith(f"{about}:") else f"{about}: {text}"


def _files(given: str, output: str | None) -> list[Found]:
    """Files that one input of the user names."""
    place = Path(given)
    if place.is_dir():
        files = _search(place, output)
        if not files:
            raise ValueError(f"{given}: no images in this folder (looked for {', '.join(SUFFIXES)})")
        return [Found(file, file.relative_to(place), named=False) for file in files]
    if os.path.lexists(place) or not glob.has_magic(given):
        return [Found(place, Path(place.name), named=True)]
    parts = place.parts
    fixed = Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
    matches = [Path(name) for name in sorted(glob.glob(given, recursive=True))]
    images = [file for one in matches for file in (_search(one, output) if one.is_dir() else [one]) if _is_image(file)]
    if not images:
        raise ValueError(f"{given}: no image fits this pattern (looked for {', '.join(SUFFIXES)})")
    return [Found(file, file.relative_to(fixed), named=False) for file in dict.fromkeys(images)]


def _search(folder: Path, output: str | None) -> list[Path]:
    """Images in a folder and those below it, but for hidden ones and the output folder's."""
    own, top = os.path.realpath(output) if output else "", os.path.realpath(folder)
    inside = own != top and Path(own).is_relative_to(top)
    found = []
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if not hidden and _is_image(file) and not (inside and Path(os.path.realpath(file)).is_relative_to(own)):
            found.append(file)
    return found


def _check_targets(jobs: Sequence[Job]) -> None:
    sources = {os.path.realpath(job.source): job.source for job in jobs}
    taken: dict[str, Path] = {}
    for job in jobs:
        target = os.path.realpath(job.target)
        if target in taken:
            raise ValueError(f"{taken[target]} and {job.source} would both be written to {job.target}")
        taken[target] = job.source
        if target == os.path.realpath(job.source):
            raise ValueError(f"{job.source}: the result would overwrite its input; choose another output")
        if target in sources:
            raise ValueError(
                f"{job.source}: the result would overwrite {sources[target]}, which is an input too; "
                f"choose another output"
            )


def _check_place(target: Path) -> None:
    """Make the folder of a result, and refuse one that cannot be written, before the long work."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{target}: cannot be written ({error.strerror})") from None
    if target.is_dir():
        raise OSError(f"{target}: cannot be written (a folder is in its place)")
    if not os.access(target.parent, os.W_OK):
        raise OSError(f"{target}: cannot be written (no permission)")


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.stem}_restored{file.suffix}")


def _names_file(output: str) -> bool:
    return Path(output).suffix.lower() in SUFFIXES and not Path(output).is_dir() and not output.endswith(("/", os.sep))


def _is_image(file: Path) -> bool:
    return file.is_file() and file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
