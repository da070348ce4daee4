"""Blur a sharp photograph as a shaking hand would: how the photographs in ``examples/photos`` were made.

python examples/blur_a_photo.py sharp.jpg blurred.jpg --seed 5 --extent 11
"""

import argparse
import math

import numpy as np
import torch
from PIL import Image

from slicescan.engine.blur import GAMMA, expose, scaled, shake, to_8_bits

POSITIONS = 33


def blur(photo: np.ndarray, *, extent: float, seed: int, turn: float = 0.003, noise: float = 0.004) -> np.ndarray:
    """Expose a photograph along a random camera path while the camera turns a little.

    Args:
        photo: ``(h, w, 3)`` uint8.
        extent: Larger side of the path's bounding box, in pixels.
        seed: Draws of path and noise.
        turn: Rotation to either side during the exposure, in radians; it makes the blur differ from place to place.
        noise: Standard deviation of the noise, in units of [0, 1].

    Returns:
        uint8, smaller than ``photo`` on every side by what the camera saw from beyond its edge.
    """
    draw = torch.Generator().manual_seed(seed)
    path = scaled(shake(POSITIONS, draw)[None], torch.tensor([extent]))
    light = (torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255).pow(GAMMA)
    seen = expose(light, path, turn * torch.linspace(-1, 1, POSITIONS)[None])
    margin = math.ceil(path.abs().max().item() + turn * max(photo.shape[:2]) / 2)
    seen = seen[..., margin:-margin, margin:-margin].clamp(0, 1).pow(1 / GAMMA)
    seen = to_8_bits(seen + noise * torch.randn(seen.shape, generator=draw))
    return (seen[0].permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)


def main() -> None:
    """Read, blur, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sharp")
    parser.add_argument("blurred")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--extent", type=float, default=11.0, help="extent of the camera path in pixels")
    options = parser.parse_args()
    with Image.open(options.sharp) as image:
        photo = np.array(image.convert("RGB"))
    blurred = blur(photo, extent=options.extent, seed=options.seed)
    Image.fromarray(blurred).save(options.blurred, quality=95, subsampling=0)


if __name__ == "__main__":
    main()
