"""``slicescan evaluate``: figures of a network, or of restored images, on a data set; several runs side by side."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from slicescan.commands.options import count, height_and_width, open_network, positive, shard


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "evaluate",
        help="measure a network or restored images on a data set, or compare such measurements",
        description="Measure WHAT on a data set by a named protocol: a model's name, a file of weights, or a folder of "
        "restored images. With --compare, WHAT are folders of results, which are set side by side.",
    )
    command.add_argument("what", nargs="+", metavar="WHAT")
    command.add_argument("--out", required=True, metavar="FOLDER", help="folder for the results")
    command.add_argument("--compare", action="store_true", help="table, plot and worst cases of several results")
    command.add_argument("--worst", type=positive, default=6, metavar="N", help="with --compare: images of the sheet")
    command.add_argument("--data", metavar="FOLDER", help="GoPro, HIDE, RealBlur, RWBI, or any folder of pairs")
    command.add_argument("--protocol", default="plain", help="gopro, hide, realblur, rwbi, plain")
    command.add_argument(
        "--metrics", metavar="A,B", help="psnr, ssim, niqe, lpips, stlpips, dists, fid, kid (those of the protocol)"
    )
    command.add_argument("--split", choices=["test", "train", "val"], default="test")
    command.add_argument("--variant", choices=["blur", "blur_gamma"], default="blur")
    command.add_argument("--checkpoint", metavar="FILE", help="weights for the model named by WHAT")
    command.add_argument("--mode", choices=["auto", "whole", "stream", "tile"], default="whole")
    command.add_argument("--tile", type=positive, help="side of a tile in pixels")
    command.add_argument("--overlap", type=count, help="pixels that neighbouring tiles share")
    command.add_argument("--amp", choices=["bf16", "fp16"], help="run the network in this precision")
    command.add_argument("--ensemble", action="store_true", help="mean over rotations and reflections, 8 times slower")
    command.add_argument("--device", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    command.add_argument("--save", action="store_true", help="keep the restored images below FOLDER/images")
    command.add_argument("--shard", type=shard, default=(0, 1), metavar="i/n", help="every n-th pair, from the i-th")
    command.add_argument("--patch", type=height_and_width, metavar="HxW", help="cut images for FID and KID, as 240x256")
    command.add_argument("--weights", metavar="FOLDER", help="weights of the metrics (PyTorch's cache)")
    command.add_argument("--json", action="store_true", help="one JSON object an image, and the summary")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; 0 only if every image and metric succeeded."""
    if options.compare:
        from slicescan.engine.compare import compare

        print(compare(options.what, options.out, worst=options.worst))
        return 0
    if len(options.what) > 1:
        raise ValueError("one WHAT at a time is measured; --compare sets folders of results side by side")
    if not options.data:
        raise ValueError("--data: name the folder of the data set")
    from slicescan.engine.evaluate import check_metrics, evaluate
    from slicescan.engine.metrics import find_protocol

    (what,) = options.what
    metrics = options.metrics.split(",") if options.metrics else None
    check_metrics(metrics, find_protocol(options.protocol))
    folder = Path(what).is_dir() and not (Path(what) / "config.json").is_file()
    restorer, facts = (Path(what), {}) if folder else open_network(what, options.checkpoint, options.device)
    report = _Report(options.json)
    names = ("split", "variant", "mode", "tile", "overlap", "ensemble", "amp", "save", "shard", "patch", "weights")
    found = evaluate(
        restorer,
        options.data,
        options.protocol,
        out=options.out,
        metrics=metrics,
        facts=facts,
        progress=report.image,
        **{name: getattr(options, name) for name in names},
    )
    report.end(found)
    return int(bool(found.errors))


class _Report:
    """Lines on the screen, or JSON."""

    def __init__(self, as_json: bool):
        self.as_json = as_json

    def image(self, row: Any) -> None:
        """Tell of one image."""
        if self.as_json:
            about = {"name": row.name, **row.figures, "seconds": row.seconds, "error": row.error or None}
            print(json.dumps({key: _strict(value) for key, value in about.items()}), flush=True)
        else:
            print(f"{row.name}  {_figures(row.figures)}{'  ' + row.error if row.error else ''}", flush=True)

    def end(self, found: Any) -> None:
        """Tell of the whole."""
        summary = found.summary()
        if self.as_json:
            means = {key: _strict(value) for key, value in summary["mean"].items()}
            print(json.dumps({"images": summary["images"], "failed": summary["failed"], "mean": means}))
        else:
            about = f"{summary['images']} images" + (f", shard {summary['shard']}" if "shard" in summary else "")
            print(f"mean of {about}, protocol {summary['protocol']}: {_figures(summary['mean'])}")
        for line in found.errors:
            print(f"slicescan: error: {line}", file=sys.stderr)


def _figures(figures: Any) -> str:
    from slicescan.engine.metrics.catalogue import METRICS

    return "  ".join(f"{METRICS[name].title} {value:.{METRICS[name].digits}f}" for name, value in figures.items())


def _strict(value: Any) -> Any:
    return str(value) if isinstance(value, float) and value in (float("inf"), float("-inf")) else value
