"""``slicescan erf``: what networks see, side by side."""

import argparse
from typing import Any

from slicescan.commands.options import height_and_width, open_network, positive


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "erf",
        help="effective receptive fields of networks, side by side",
        description="Differentiate the centre of the output by the input; write a picture on a logarithmic scale and "
        "the figures as JSON beside it.",
    )
    command.add_argument("models", nargs="+", metavar="MODEL", help="name of a model or file of weights")
    command.add_argument("-o", "--output", default="erf.png", metavar="PNG")
    command.add_argument("--size", type=height_and_width, default=(256, 256), metavar="HxW", help="input (256x256)")
    command.add_argument("--images", type=positive, default=4, help="random inputs to average over")
    command.add_argument("--photos", metavar="FOLDER", help="take the centres of these photographs as inputs instead")
    command.add_argument("--seed", type=int, default=0, help="of the random inputs")
    command.add_argument("--untrained", action="store_true", help="random weights instead of trained ones")
    command.add_argument("--device", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from pathlib import Path

    import torch

    from slicescan.engine.erf import effective_receptive_field
    from slicescan.engine.erf_picture import write_fields
    from slicescan.registry import create_model

    if Path(options.output).suffix.lower() != ".png":
        raise ValueError(f"-o {options.output}: the picture is a PNG file; name it .png")
    images = _centres(options.photos, options.size, options.images) if options.photos else options.images
    fields = {}
    for name in options.models:
        if options.untrained:
            torch.manual_seed(options.seed)
            model: Any = create_model(name).to(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        else:
            model, _ = open_network(name, None, options.device)
        title = Path(name).stem if Path(name).exists() else name
        title = title if title not in fields else name
        fields[title] = effective_receptive_field(model, options.size, images=images, seed=options.seed)
        seen = fields[title].change or fields[title]
        print(
            f"{title}: 50 % within {seen.radius(0.5):.1f} px, 90 % within {seen.radius(0.9):.1f} px, "
            f"{100 * seen.share(16):.2f} % within 16 px, {100 * seen.cross:.1f} % on the cross",
            flush=True,
        )
    write_fields(fields, options.output)
    print(f"{options.output}, {Path(options.output).with_suffix('.json')}")
    return 0


def _centres(folder: str, size: tuple[int, int], count: int) -> Any:
    """Centre crops of the first photographs of a folder, ``(b, 3, h, w)`` in [0, 1]."""
    import torch

    from slicescan.engine.pictures import read_pictures

    crops = []
    for name, photo in read_pictures(folder)[:count]:
        top, left = ((have - want) // 2 for have, want in zip(photo.shape[1:], size, strict=True))
        if min(top, left) < 0:
            raise ValueError(f"{name}: a photograph of {photo.shape[1]}x{photo.shape[2]} is smaller than --size")
        crops.append(photo[:, top : top + size[0], left : left + size[1]].float() / 255)
    return torch.stack(crops)
