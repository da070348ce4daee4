"""How good restored images are, by named protocols and by the field's perceptual metrics."""

from slicescan.engine.metrics.fidelity import psnr, quantize, ssim, volume_ssim
from slicescan.engine.metrics.niqe import niqe
from slicescan.engine.metrics.protocols import PROTOCOLS, Protocol, find_protocol

__all__ = ["PROTOCOLS", "Protocol", "find_protocol", "niqe", "psnr", "quantize", "ssim", "volume_ssim"]
