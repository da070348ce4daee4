"""Named protocols: how the papers on a data set turn a restored image and its reference into PSNR and SSIM."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from slicescan.engine.metrics.fidelity import psnr, ssim, volume_ssim
from slicescan.engine.metrics.realblur import align, aligned_psnr, aligned_ssim


@dataclass(frozen=True)
class Protocol:
    """How the results on a data set are made and measured.

    Attributes:
        name: What result files call it.
        about: One sentence on what is measured.
        compare: Figures of a restored image against its reference, both uint8 RGB ``(3, h, w)``; None where there are
            no references.
        multiple: Images are padded right and bottom to a multiple of this, by reflection, before a network sees them.
        metrics: What is measured if nothing else is asked for.
    """

    name: str
    about: str
    compare: Callable[[Tensor, Tensor], dict[str, float]] | None
    multiple: int = 1
    metrics: tuple[str, ...] = ("psnr", "ssim")


def _volume(restored: Tensor, sharp: Tensor) -> dict[str, float]:
    return {"psnr": psnr(restored, sharp), "ssim": volume_ssim(restored, sharp)}


def _plain(restored: Tensor, sharp: Tensor) -> dict[str, float]:
    return {"psnr": psnr(restored, sharp), "ssim": ssim(restored, sharp)}


def _aligned(restored: Tensor, sharp: Tensor) -> dict[str, float]:
    found = align(restored, sharp)
    return {"psnr": aligned_psnr(found), "ssim": aligned_ssim(found)}


_MATLAB = "PSNR of 8-bit RGB, peak 255; SSIM of the image as a volume, 11x11x11, borders repeated, as MATLAB's"

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("gopro", _MATLAB, _volume),
        Protocol("hide", _MATLAB, _volume),
        Protocol(
            "realblur",
            "brightness and position fitted to the reference (ECC, homography); PSNR and SSIM where both are seen",
            _aligned,
            multiple=8,
        ),
        Protocol("rwbi", "NIQE; there are no references", None, multiple=8, metrics=("niqe",)),
        Protocol("plain", "PSNR of 8-bit RGB, peak 255; SSIM of each channel, Gaussian 1.5, range 255", _plain),
    )
}
"""Every protocol by its name."""


def find_protocol(name: str) -> Protocol:
    """A protocol by name.

    Raises:
        ValueError: There is none; the message has the nearest name.

    Example:
        >>> find_protocol("realblur").multiple
        8
    """
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, 1)
        hint = f"; did you mean {near[0]!r}" if near else ""
        raise ValueError(f"there is no protocol {name!r}{hint}. There are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
