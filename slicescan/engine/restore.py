"""Restore images: whole or in tiles, whatever type they come in."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from slicescan.engine.profile import profile
from slicescan.engine.tiles import tiled

Mode = Literal["auto", "whole", "stream", "tile"]
Image = TypeVar("Image")

SMALLEST_TILE = 64
OVERLAP = 32
BYTES_A_PIXEL = 4096
"""Assumed for networks whose memory cannot be predicted."""

RESERVE = 0.6
"""Share of the free memory that a prediction may fill."""

_memory_a_pixel: WeakKeyDictionary[nn.Module, float] = WeakKeyDictionary()


def restore(
    model: nn.Module,
    image: Image,
    mode: Mode = "auto",
    tile: int | None = None,
    overlap: int | None = None,
    *,
    ensemble: bool = False,
    amp: Literal["bf16", "fp16"] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Image:
    """Restore an image with a network, on the network's device.

    Args:
        model: A network on RGB ``(b, 3, h, w)`` in [0, 1], such as :func:`slicescan.create_model` makes; it is put into
            evaluation mode.
        image: A Pillow image; or an array ``(h, w)``, ``(h, w, 1)``, ``(h, w, 3)`` or ``(h, w, 4)``, uint8, uint16, or
            floating point in [0, 1]; or a tensor ``(c, h, w)`` or ``(b, c, h, w)`` with 1 or 3 channels, uint8 or
            floating point. Alpha channels are kept as they are.
        mode: ``"whole"``: all at once. ``"tile"``: in overlapping tiles, blended; for networks that look at the whole
            image the result is an approximation. ``"auto"``: whole if it fits into memory, else in tiles.
        tile: Side of a tile in pixels; by default what fits into memory. Running out of memory halves it.
        overlap: Pixels that neighbouring tiles share, 32 by default.
        ensemble: Mean over the eight rotations and reflections of the image; takes eight times as long.
        amp: Run the network in this precision.
        progress: Called with the number of tiles done and of all.

    Returns:
        The restored image, in the type, dtype and memory of ``image``, clamped to its range.

    Raises:
        TypeError: The image is of an unknown type.
        ValueError: Shape, dtype or mode does not fit.
        MemoryError: The image, or the smallest tile, does not fit into memory.

    Example:
        >>> restore(nn.Identity(), np.full((4, 5, 3), 200, np.uint8)).shape
        (4, 5, 3)
    """
    if mode not in ("auto", "whole", "stream", "tile"):
        raise ValueError(f"mode must be 'auto', 'whole', 'stream' or 'tile', got {mode!r}")
    if mode == "stream":
        raise ValueError(f"{type(model).__name__} cannot stream; use mode='auto', 'whole' or 'tile'")
    model.eval()

    def run(x: Tensor) -> Tensor:
        turns = [(k, flip) for flip in (False, True) for k in range(4)] if ensemble else [(0, False)]
        total = None
        for k, flip in turns:
            turned = x.rot90(k, (2, 3))
            restored = _fitting(model, turned.flip(3) if flip else turned, mode, tile, overlap, amp, progress)
            restored = (restored.flip(3) if flip else restored).rot90(-k, (2, 3))
            total = restored if total is None else total + restored
        assert total is not None
        return total / len(turns) if ensemble else total

    with torch.inference_mode():
        return _converted(image, run)


def _fitting(
    model: nn.Module,
    x: Tensor,
    mode: str,
    tile: int | None,
    overlap: int | None,
    amp: str | None,
    progress: Callable[[int, int], None] | None,
) -> Tensor:
    """Run the network on ``x``, ``(b, 3, h, w)``, in pieces that fit."""
    weight = next(model.parameters(), torch.empty(0))
    device, dtype = weight.device, weight.dtype
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16, None: None}[amp]

    def treat(piece: Tensor) -> Tensor:
        piece = piece.to(device, dtype)
        with torch.autocast(device.type, precision) if precision else nullcontext():
            return model(piece)

    side = tile or 0
    if mode == "whole" or (mode == "auto" and not tile and _side_that_fits(model, x, device) is None):
        try:
            return treat(x).float().cpu()
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if mode == "whole":
                raise MemoryError(
                    f"an image of {x.shape[3]}x{x.shape[2]} does not fit into the memory of {device}; "
                    f"use mode='auto' or 'tile'"
                ) from error
            side = max(x.shape[2:]) // 2
    multiple = getattr(model, "size_multiple", 1)
    side = side or _side_that_fits(model, x, device) or max(x.shape[2:])
    while True:
        side = max(side // multiple * multiple, multiple)
        try:
            shared = min(OVERLAP if overlap is None else overlap, side // 2)
            return tiled(treat, x, side, shared, scale=getattr(model, "scale", 1), progress=progress)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if side <= SMALLEST_TILE:
                raise MemoryError(f"a tile of {side}x{side} does not fit into the memory of {device}") from error
            side = max(side // 2, SMALLEST_TILE)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _side_that_fits(model: nn.Module, x: Tensor, device: torch.device) -> int | None:
    """Side of the largest square tile that is predicted to fit; None if the whole image is."""
    free = _free_memory(device)
    if free is None:
        return None
    need = _bytes_a_pixel(model) * x.shape[0]
    if x.shape[2] * x.shape[3] * need <= RESERVE * free:
        return None
    return max(int((RESERVE * free / need) ** 0.5), SMALLEST_TILE)


def _bytes_a_pixel(model: nn.Module) -> float:
    """Peak memory of one pass for each pixel, predicted from shapes."""
    if model not in _memory_a_pixel:
        try:
            side = 64
            _memory_a_pixel[model] = 1.5 * profile(model, (3, side, side)).activation_bytes / side**2
        except Exception:  # any module may come here, and some cannot be followed by shapes alone
            _memory_a_pixel[model] = BYTES_A_PIXEL
    return _memory_a_pixel[model]


def _free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had; None where that cannot be told."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        sign in text for sign in ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate")
    )


def _converted(image: Any, run: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``run``, on ``(b, 3, h, w)`` in [0, 1], to an image of any known type."""
    if isinstance(image, Tensor):
        return _on_tensor(image, run)
    if isinstance(image, np.ndarray):
        return _on_array(image, run)
    if hasattr(image, "convert") and hasattr(image, "mode"):
        return _on_pillow(image, run)
    raise TypeError(f"expected a Pillow image, a NumPy array or a tensor, got {type(image).__name__}")


def _on_tensor(image: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    channels = image.shape[-3] if image.ndim in (3, 4) else 0
    if channels not in (1, 3) or 0 in image.shape:
        raise ValueError(f"expected a tensor (c, h, w) or (b, c, h, w) with 1 or 3 channels, got {tuple(image.shape)}")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ValueError(f"expected a tensor of uint8 or floating point in [0, 1], got {image.dtype}")
    whole = image.dtype == torch.uint8
    x = image.reshape(-1, *image.shape[-3:]).float() / (255 if whole else 1)
    y = run(x.expand(-1, 3, -1, -1)).clamp(0, 1)
    y = y.mean(1, keepdim=True) if channels == 1 else y
    y = y.reshape(*image.shape[:-2], *y.shape[-2:])
    return (y.mul(255).round() if whole else y).to(image.device, image.dtype)


def _on_array(image: np.ndarray, run: Callable[[Tensor], Tensor]) -> np.ndarray:
    most = {"uint8": 255, "uint16": 65535}.get(image.dtype.name, 1)
    if image.dtype.kind != "f" and most == 1:
        raise ValueError(f"expected an array of uint8, uint16 or floating point in [0, 1], got {image.dtype}")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)) or 0 in image.shape:
        raise ValueError(f"expected an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), got {image.shape}")
    colours = np.atleast_3d(image)[..., :3]
    x = torch.from_numpy(np.ascontiguousarray(colours).astype(np.float32) / most)
    y = run(x.permute(2, 0, 1)[None].expand(-1, 3, -1, -1))[0].clamp(0, 1)
    y = y.mean(0, keepdim=True) if colours.shape[2] == 1 else y
    restored = y.permute(1, 2, 0).numpy()
    restored = (np.rint(restored * most) if most > 1 else restored).astype(image.dtype)
    if image.ndim == 3 and image.shape[2] == 4:
        if restored.shape[:2] != image.shape[:2]:
            raise ValueError("an image with alpha cannot change its size; restore its colours alone")
        restored = np.dstack([restored, image[..., 3]])
    return restored[..., 0] if image.ndim == 2 else restored


def _on_pillow(image: Any, run: Callable[[Tensor], Tensor]) -> Any:
    from PIL import Image as Pillow

    if image.mode not in ("L", "RGB", "RGBA"):
        raise ValueError(f"expected a Pillow image of mode L, RGB or RGBA, got {image.mode}; convert it first")
    restored = Pillow.fromarray(_on_array(np.array(image), run))
    restored.info = dict(image.info)
    return restored
