"""``slicescan export``: a network as a file that other runtimes open."""

import argparse
from typing import Any

from slicescan.commands.options import height_and_width, open_network


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "export",
        help="write a network as ONNX or as a PyTorch program",
        description="Batch, height and width stay free; height and width must be multiples of the number printed.",
    )
    command.add_argument("model", metavar="MODEL", help="name of a model or file of weights")
    command.add_argument("-o", "--output", required=True, metavar="FILE", help="ends in .onnx or .pt2")
    command.add_argument("--size", type=height_and_width, metavar="HxW", help="size of the image to trace with")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from slicescan.engine.export import about, check_suffix, export

    check_suffix(options.output)  # before weights are read
    model, _ = open_network(options.model, None, "cpu")
    path = export(model, options.output, size=options.size)
    known = about(model)
    print(f"{path}: {known['architecture']}, {path.stat().st_size:,} bytes, sizes of {known['size_multiple']} n")
    return 0
