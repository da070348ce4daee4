"""Random patches of pairs, batch by batch; what a batch holds depends on nothing but the seed and its number."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from slicescan.engine.config import DataSection
from slicescan.engine.data.kept import Kept
from slicescan.engine.data.pictures import DataError, Pair
from slicescan.engine.processes import WHOLE, Part, share


class PairPatches:
    """Cut equal patches from both pictures of pairs, flipped and turned alike.

    Every epoch goes through all pairs in a new order. An item depends only on seed, epoch and the pair's index, so that
    a run that goes on from a checkpoint sees what an undisturbed one sees. Pictures are opened when they are needed,
    by several threads, and stay in memory up to ``data.memory``.

    Args:
        pairs: All with a sharp picture.
        data: Patches, flips, channels.
        seed: Draws of everything.
        device: Where batches are put.

    Raises:
        ValueError: There are no pairs, or one has no sharp picture.

    Example:
        >>> import tempfile, pathlib
        >>> from PIL import Image
        >>> from slicescan.engine.data import choose, find_sets
        >>> root = pathlib.Path(tempfile.mkdtemp())
        >>> for side in ("blur", "sharp"):
        ...     (root / side).mkdir()
        ...     Image.new("RGB", (40, 30)).save(root / side / "1.png")
        >>> source = PairPatches(choose(find_sets(root)).pairs, DataSection(patch=16, batch=2))
        >>> blurred, sharp = source.batch(step=0)
        >>> blurred.shape, sharp.shape
        (torch.Size([2, 3, 16, 16]), torch.Size([2, 3, 16, 16]))
    """

    def __init__(self, pairs: Sequence[Pair], data: DataSection, *, seed: int = 0, device: str | torch.device = "cpu"):
        if not pairs:
            raise ValueError("there are no pairs to learn from")
        for pair in pairs:
            if pair.sharp is None:
                raise DataError(f"{pair.blurred}: no sharp partner to learn from")
        self.pairs, self.data, self.seed, self.device = list(pairs), data, seed, torch.device(device)
        self.kept = Kept(int(data.memory * 2**30))
        self.threads = ThreadPoolExecutor(data.threads(), "pictures")
        self.order = lru_cache(2)(self._order)

    def batch(self, step: int, part: Part = WHOLE) -> tuple[Tensor, Tensor]:
        """Pairs of one step: blurred and sharp, ``(batch, 3, patch, patch)`` each, float32 in [0, 1].

        Args:
            step: Number of the step.
            part: Of several processes, which one asks: it gets its share of the batch.

        Raises:
            DataError: A picture cannot be read, partners differ in size, or are smaller than a patch.
        """
        patch, _ = self.data.size_at(step)
        places = self.places(step)
        places = [places[rank] for rank in share(len(places), part)]
        items = list(self.threads.map(lambda place: self.item(place[0], place[1], patch), places))
        blurred, sharp = (torch.stack(side).to(self.device) for side in zip(*items, strict=True))
        return blurred, sharp

    def size(self, step: int) -> int:
        """Pairs in the whole batch of a step."""
        return len(self.places(step)) if self.data.short_last else self.data.size_at(step)[1]

    def places(self, step: int) -> list[tuple[int, int]]:
        """Epoch and index of every item of a batch."""
        count, size = len(self.pairs), self.data.size_at(step)[1]
        if self.data.short_last:
            epoch, batch = divmod(step, -(-count // size))
            ranks = range(batch * size, min(count, (batch + 1) * size))
            return [(epoch, self.order(epoch)[rank]) for rank in ranks]
        first = self.data.items_before(step)
        places = (divmod(position, count) for position in range(first, first + size))
        return [(epoch, self.order(epoch)[rank]) for epoch, rank in places]

    def item(self, epoch: int, index: int, patch: int) -> tuple[Tensor, Tensor]:
        """One pair of patches, ``(3, patch, patch)``: the same for the same seed, epoch, index and size, always."""
        draw = draws(self.seed, epoch, index)
        blurred, sharp = self._read(index)
        h, w = blurred.shape[:2]
        if min(h, w) < patch:
            raise DataError(f"{self.pairs[index].blurred}: {w}x{h} pixels, smaller than a patch of {patch}")
        top, left = (int(torch.randint(size - patch + 1, (), generator=draw)) for size in (h, w))
        across, down, turned = (torch.rand(3, generator=draw) < torch.tensor(self._odds())).tolist()
        patches = []
        for image in (blurred, sharp):
            cut = image[top : top + patch, left : left + patch]
            cut = cut[:, ::-1] if across else cut
            cut = cut[::-1] if down else cut
            cut = np.rot90(cut) if turned else cut
            cut = cut[..., ::-1] if self.data.channels == "bgr" else cut
            scale = np.float32(np.iinfo(cut.dtype).max)
            patches.append(torch.from_numpy(np.ascontiguousarray(cut.transpose(2, 0, 1)).astype(np.float32) / scale))
        return patches[0], patches[1]

    def _odds(self) -> tuple[float, float, float]:
        flips = 0.5 if self.data.flips else 0.0
        return flips, flips, self.data.quarter_turns

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        pair = self.pairs[index]
        assert pair.sharp is not None
        blurred = self.kept.get(2 * index, pair.blurred.read)
        sharp = self.kept.get(2 * index + 1, pair.sharp.read)
        if blurred.shape != sharp.shape:
            raise DataError(size_mismatch(pair, blurred.shape, sharp.shape))
        return blurred, sharp

    def _order(self, epoch: int) -> list[int]:
        return torch.randperm(len(self.pairs), generator=draws(self.seed, epoch, "order")).tolist()


def size_mismatch(pair: Pair, blurred: Sequence[int], sharp: Sequence[int]) -> str:
    """The line that names a pair whose pictures differ in ``(h, w)``."""
    return f"{pair.blurred}: {blurred[1]}x{blurred[0]} pixels, its sharp partner {pair.sharp} {sharp[1]}x{sharp[0]}"


def draws(*what: int | str) -> torch.Generator:
    """A generator that depends on all of these values and nothing else, on any machine."""
    mixed = hashlib.sha256(repr(what).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(mixed[:8], "big") >> 1)
