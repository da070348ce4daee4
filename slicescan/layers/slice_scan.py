"""SliceScan2D: scan inside every row and every column."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from slicescan.layers.halves import HalvesScanner, ScanStrip
from slicescan.layers.hooks import is_pointwise
from slicescan.layers.mamba import Mamba, Past
from slicescan.layers.memory_order import as_image
from slicescan.layers.strips import Strip
from slicescan.ops.library import autocast_dtype, without_autocast


class SliceScan2D(HalvesScanner):
    """Let every pixel know those before it in its row, by half of the channels, and in its column, by the other half.

    Each row is one sequence, and so is each column; no sequence knows another.

    ``a, b = halves(conv_input(x))``, ``y = fuse_out(cat(mamba(rows of a), mamba(columns of b)))``.

    Args:
        dim: Channels, even.
        state: Size of the state of each inner channel.
        bidirectional: Whether each sequence is also scanned from its end, and the two outputs summed.
        shared: Whether one Mamba serves all directions. Otherwise rows, columns and their backward scans have their
            own.
        bias: Whether the two 1x1 convolutions have a bias.

    Shape:
        ``(b, dim, h, w)`` to the same.

    Source:
        XYScanNet (arXiv 2412.10338), Eq. 2-3, pixel-level scan.

    Example:
        >>> import torch
        >>> SliceScan2D(8)(torch.rand(1, 8, 3, 5)).shape
        torch.Size([1, 8, 3, 5])
    """

    def __init__(
        self, dim: int, *, state: int = 16, bidirectional: bool = False, shared: bool = True, bias: bool = False
    ):
        super().__init__()
        self._add_scanner(dim, state, bidirectional, shared, bias)

    def _add_scanner(self, dim: int, state: int, bidirectional: bool, shared: bool, bias: bool) -> None:
        self._add_projections(dim, bias)
        self.bidirectional, self.shared = bidirectional, shared
        self.mamba = Mamba(dim // 2, state=state)
        if not shared:
            self.mamba_columns = Mamba(dim // 2, state=state)
            if bidirectional:
                self.mamba_back = Mamba(dim // 2, state=state)
                self.mamba_columns_back = Mamba(dim // 2, state=state)

    def _forward_mambas(self) -> tuple[Mamba, Mamba]:
        """That of the rows, and that of the columns."""
        return self.mamba, self.mamba if self.shared else self.mamba_columns

    def scan(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Scan the rows of ``first`` and the columns of ``second``, ``(b, h, w, dim / 2)`` each."""
        rows, columns = self._forward_mambas()
        first_out, second_out = rows.scan(first, axis="w"), columns.scan(second, axis="h")
        if self.bidirectional:
            rows_back, columns_back = (rows, rows) if self.shared else (self.mamba_back, self.mamba_columns_back)
            first_out = first_out + rows_back.scan(first, axis="w", reverse=True)
            second_out = second_out + columns_back.scan(second, axis="h", reverse=True)
        return first_out, second_out

    def _scan_together(self, first: Tensor, second: Tensor) -> Tensor:
        mambas = self._forward_mambas()
        if self.bidirectional or torch.is_grad_enabled() or not self._writes(first, *mambas):
            return super()._scan_together(first, second)
        return self._beside(mambas, first, second, self.dim, project=True)

    def _writes(self, x: Tensor, *mambas: Mamba) -> bool:
        """Whether each half of the channels can be written where it belongs, as a GPU's products can."""
        own = type(self).scan is SliceScan2D.scan
        return own and x.is_cuda and all([mamba.projects_apart(x) for mamba in mambas])

    def _beside(
        self, mambas: tuple[Mamba, Mamba], first: Tensor, second: Tensor, channels: int, *, project: bool
    ) -> Tensor:
        """What both scans make, side by side, ``(b, h, w, channels)``; nothing is recorded."""
        y = first.new_empty(*first.shape[:3], channels, dtype=autocast_dtype(first))
        left, right = y.chunk(2, -1)
        mambas[0].scan_to(first, left, axis="w", project=project)
        mambas[1].scan_to(second, right, axis="h", project=project)
        return y

    def _fused(self, first: Tensor, second: Tensor) -> Tensor:
        rows, columns = mambas = self._forward_mambas()
        if not (self._joins(first) and rows.projects_apart(first) and columns.projects_apart(second)):
            return super()._fused(first, second)
        with without_autocast(first.device.type):
            fuse = self.fuse_out.weight.view(self.dim, 2, -1)
            if rows is columns:
                last = (fuse.flatten(0, 1) @ rows.out_proj.weight).unflatten(0, (-1, 2))  # dim, 2, inner
            else:
                last = torch.stack([fuse[:, 0] @ rows.out_proj.weight, fuse[:, 1] @ columns.out_proj.weight], 1)
        if not torch.is_grad_enabled():
            last = last.flatten(1)
            return as_image(F.linear(self._beside(mambas, first, second, last.shape[1], project=False), last))
        total = rows.add_scan(first, last[:, 0], None, axis="w")
        return as_image(columns.add_scan(second, last[:, 1], total, axis="h"))

    def _joins(self, x: Tensor) -> bool:
        """Whether the last projection of a scan and ``fuse_out`` may be one product, which spares three maps.

        So it is on a GPU in half precision; in float32 users choose the arithmetic of convolutions separately.
        """
        halved = x.is_cuda and x.dtype.itemsize == 2 and type(self).scan is SliceScan2D.scan
        return halved and not self.bidirectional and is_pointwise(self.fuse_out) and self.fuse_out.bias is None

    def scan_strips(self, maps: Iterable[Tensor]) -> ScanStrip:
        """Scan strips in order: the columns of one go on where those of the last ended."""
        if self.bidirectional:
            raise ValueError("a bidirectional SliceScan2D cannot be streamed: its columns are scanned from both ends")
        rows, columns = self._forward_mambas()
        past: Past | None = None

        def scan(_: Strip, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal past
            second_out, past = columns.resume(second, past, axis="h")
            return rows.scan(first, axis="w"), second_out

        return scan

    def extra_repr(self) -> str:
        """Directions, for ``repr``."""
        return f"{self.dim}, bidirectional={self.bidirectional}, shared={self.shared}"
