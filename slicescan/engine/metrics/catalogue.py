"""Every metric that an evaluation knows, and which way is better."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A figure of an evaluation.

    Attributes:
        name: What files and options call it.
        title: What tables call it.
        kind: Whether the protocol defines it, or it measures a pair, a single image, or two sets of images.
        better: Which way is better.
        digits: Decimals in tables.
    """

    name: str
    title: str
    kind: Literal["protocol", "pair", "single", "set"]
    better: Literal["higher", "lower"]
    digits: int = 3


METRICS = {
    metric.name: metric
    for metric in (
        Metric("psnr", "PSNR dB", "protocol", "higher", 2),
        Metric("ssim", "SSIM", "protocol", "higher", 4),
        Metric("niqe", "NIQE", "single", "lower", 2),
        Metric("lpips", "LPIPS", "pair", "lower", 4),
        Metric("stlpips", "ST-LPIPS", "pair", "lower", 4),
        Metric("dists", "DISTS", "pair", "lower", 4),
        Metric("fid", "FID", "set", "lower", 2),
        Metric("kid", "KID", "set", "lower", 4),
    )
}
"""Every metric by its name, in the order of tables."""
