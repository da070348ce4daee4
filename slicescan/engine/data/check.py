"""What a data set on disk is, and where it does not fit together."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from slicescan.engine.data.layouts import PairSet, find_sets, pair_folders
from slicescan.engine.data.patches import size_mismatch
from slicescan.engine.data.pictures import DataError, Pair


@dataclass(frozen=True)
class Checked:
    """One split of a data set.

    Attributes:
        layout: What the folder looks like.
        split: ``train``, ``test``, ``val`` or "".
        variant: ``blur`` or ``blur_gamma`` where there are both, else "".
        pairs: Pairs, or pictures without references.
        references: Whether there are sharp pictures.
        sizes: How often each size occurs, as ``WIDTHxHEIGHT``, most frequent first.
        mismatches: One line for each picture without a partner, of another size than it, or unreadable.
    """

    layout: str
    split: str
    variant: str
    pairs: int
    references: bool
    sizes: dict[str, int] = field(default_factory=dict)
    mismatches: tuple[str, ...] = ()


def check(path: str | Path, sharp: str | Path | None = None) -> list[Checked]:
    """Look at every pair of a data set: partners by name, sizes by the heads of the files; pixels are not decoded.

    Args:
        path: Folder or LMDB store, see :func:`~slicescan.engine.data.find_sets`.
        sharp: Folder or store of the sharp pictures, if they lie elsewhere.

    Raises:
        FileNotFoundError: There is no such folder.
        DataError: There are no pictures in it, or two with the same name.
    """
    return [_checked(one) for one in ([pair_folders(path, sharp)] if sharp else find_sets(path))]


def report(checked: list[Checked]) -> str:
    """The result as lines for people."""
    lines = []
    for layout in dict.fromkeys(one.layout for one in checked):
        lines.append(f"layout: {layout}")
        for one in (one for one in checked if one.layout == layout):
            title = " ".join(filter(None, (one.split or "all", one.variant)))
            what = "pairs" if one.references else "pictures without references"
            lines.append(f"  {title}: {one.pairs} {what}, {_sizes(one.sizes)}")
    bad = [line for one in checked for line in one.mismatches]
    if bad:
        lines.append(f"mismatches: {len(bad)}; the first: {bad[0]}")
    return "\n".join(lines)


def _checked(one: PairSet) -> Checked:
    sizes: Counter[str] = Counter()
    mismatches = list(one.problems)
    with ThreadPoolExecutor() as pool:
        for size, problem in pool.map(_compare, one.pairs):
            if size:
                sizes[size] += 1
            if problem:
                mismatches.append(problem)
    references = any(pair.sharp is not None for pair in one.pairs) or bool(one.problems)
    counted = dict(sizes.most_common())
    return Checked(one.layout, one.split, one.variant, len(one.pairs), references, counted, tuple(mismatches))


def _compare(pair: Pair) -> tuple[str, str]:
    """Size of a pair's pictures, and what is wrong with them."""
    try:
        h, w = pair.blurred.size()
        sharp = pair.sharp.size() if pair.sharp else (h, w)
    except (DataError, OSError) as error:
        return "", str(error)
    return f"{w}x{h}", "" if sharp == (h, w) else size_mismatch(pair, (h, w), sharp)


def _sizes(sizes: dict[str, int]) -> str:
    if not sizes:
        return "sizes unknown"
    listed = ", ".join(f"{count} of {size}" if len(sizes) > 1 else size for size, count in list(sizes.items())[:3])
    return listed + (f" and {len(sizes) - 3} other sizes" if len(sizes) > 3 else "")
