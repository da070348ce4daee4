"""Which pictures belong together: the layouts of deblurring data sets, told by the names of folders and files alone.

A word of a path says on which side a picture is (``blur``, ``input``, ``trainA``; ``sharp``, ``target``, ``gt``),
another whether it is for training or testing. What is left of the path is the same for both partners.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from slicescan.engine.data.pictures import DataError, File, Pair, Picture, is_image, walk
from slicescan.engine.data.stores import MARK, stored

SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "val": "val", "validation": "val"}
BLURRED = ("blur", "blurred", "blurry", "blur_gamma", "input", "inputs", "lq", "degraded", "a")
SHARP = ("sharp", "gt", "target", "targets", "groundtruth", "ground_truth", "hq", "clean", "b")
SIDES = {**dict.fromkeys(BLURRED, "blurred"), **dict.fromkeys(SHARP, "sharp")}
IN_NAME = re.compile(r"(?<![a-z])(blurred|blurry|blur|input|lq|sharp|target|gt|hq)(?![a-z])", re.IGNORECASE)
LIST = re.compile(r"(?i)RealBlur_?[JR]?_(train|test)_list\.txt")
GOPRO = re.compile(r"GOPR\d+")


@dataclass(frozen=True)
class PairSet:
    """Pairs of one split.

    Attributes:
        layout: What the folder looks like, in words.
        split: ``train``, ``test``, ``val``, or "" where names do not tell.
        variant: ``blur`` or ``blur_gamma`` where there are both, else "".
        pairs: In the order of their names; ``sharp`` is None in a set without references.
        problems: Pictures without a partner, one line each.
    """

    layout: str
    split: str
    variant: str
    pairs: tuple[Pair, ...]
    problems: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Split and variant, for messages."""
        return " ".join(filter(None, (self.split or "all", self.variant)))


@dataclass(frozen=True)
class Entry:
    """A picture, and what its path says: side, split, and a key that its partner shares."""

    picture: Picture
    parts: tuple[str, ...]
    side: str
    side_word: str
    split: str
    key: tuple[str, ...]


def find_sets(root: str | Path) -> list[PairSet]:
    """Find the pairs of a folder without opening a picture.

    Known: GoPro's archive (``train/SEQUENCE/blur|blur_gamma|sharp/FRAME``), its grouped (``train/blur/SEQUENCE/FRAME``)
    and flat re-packs (``train/input|target``, ``trainA|trainB``), HIDE (``GT`` beside ``train`` and ``test``, and
    re-packs), RealBlur (scenes with ``blur`` and ``gt`` and the lists of training and test pairs, and re-packs),
    BasicSR's LMDB stores, and any folder whose names have such words. Pictures without any are a set without
    references, as RWBI is.

    Returns:
        One set for each split, and for each of ``blur`` and ``blur_gamma``.

    Raises:
        FileNotFoundError: There is no such folder.
        DataError: It holds no picture, or two with the same name.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     for name in ("train/input/1.png", "train/target/1.png"):
        ...         (Path(folder) / name).parent.mkdir(parents=True)
        ...         (Path(folder) / name).touch()  # a name is enough, no picture is opened
        ...     [(found.split, len(found.pairs)) for found in find_sets(folder)]
        [('train', 1)]
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    lists: list[Path] = []
    entries = [_entry(picture, parts) for parts, picture in _pictures(root, lists)]
    if not entries:
        raise DataError(f"{root}: no pictures here, neither files nor LMDB stores")
    if lists:
        return _listed(root, entries, lists)
    sharp = [entry for entry in entries if entry.side == "sharp"]
    blurred = [entry for entry in entries if entry.side == "blurred"]
    if not blurred and sharp:
        return _hide(root, entries, sharp)
    if not sharp:
        return _alone(blurred or entries)
    variants = {entry.side_word for entry in blurred} >= {"blur", "blur_gamma"}
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in blurred:
        groups.setdefault((entry.split, entry.side_word if variants else ""), []).append(entry)
    layout = _describe(blurred, sharp)
    sets = [
        _matched(layout, split, variant, group, [entry for entry in sharp if entry.split == split])
        for (split, variant), group in sorted(groups.items())
    ]
    for split in sorted({entry.split for entry in sharp} - {entry.split for entry in blurred}):
        lonely = [entry for entry in sharp if entry.split == split]
        sets.append(_matched(layout, split, "", [], lonely))
    return sets


def pair_folders(blurred: str | Path, sharp: str | Path) -> PairSet:
    """Pair two folders or LMDB stores by names; suffixes, and words such as ``blur`` and ``gt``, may differ.

    Raises:
        FileNotFoundError: One of them is missing.
        DataError: One of them holds no picture, or two with the same name.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as mine, TemporaryDirectory() as theirs:
        ...     (Path(mine) / "cat_blur.jpg").touch()
        ...     (Path(theirs) / "cat_gt.png").touch()
        ...     len(pair_folders(mine, theirs).pairs)
        1
    """
    sides = []
    for side, folder in (("blurred", Path(blurred)), ("sharp", Path(sharp))):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
        found = [(parts, picture) for parts, picture in _pictures(folder, [])]
        if not found:
            raise DataError(f"{folder}: no pictures here, neither files nor an LMDB store")
        sides.append([Entry(picture, parts, side, "", "", _key(parts)) for parts, picture in found])
    return _matched("two folders", "", "", *sides)


def choose(sets: Sequence[PairSet], split: str = "train", variant: str = "blur") -> PairSet:
    """The set of a split, or the only one if names do not tell; it must be whole.

    Raises:
        DataError: There is no such set, it has no references, or a picture has no partner.

    Example:
        >>> choose([PairSet("flat", "test", "", ()), PairSet("flat", "train", "", ())], "test").split
        'test'
    """
    fitting = [one for one in sets if one.split in (split, "")]
    fitting = [one for one in fitting if one.variant in (variant, "")]
    if not fitting:
        raise DataError(f"no {split!r} pairs ({variant}); found: {', '.join(one.title for one in sets)}")
    chosen = max(fitting, key=lambda one: one.split == split)
    if chosen.problems:
        more = f" ({len(chosen.problems)} such; `slicescan data check` tells more)" if len(chosen.problems) > 1 else ""
        raise DataError(chosen.problems[0] + more)
    if any(pair.sharp is None for pair in chosen.pairs):
        raise DataError(f"{chosen.pairs[0].blurred}: this set has no sharp pictures ({chosen.layout})")
    return chosen


def choose_held_out(sets: Sequence[PairSet], variant: str = "blur") -> PairSet:
    """The set to measure on: ``val``, else ``test``, else the only one.

    Raises:
        DataError: As :func:`choose`.
    """
    return choose(sets, "val" if any(one.split == "val" for one in sets) else "test", variant)


def split_of(parts: Sequence[str]) -> str:
    """What the folders of a path say about its split; "" if nothing.

    Example:
        >>> split_of(("test", "GOPR0384_11_00")), split_of(("trainA",)), split_of(("holiday",))
        ('test', 'train', '')
    """
    return next((split for split, _ in map(_meaning, parts) if split), "")


def _pictures(root: Path, lists: list[Path]) -> Iterator[tuple[tuple[str, ...], Picture]]:
    """Parts of the relative path, and the picture; files that list RealBlur's pairs are put in ``lists``."""
    for folder, names in walk(root):
        parts = folder.relative_to(root).parts
        if MARK in names:
            parts = (*parts[:-1], parts[-1].removesuffix(".lmdb")) if parts else parts
            for entry in stored(folder):
                yield (*parts, *entry.key.split("/")), entry
            continue
        for name in names:
            if is_image(name):
                yield (*parts, name), File(folder / name)
            elif LIST.fullmatch(name):
                lists.append(folder / name)


def _meaning(part: str) -> tuple[str, str]:
    """Split and side that a folder's name tells, "" for what it does not."""
    word = part.lower().removesuffix(".lmdb").removesuffix("_crops").removesuffix("_sub")
    if word in SPLITS:
        return SPLITS[word], ""
    if word in SIDES:
        return "", word
    for prefix, split in SPLITS.items():
        rest = word.removeprefix(prefix).lstrip("_-")
        if word.startswith(prefix) and rest in SIDES:
            return split, rest
    return "", ""


def _entry(picture: Picture, parts: tuple[str, ...]) -> Entry:
    split, word, kept = "", "", []
    for part in parts[:-1]:
        says_split, says_side = _meaning(part)
        split = split or says_split
        if says_side:
            kept += [word] if word else []  # of two words for sides, the inner one counts
            word = says_side
        elif not says_split:
            kept.append(part)
    if not word:
        in_name = IN_NAME.search(parts[-1].rpartition(".")[0] or parts[-1])
        word = in_name[0].lower() if in_name else ""
    return Entry(picture, parts, SIDES.get(word, ""), word, split, _key((*kept, parts[-1])))


def _key(parts: tuple[str, ...]) -> tuple[str, ...]:
    stem, dot, suffix = parts[-1].rpartition(".")
    stem = stem if dot and is_image(parts[-1]) else parts[-1]
    return (*parts[:-1], IN_NAME.sub("*", stem))


def _matched(layout: str, split: str, variant: str, blurred: Sequence[Entry], sharp: Sequence[Entry]) -> PairSet:
    partners = _by_key(sharp)
    ours = _by_key(blurred)
    pairs = [
        Pair("/".join(entry.parts), entry.picture, partners[key].picture)
        for key, entry in ours.items()
        if key in partners
    ]
    problems = [f"{entry.picture}: no sharp partner" for key, entry in ours.items() if key not in partners]
    problems += [f"{entry.picture}: no blurred partner" for key, entry in partners.items() if key not in ours]
    return PairSet(layout, split, variant, tuple(pairs), tuple(problems))


def _by_key(entries: Sequence[Entry]) -> dict[tuple[str, ...], Entry]:
    found: dict[tuple[str, ...], Entry] = {}
    for entry in sorted(entries, key=lambda entry: entry.key):
        if entry.key in found:
            raise DataError(f"{entry.picture}: has the same name as {found[entry.key].picture}")
        found[entry.key] = entry
    return found


def _alone(entries: Sequence[Entry]) -> list[PairSet]:
    groups: dict[str, list[Pair]] = {}
    for entry in entries:
        groups.setdefault(entry.split, []).append(Pair("/".join(entry.parts), entry.picture, None))
    return [PairSet("pictures without references", split, "", tuple(pairs)) for split, pairs in sorted(groups.items())]


def _hide(root: Path, entries: Sequence[Entry], sharp: Sequence[Entry]) -> list[PairSet]:
    """HIDE's archive: ``GT`` has the partners of ``train`` and ``test``, all in one folder."""
    partners = {entry.key[-1]: entry for entry in sharp}
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        if not entry.side:
            groups.setdefault(entry.split, []).append(entry)
    if not groups:
        raise DataError(f"{root}: only sharp pictures ({sharp[0].side_word}), no blurred ones")
    sets = []
    for split, group in sorted(groups.items()):
        used = [partners[entry.key[-1]] for entry in group if entry.key[-1] in partners]
        flat = [Entry(e.picture, e.parts, e.side, e.side_word, e.split, e.key[-1:]) for e in (*group, *used)]
        sets.append(_matched("HIDE's archive (GT beside the rest)", split, "", flat[: len(group)], flat[len(group) :]))
    return sets


def _listed(root: Path, entries: Sequence[Entry], lists: Sequence[Path]) -> list[PairSet]:
    """RealBlur's archive: files list the pairs of training and testing, a line for each: sharp, then blurred."""
    known = {entry.parts: entry for entry in entries}
    groups: dict[str, tuple[list[Pair], list[str]]] = {}
    for file in sorted(lists):
        found = LIST.fullmatch(file.name)
        pairs, problems = groups.setdefault(found[1].lower() if found else "", ([], []))
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            names = [tuple(name.strip("./").split("/")) for name in line.split()[:2]]
            if len(names) < 2:
                continue
            couple = [known.get(name) or known.get(name[1:]) for name in names]
            gone = ["/".join(name) for name, entry in zip(names, couple, strict=True) if entry is None]
            if gone:
                problems.append(f"{root / gone[0]}: named in {file.name}, line {number}, and not there")
                continue
            sharp, blurred = couple if couple[1].side == "blurred" else couple[::-1]  # type: ignore[union-attr]
            pairs.append(Pair("/".join(blurred.parts), blurred.picture, sharp.picture))  # type: ignore[union-attr]
    layout = "RealBlur's archive (scenes with blur and gt, and lists of pairs)"
    return [PairSet(layout, split, "", tuple(pairs), tuple(bad)) for split, (pairs, bad) in sorted(groups.items())]


def _describe(blurred: Sequence[Entry], sharp: Sequence[Entry]) -> str:
    parts = blurred[0].parts
    ours, theirs = ("|".join(sorted({_side_name(entry) for entry in side})) for side in (blurred, sharp))
    sides = [index for index, part in enumerate(parts[:-1]) if _meaning(part)[1]]
    sequence = [index for index, part in enumerate(parts) if GOPRO.match(part)]
    store = "" if isinstance(blurred[0].picture, File) else "LMDB stores, "
    if sequence and sequence[0] == len(parts) - 1:
        return f"{store}GoPro flat ({ours} and {theirs})"
    if sequence and sides and sequence[0] < sides[-1]:
        return f"GoPro's archive (SEQUENCE/{ours}/FRAME and SEQUENCE/{theirs}/FRAME)"
    if sequence and sides:
        return f"{store}GoPro grouped ({ours}/SEQUENCE/FRAME and {theirs}/SEQUENCE/FRAME)"
    if re.search(r"(?i)scene\d+", "/".join(parts)) and "gt" in sharp[-1].parts[-1].lower():
        return f"RealBlur ({ours} and {theirs})"
    return f"{store}paired by {ours} and {theirs}"


def _side_name(entry: Entry) -> str:
    """The folder that tells a picture's side, as it is spelt; the word in its name if none does."""
    return next((part for part in reversed(entry.parts[:-1]) if _meaning(part)[1]), entry.side_word)
