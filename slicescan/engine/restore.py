"""Restore images: whole, as a stream or in tiles, whatever type they come in."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from slicescan.engine.memory import bytes_a_pixel, free_memory, out_of_memory
from slicescan.engine.stream import rows_that_fit, stream, why_not
from slicescan.engine.tiles import tiled

Mode = Literal["auto", "whole", "stream", "tile"]
Amp = Literal["bf16", "fp16"]
Image = TypeVar("Image")

SMALLEST_TILE = 64
OVERLAP = 32
SMALL_IMAGE = 128 * 128
"""Pixels of a batch that is run whole without asking for memory."""

STREAMED_ON_CPU = 256 * 256
"""Pixels of a batch above which a CPU streams even what would fit: reused strips spare it fresh memory, hence time."""

RESERVE = 0.6
"""Share of the free memory that a prediction may fill."""

BRIGHTEST = 16
"""A floating-point image with larger values cannot be one in [0, 1]."""


def restore(
    model: nn.Module,
    image: Image,
    mode: Mode = "auto",
    tile: int | None = None,
    overlap: int | None = None,
    *,
    ensemble: bool = False,
    amp: Amp | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Image:
    """Restore an image with a network, on the network's device.

    Args:
        model: A network on RGB ``(b, 3, h, w)`` in [0, 1], such as :func:`slicescan.create_model` makes; it is put into
            evaluation mode. One for grey images (``in_chans`` is 1) restores each colour by itself.
        image: A Pillow image of mode L, RGB or RGBA; or an array ``(h, w)``, ``(h, w, 1)``, ``(h, w, 3)`` or
            ``(h, w, 4)``, uint8, uint16, or floating point in [0, 1]; or a tensor ``(c, h, w)`` or ``(b, c, h, w)``
            with 1 or 3 channels, uint8 or floating point. Alpha channels are kept as they are.
        mode: ``"whole"``: all at once. ``"stream"``: in strips of rows, for networks that can, with the result of the
            whole image. ``"tile"``: in overlapping tiles, blended; for networks that look at the whole image the result
            is an approximation. ``"auto"``: whole if it fits into memory, else as a stream, else in tiles; on a CPU,
            images that can be streamed are, unless small, since that is faster there.
        tile: Side of a tile in pixels, rounded down to a size that the network likes; by default what fits into memory.
            With ``mode="auto"`` it asks for tiles. Running out of memory halves it.
        overlap: Least number of pixels that neighbouring tiles share, at most half a tile, 32 by default.
        ensemble: Mean over the eight rotations and reflections of the image; takes eight times as long.
        amp: Run the network in this precision.
        progress: Called with the number of tiles done and of all, for each of the eight again with ``ensemble``.

    Returns:
        The restored image, in the type, dtype and memory of ``image``, clamped to its range.

    Raises:
        TypeError: The image is of an unknown type.
        ValueError: Shape, dtype, mode or number does not fit, or the network's result is not finite.
        MemoryError: The image, the thinnest strip or the smallest tile does not fit into memory.

    Example:
        >>> restore(nn.Identity(), np.full((4, 5, 3), 200, np.uint8)).shape
        (4, 5, 3)
    """
    check_mode(model, mode)
    for name, value, least in (("tile", tile, 1), ("overlap", overlap, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if amp not in (None, "bf16", "fp16"):
        raise ValueError(f"amp must be 'bf16', 'fp16' or None, got {amp!r}")
    model.eval()

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode():
            y = _per_channel(model, x, lambda x: _turned(ensemble, x, fitting))
            if not torch.isfinite(y).all():
                hint = "; fp16 overflows easily, try bf16" if amp == "fp16" else ""
                raise ValueError(f"the result of {type(model).__name__} has values that are not finite{hint}")
            return y

    def fitting(x: Tensor) -> Tensor:
        return _fitting(model, x, mode, tile, overlap, amp, progress)

    return _converted(image, run)


def check_mode(model: nn.Module, mode: str) -> None:
    """Refuse a mode that does not exist, or that a network does not have.

    Raises:
        ValueError: The message names the modes that can be used.
    """
    if mode not in ("auto", "whole", "stream", "tile"):
        raise ValueError(f"mode must be 'auto', 'whole', 'stream' or 'tile', got {mode!r}")
    reason = why_not(model) if mode == "stream" else None
    if reason is not None:
        raise ValueError(f"{type(model).__name__} cannot stream: {reason}; use mode='auto', 'whole' or 'tile'")


def _per_channel(model: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """Bring ``x``, ``(b, 1 or 3, h, w)``, to the channels of the network, and what it returns back."""
    wanted, given = getattr(model, "in_chans", 3), x.shape[1]
    if wanted == given:
        return run(x)
    if wanted == 3:  # a grey image
        return run(x.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
    if wanted == 1:  # each colour by itself
        return run(x.flatten(0, 1)[:, None]).unflatten(0, (-1, given)).flatten(1, 2)
    raise ValueError(f"{type(model).__name__} takes images of {wanted} channels; restore knows grey and RGB")


def _turned(ensemble: bool, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """The network's result, or the mean over those of all rotations and reflections, turned back."""
    if not ensemble:
        return run(x)
    total: Tensor | float = 0.0
    for flip in (False, True):
        for k in range(4):
            turned = x.rot90(k, (2, 3))
            restored = run(turned.flip(3) if flip else turned)
            total = total + (restored.flip(3) if flip else restored).rot90(-k, (2, 3))
    assert isinstance(total, Tensor)
    return total / 8


def _fitting(
    model: nn.Module,
    x: Tensor,
    mode: str,
    tile: int | None,
    overlap: int | None,
    amp: Amp | None,
    progress: Callable[[int, int], None] | None,
) -> Tensor:
    """Run the network on ``x``, ``(b, c, h, w)``, in pieces that fit."""
    weight = next(model.parameters(), torch.empty(0))
    device, dtype = weight.device, weight.dtype
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16, None: None}[amp]

    def treat(piece: Tensor, run: Callable[[Tensor], Tensor] = model) -> Tensor:
        piece = piece.to(device, dtype, copy=True)  # a network may overwrite what it is given
        with torch.autocast(device.type, precision) if precision else nullcontext():
            made = run(piece)
        return _checked(model, piece, made).to("cpu", x.dtype)

    side, streams = tile, mode == "stream"
    if mode == "auto" and tile is None and device.type == "cpu":
        streams = x.shape[0] * x.shape[2] * x.shape[3] > STREAMED_ON_CPU and why_not(model) is None
    if side is None and not streams and mode in ("auto", "tile"):
        side = _side_that_fits(model, x, device, treat, amp)
    if mode == "whole" or (mode == "auto" and side is None and not streams):
        try:
            made = treat(x)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if mode == "whole":
                raise MemoryError(
                    f"an image of {x.shape[3]}x{x.shape[2]} does not fit into the memory of {device}; "
                    f"use mode='auto', 'stream' or 'tile'"
                ) from error
            side = max(max(x.shape[2:]) // 2, SMALLEST_TILE)
        else:
            if progress:
                progress(1, 1)
            return made
    if mode == "stream" or (mode == "auto" and tile is None and why_not(model) is None):
        rows = None if streams else _rows_that_fit(model, x, device, treat, amp)
        if rows != 0:
            try:
                made = treat(x, lambda piece: stream(model, piece, rows))
            except MemoryError:
                if mode == "stream":
                    raise
            else:
                if progress:
                    progress(1, 1)
                return made
    multiple = getattr(model, "size_multiple", 1)
    side = side or max(x.shape[2:])
    while True:
        if device.type == "cuda":
            torch.cuda.empty_cache()
        side = max(side // multiple * multiple, multiple)
        try:
            shared = min(OVERLAP if overlap is None else overlap, side // 2)
            return tiled(treat, x, side, shared, multiple=multiple, progress=progress)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if side <= SMALLEST_TILE:
                raise MemoryError(f"a tile of {side}x{side} does not fit into the memory of {device}") from error
            side = max(side // 2, SMALLEST_TILE)


def _checked(model: nn.Module, given: Tensor, made: Any) -> Tensor:
    """What a network returned, if it is one image for each given, a whole number of times as large."""
    if not isinstance(made, Tensor):
        raise ValueError(f"{type(model).__name__} returned a {type(made).__name__}, expected one tensor")
    scale = made.shape[-1] // given.shape[-1] if made.ndim == 4 else 0
    if scale < 1 or made.shape != (*given.shape[:2], given.shape[2] * scale, given.shape[3] * scale):
        raise ValueError(
            f"{type(model).__name__} made {tuple(made.shape)} of {tuple(given.shape)}, expected the same shape, or "
            f"height and width a whole number of times as large"
        )
    return made


def _side_that_fits(
    model: nn.Module, x: Tensor, device: torch.device, treat: Callable[[Tensor], Tensor], amp: Amp | None
) -> int | None:
    """Side of the largest square tile that is predicted to fit; None if the whole image is."""
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    free = free_memory(device)
    if free is None or pixels <= SMALL_IMAGE:
        return None
    need = bytes_a_pixel(model, treat, x.shape[1], amp)
    if pixels * need <= RESERVE * free:
        return None
    return max(int((RESERVE * free / (need * x.shape[0])) ** 0.5), SMALLEST_TILE)


def _rows_that_fit(
    model: nn.Module, x: Tensor, device: torch.device, treat: Callable[[Tensor], Tensor], amp: Amp | None
) -> int | None:
    """Rows of strips that are predicted to fit; 0 if none are, None if that cannot be told."""
    free = free_memory(device)
    return (
        None
        if free is None
        else rows_that_fit(model, x.shape, RESERVE * free, bytes_a_pixel(model, treat, x.shape[1], amp))
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
    most = 255 if image.dtype == torch.uint8 else 1
    x = image.detach().to("cpu", torch.promote_types(image.dtype, torch.float32) if most == 1 else torch.float32)
    y = run(_in_range(x.reshape(-1, *image.shape[-3:]) / most)).clamp(0, 1)
    y = y.reshape(*image.shape[:-2], *y.shape[-2:])
    return (y.mul(most).round() if most > 1 else y).to(image.device, image.dtype)


def _on_array(image: np.ndarray, run: Callable[[Tensor], Tensor]) -> np.ndarray:
    most = {"uint8": 255, "uint16": 65535}.get(image.dtype.name, 1)
    if image.dtype.kind != "f" and most == 1:
        raise ValueError(f"expected an array of uint8, uint16 or floating point in [0, 1], got {image.dtype}")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)) or 0 in image.shape:
        raise ValueError(f"expected an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), got {image.shape}")
    colours = np.atleast_3d(image)[..., :3]
    wide = np.float64 if image.dtype.kind == "f" and image.dtype.itemsize > 4 else np.float32
    x = torch.from_numpy(np.array(colours, wide, order="C")).permute(2, 0, 1) / most
    y = run(_in_range(x[None]))[0].clamp(0, 1)
    restored = np.ascontiguousarray(y.permute(1, 2, 0).numpy())
    restored = (np.rint(restored * most) if most > 1 else restored).astype(image.dtype)
    if image.ndim == 3 and image.shape[2] == 4:
        if restored.shape[:2] != image.shape[:2]:
            raise ValueError("an image with alpha cannot change its size; restore its colours alone")
        restored = np.dstack([restored, image[..., 3]])
    return restored[..., 0] if image.ndim == 2 else restored


def _in_range(x: Tensor) -> Tensor:
    """``x``, unless its values show that it is no image in [0, 1]."""
    if x.max() > BRIGHTEST:
        raise ValueError(f"expected a floating-point image in [0, 1], got values up to {x.max():g}; divide by 255?")
    return x


def _on_pillow(image: Any, run: Callable[[Tensor], Tensor]) -> Any:
    from PIL import Image as Pillow

    if image.mode not in ("L", "RGB", "RGBA"):
        raise ValueError(f"expected a Pillow image of mode L, RGB or RGBA, got {image.mode}; convert it first")
    restored = Pillow.fromarray(_on_array(np.array(image), run))
    restored.info = dict(image.info)
    return restored
