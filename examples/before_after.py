"""Lay a photograph and what a network makes of it side by side: how the picture in the README is made.

python examples/before_after.py blurred.jpg picture.jpg --model xyscannet_tiny
"""

import argparse

from PIL import Image

import slicescan

GAP = 8  # pixels of white between the two


def side_by_side(before: Image.Image, after: Image.Image) -> Image.Image:
    """One picture of two of the same size."""
    both = Image.new("RGB", (before.width + GAP + after.width, before.height), "white")
    both.paste(before, (0, 0))
    both.paste(after, (before.width + GAP, 0))
    return both


def main() -> None:
    """Read, restore, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("blurred")
    parser.add_argument("picture")
    parser.add_argument("--model", default="xyscannet_tiny")
    options = parser.parse_args()
    model = slicescan.create_model(options.model, pretrained=True)
    with Image.open(options.blurred) as image:
        before = image.convert("RGB")
    side_by_side(before, slicescan.restore(model, before)).save(options.picture, quality=88)


if __name__ == "__main__":
    main()
