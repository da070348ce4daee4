"""Find the restored image of every blurred one, however the folder that holds them is built."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from slicescan.engine.photos import SUFFIXES


def find_restored(folder: str | Path, names: Sequence[str]) -> dict[str, Path]:
    """The restored file of every name.

    A file fits if it has the stem of the name, whatever its suffix; of several, the one that shares most folders with
    the name, so that ``SEQUENCE/000001.png`` is found for ``test/SEQUENCE/blur/000001.png``.

    Args:
        folder: Searched with its subfolders.
        names: Relative names of blurred pictures, with forward slashes.

    Raises:
        FileNotFoundError: The folder or a file is not there; the message names the first.
        ValueError: Two files fit a name equally well, or one file fits two names.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of restored images")
    by_stem: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in SUFFIXES and file.is_file():
            by_stem.setdefault(file.stem, []).append(file)
    found: dict[str, Path] = {}
    taken: dict[Path, str] = {}
    for name in names:
        wanted = PurePosixPath(name)
        stem = PurePosixPath(saved_name(name)).stem
        files = by_stem.get(stem, [])
        if not files:
            raise FileNotFoundError(f"{folder}: no restored image for {name} (looked for {stem}.*)")
        shared = [len(set(wanted.parts[:-1]) & set(file.relative_to(folder).parts[:-1])) for file in files]
        best = [file for file, count in zip(files, shared, strict=True) if count == max(shared)]
        if len(best) > 1:
            raise ValueError(f"{folder}: both {best[0].name} in {best[0].parent} and {best[1].parent} fit {name}")
        if best[0] in taken:
            raise ValueError(f"{best[0]}: fits both {taken[best[0]]} and {name}")
        found[name], taken[best[0]] = best[0], name
    return found


def saved_name(name: str) -> str:
    """What the restored image of a blurred picture is saved as, below a folder of its own.

    Example:
        >>> saved_name("test/blur/000001.jpg"), saved_name("GOPR0384.11_000001")  # an entry of a store has no suffix
        ('test/blur/000001.png', 'GOPR0384.11_000001.png')
    """
    path = PurePosixPath(name)
    stem = path.stem if path.suffix.lower() in SUFFIXES else path.name
    return str(path.with_name(f"{stem}.png"))
