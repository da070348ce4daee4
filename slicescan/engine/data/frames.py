"""Blur from videos of many frames a second, as GoPro's was made: the mean of a few frames; the middle one is sharp."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slicescan.engine.data.layouts import PairSet, split_of
from slicescan.engine.data.pictures import DataError, File, Pair, in_order, is_image, walk


def average(frames: Sequence[np.ndarray], gamma: float = 2.2) -> np.ndarray:
    """Mean of the light of frames, as one exposure of all of them sees it.

    Args:
        frames: Equal shapes, uint8 or uint16.
        gamma: Light is the displayed value to this power: 2.2 gives GoPro's ``blur_gamma``; 1 averages the displayed
            values themselves, GoPro's ``blur``.

    Returns:
        The shape and dtype of a frame, rounded to nearest.

    Source:
        Nah et al. 2017, Eq. 1.

    Example:
        >>> frames = [np.array([[[0, 0, 0]]], np.uint8), np.array([[[255, 255, 0]]], np.uint8)]
        >>> average(frames, gamma=1.0).tolist(), average(frames).tolist()
        ([[[128, 128, 0]]], [[[186, 186, 0]]])
    """
    most = np.iinfo(frames[0].dtype).max
    light = np.zeros(frames[0].shape)
    for frame in frames:
        light += (frame / most) ** gamma
    return np.floor((light / len(frames)) ** (1 / gamma) * most + 0.5).astype(frames[0].dtype)


@dataclass(frozen=True)
class Averaged:
    """The mean of some frames, computed when it is read."""

    files: tuple[File, ...]
    gamma: float

    def __str__(self) -> str:
        return f"{self.files[0]} ... {self.files[-1].path.name}"

    def read(self) -> np.ndarray:
        """Pixels ``(h, w, 3)``, RGB, uint8 or uint16.

        Raises:
            DataError: A frame differs from the first in its size or depth.
        """
        frames = [file.read() for file in self.files]
        for file, frame in zip(self.files, frames, strict=True):
            if frame.shape != frames[0].shape or frame.dtype != frames[0].dtype:
                raise DataError(
                    f"{file}: a frame of {frame.shape[1]}x{frame.shape[0]}, {frame.dtype}; the first of its exposure, "
                    f"{self.files[0].path.name}, has {frames[0].shape[1]}x{frames[0].shape[0]}, {frames[0].dtype}"
                )
        return average(frames, self.gamma)

    def size(self) -> tuple[int, int]:
        """Height and width of the first frame."""
        return self.files[0].size()


def frame_sets(root: str | Path, frames: int, gamma: float = 2.2) -> list[PairSet]:
    """Pairs from folders of frames, such as GoPro's ``train/SEQUENCE/000001.png``.

    Every folder is one sequence in the order of its numbers, cut into groups of ``frames`` that do not overlap; what
    is left at the end is not used.

    Args:
        root: Folder of sequences, searched with its subfolders.
        frames: Frames of an exposure, odd, so that one is the middle.
        gamma: See :func:`average`.

    Returns:
        One set for each of train, test and val in the paths; one named "" if they have none.

    Raises:
        ValueError: ``frames`` is not odd, or gamma not positive.
        FileNotFoundError: There is no such folder.
        DataError: No sequence is long enough.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     (Path(folder) / "train" / "street").mkdir(parents=True)
        ...     for number in range(7):
        ...         (Path(folder) / "train" / "street" / f"{number:06}.png").touch()
        ...     [(found.split, len(found.pairs)) for found in frame_sets(folder, frames=3)]
        [('train', 2)]
    """
    if frames < 3 or frames % 2 == 0:
        raise ValueError(
            f"frames={frames}: an exposure is an odd number of frames, 3 or more, so that one is the middle"
        )
    if gamma <= 0:
        raise ValueError(f"gamma={gamma}: expected a positive power, 2.2, or 1 for the displayed values")
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    found: dict[str, list[Pair]] = {}
    longest = 0
    for folder, names in walk(root):
        listed = [File(folder / name) for name in sorted(filter(is_image, names), key=in_order)]
        longest = max(longest, len(listed))
        pairs = found.setdefault(split_of(folder.relative_to(root).parts), [])
        for start in range(0, len(listed) - frames + 1, frames):
            group = tuple(listed[start : start + frames])
            sharp = group[frames // 2]
            pairs.append(Pair(sharp.path.relative_to(root).as_posix(), Averaged(group, gamma), sharp))
    sets = [
        PairSet(f"sequences of frames, mean of {frames}", split, "", tuple(pairs))
        for split, pairs in sorted(found.items())
        if pairs
    ]
    if not sets:
        raise DataError(f"{root}: no folder has {frames} frames, the longest sequence has {longest}")
    return sets
