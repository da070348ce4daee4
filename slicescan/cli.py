"""The command ``slicescan``: parse, then call one function. Imports are made by the command that needs them."""

import argparse
import atexit
import gc
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slicescan import __version__
from slicescan.commands import erf, evaluate, export
from slicescan.commands.options import count as _count
from slicescan.commands.options import positive as _positive
from slicescan.commands.options import shard as _shard

if TYPE_CHECKING:
    from torch import nn

MODEL = "xyscannet_tiny"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 0 only if everything succeeded."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that cannot be printed stops nothing
    options = parser().parse_args(argv)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("slicescan: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as in `slicescan models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, TypeError, OSError, ImportError, MemoryError, RuntimeError) as error:
        if options.debug:
            raise
        print(f"slicescan: error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="slicescan", description="Restore images with state-space scans.")
    top.add_argument("--version", action="version", version=f"slicescan {__version__}")
    top.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_restore(commands)

    models = commands.add_parser("models", help="list the models")
    models.add_argument("filter", nargs="?", default="", help="part of a name, or a pattern such as 'xyscannet_s*'")
    models.add_argument("--pretrained", action="store_true", help="only those whose weights ship with the package")
    models.add_argument("--supports", action="append", default=[], metavar="WHAT", help="bf16, compile, export, ...")
    models.set_defaults(run=_models)

    info = commands.add_parser("info", help="what a model or a file of weights is")
    info.add_argument("name", metavar="NAME_OR_FILE")
    info.set_defaults(run=_info)

    profile = commands.add_parser("profile", help="parameters, multiply-adds, scan updates and memory")
    profile.add_argument("name", metavar="NAME_OR_FILE")
    profile.add_argument("--size", default="256x256", metavar="HxW")
    profile.add_argument("--json", action="store_true")
    profile.set_defaults(run=_profile)

    convert = commands.add_parser("convert", help="rewrite a file of weights")
    convert.add_argument("source", metavar="IN")
    convert.add_argument("target", metavar="OUT", help="ends in .safetensors, .pth or .pt")
    convert.add_argument("--to", choices=["slicescan", "published"], default="slicescan", help="names of the weights")
    convert.add_argument("--half", action="store_true", help="store half the bits")
    convert.set_defaults(run=_convert)

    train = commands.add_parser("train", help="train a network by a recipe, or go on with a stopped run")
    train.add_argument("recipe", help="a TOML file, or the name of a recipe in the package, such as xyscannet_tiny")
    train.add_argument("--out", required=True, metavar="FOLDER", help="folder of the run")
    train.add_argument("--photos", metavar="FOLDER", help="sharp photographs to blur and learn from")
    train.add_argument("--pairs", metavar="FOLDER", help="blurred and sharp pairs to learn from, such as GoPro")
    train.add_argument("--validation", metavar="FOLDER", help="photographs, or pairs with --pairs, to measure on")
    train.add_argument("--weights", metavar="FILE", help="weights to start from")
    train.add_argument("--device", help="cpu, cuda, cuda:1, ...")
    train.add_argument("--iterations", type=int, help="length of the run")
    train.add_argument("--seed", type=int, help="draws of weights and data")
    train.add_argument("--max-seconds", type=float, help="stop after this time; the same command goes on")
    train.set_defaults(run=_train)

    evaluate.add(commands)
    erf.add(commands)
    export.add(commands)

    data = commands.add_parser("data", help="look at data sets").add_subparsers(metavar="WHAT", required=True)
    check = data.add_parser("check", help="layout, pairs, sizes and the first mismatch of a data set")
    check.add_argument("path", help="folder, or LMDB store")
    check.add_argument("--sharp", metavar="FOLDER", help="the sharp pictures, if they lie elsewhere")
    check.add_argument("--json", action="store_true", help="one JSON object a set, and a last one")
    check.set_defaults(run=_check)

    commands.add_parser("doctor", help="what this machine can run, and what is missing").set_defaults(run=_doctor)
    return top


def _add_restore(commands: Any) -> None:
    restore = commands.add_parser("restore", help="restore photographs")
    restore.add_argument("inputs", nargs="+", metavar="INPUT", help="files, folders, patterns")
    restore.add_argument("-o", "--output", help="a file, for one input and an image suffix; else a folder")
    restore.add_argument("--model", default=None, help=f"name of a model ({MODEL})")
    restore.add_argument("--checkpoint", help="file of weights; without --model its architecture is detected")
    restore.add_argument("--mode", choices=["auto", "whole", "stream", "tile"], default="auto")
    restore.add_argument("--tile", type=_positive, help="side of a tile in pixels")
    restore.add_argument("--overlap", type=_count, help="pixels that neighbouring tiles share")
    restore.add_argument("--amp", choices=["bf16", "fp16"], help="run the network in this precision")
    restore.add_argument("--device", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    restore.add_argument("--ensemble", action="store_true", help="mean over rotations and reflections, 8 times slower")
    restore.add_argument(
        "--shard", type=_shard, default=(0, 1), metavar="i/n", help="only every n-th file, from the i-th"
    )
    restore.add_argument("--skip-existing", action="store_true", help="leave out what is there already")
    restore.add_argument("--json", action="store_true", help="one JSON object a file on standard output")
    restore.set_defaults(run=_restore)


def _restore(options: argparse.Namespace) -> int:
    # Threads of PyTorch that wait in a loop would take the processors from those of the scan; read when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with _collections_later() as settle:
        return _restore_files(options, settle)


@contextmanager
def _collections_later() -> Iterator[Callable[[], None]]:
    """Collect no garbage until the function that this gives is called, and never what is there by then.

    Imports make several hundred thousand objects that stay; to look through them again and again, and once more when
    the program ends, takes a second.
    """
    collects = gc.isenabled()
    gc.disable()

    def settle() -> None:
        if collects and not gc.isenabled():
            gc.freeze()
            gc.enable()

    atexit.unregister(gc.freeze)  # of an earlier call
    atexit.register(gc.freeze)
    try:
        yield settle
    finally:
        if collects:
            gc.enable()


def _restore_files(options: argparse.Namespace, loaded: Callable[[], None]) -> int:
    """Restore what the options name; ``loaded`` is called after the first file, which takes the last of the imports."""
    from slicescan.engine.batch import plan, work

    jobs = plan(options.inputs, options.output, options.shard)
    todo = any(not (options.skip_existing and job.target.exists()) for job in jobs)
    run = _runner(options) if todo else lambda pixels: pixels
    bar = _bar(len(jobs)) if sys.stderr.isatty() and not options.json else None
    done, failed = 0, []
    try:
        for outcome in work(jobs, run, skip_existing=options.skip_existing):
            loaded()
            job = outcome.job
            if outcome.error is None:
                done += 1
            else:
                failed.append(outcome.error)
            if options.json:
                about = {"input": str(job.source), "output": str(job.target), "status": outcome.status}
                print(json.dumps(about | {"error": outcome.error, "seconds": round(outcome.seconds, 3)}), flush=True)
            elif bar is not None:
                bar.update()
            elif outcome.error is None:
                print(f"{job.source} -> {job.target} ({outcome.status}, {outcome.seconds:.1f} s)", flush=True)
    finally:  # also when stopped
        if bar is not None:
            bar.close()
        if options.json:
            print(json.dumps({"done": done, "failed": len(failed)}), flush=True)
        for error in failed:
            print(f"slicescan: error: {error}", file=sys.stderr)
    return int(bool(failed))


def _runner(options: argparse.Namespace) -> Callable[[Any], Any]:
    """What restores the pixels of one photograph as the options of ``restore`` say."""
    from slicescan.engine.memory import give_back_memory, keep_freed_memory
    from slicescan.engine.restore import check_mode, restore

    keep_freed_memory()
    model = _model(options)
    check_mode(model, options.mode)

    def run(pixels: Any) -> Any:
        settings = {"ensemble": options.ensemble, "amp": options.amp}
        try:
            return restore(model, pixels, options.mode, options.tile, options.overlap, **settings)
        finally:
            give_back_memory()  # so that what is free can be told before the next one

    return run


def _model(options: argparse.Namespace) -> "nn.Module":
    """The network that the options of ``restore`` name, on its device."""
    import torch

    from slicescan.registry import create_model, is_model, load

    if options.model and not is_model(options.model) and Path(options.model).exists():
        raise ValueError(f"{options.model}: --model takes a name; give a file or folder of weights by --checkpoint")
    if options.checkpoint and not options.model:
        model = load(options.checkpoint)
    elif options.checkpoint:
        model = create_model(options.model, checkpoint_path=options.checkpoint)
    else:
        try:
            model = create_model(options.model or MODEL, pretrained=True)
        except FileNotFoundError as error:
            raise FileNotFoundError(str(error).replace("checkpoint_path=", "--checkpoint ")) from None
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: cannot be used ({str(error).splitlines()[0]})") from None


def _models(options: argparse.Namespace) -> int:
    from slicescan.registry import list_models, list_pretrained, model_entry

    pattern = options.filter if any(sign in options.filter for sign in "*?[") else f"*{options.filter}*"
    names = list_models(pattern, pretrained=options.pretrained, supports=options.supports)
    if not names:
        asked = [repr(options.filter)] * bool(options.filter) + ["--pretrained"] * options.pretrained
        asked += [f"--supports {what}" for what in options.supports]
        raise ValueError(f"no model fits {', '.join(asked)}; `slicescan models` lists all")
    ready = list_pretrained()
    print(f"{'model':<26}{'parameters':>12}  {'GMACs 256²':>10}  weights")
    for name in names:
        entry = model_entry(name)
        params = "?" if entry.params is None else f"{entry.params:,}"
        macs = "?" if entry.macs_256 is None else f"{entry.macs_256 / 1e9:.1f}"
        weights = "in the package" if name in ready else (entry.weights[0].file if entry.weights else "-")
        print(f"{name:<26}{params:>12}  {macs:>10}  {weights}")
    return 0


def _info(options: argparse.Namespace) -> int:
    from slicescan.registry import WEIGHTS, is_model, load, model_entry

    if is_model(options.name):
        entry = model_entry(options.name)
        for key, value in vars(entry).items():
            if key == "weights":
                value = "; ".join(f"{w.file} ({w.page or 'in the package'}; {w.license})" for w in value) or "none"
            elif isinstance(value, frozenset):
                value = ", ".join(sorted(value)) or "none"
            print(f"{key}: {f'{value:,}' if isinstance(value, int) else value}")
        card = WEIGHTS / f"{options.name}.md"
        if card.is_file():
            print("\n" + card.read_text(encoding="utf-8").rstrip())
        return 0
    model = load(_existing(options.name))
    print(f"architecture: {getattr(model, 'architecture', type(model).__name__)}")
    print(f"arguments: {json.dumps(getattr(model, 'arguments', {}))}")
    print(f"parameters: {sum(parameter.numel() for parameter in model.parameters()):,}")
    return 0


def _profile(options: argparse.Namespace) -> int:
    from slicescan.engine.profile import profile
    from slicescan.registry import create_model, is_model, load

    try:
        h, w = (_positive(side) for side in options.size.split("x"))
    except (ValueError, argparse.ArgumentTypeError):
        raise ValueError(f"--size is HEIGHTxWIDTH in pixels, such as 720x1280; got {options.size!r}") from None
    model = create_model(options.name) if is_model(options.name) else load(_existing(options.name))
    cost = profile(model, (getattr(model, "in_chans", 3), h, w))
    if options.json:
        print(json.dumps(vars(cost)))
        return 0
    print(f"parameters        {cost.params:,}")
    print(f"multiply-adds     {cost.macs / 1e9:.3f} G at {h}x{w}")
    print(f"scan updates      {cost.scan_updates / 1e9:.3f} G")
    print(f"activations       {cost.activation_bytes / 2**20:.0f} MiB at their peak, without gradients")
    print(f"scan backend      {cost.backend or '-'}")
    return 0


def _convert(options: argparse.Namespace) -> int:
    import torch

    from slicescan.checkpoint import write_checkpoint
    from slicescan.registry import load

    source, target = (os.path.realpath(name) for name in (options.source, options.target))
    if target in (source, os.path.join(source, "model.safetensors")):
        raise ValueError(f"{options.target}: would overwrite its input; choose another name")
    dtype = torch.float16 if options.half else None
    write_checkpoint(options.target, load(options.source), published=options.to == "published", dtype=dtype)
    print(f"{options.source} -> {options.target}")
    return 0


def _train(options: argparse.Namespace) -> int:
    from slicescan.engine.config import find_recipe
    from slicescan.engine.train import train

    written = train(
        find_recipe(options.recipe),
        out=options.out,
        photos=options.photos,
        pairs=options.pairs,
        weights=options.weights,
        validation=options.validation,
        device=options.device,
        iterations=options.iterations,
        seed=options.seed,
        max_seconds=options.max_seconds,
    )
    if os.environ.get("RANK", "0") == "0":  # of several processes the first one speaks
        print(f"averaged weights: {written}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from slicescan.engine.data.check import check, report

    found = check(options.path, options.sharp)
    bad = [line for one in found for line in one.mismatches]
    if options.json:
        for one in found:
            print(json.dumps(vars(one)))
        total = sum(one.pairs for one in found)
        print(json.dumps({"pairs": total, "mismatches": len(bad), "first": bad[0] if bad else None}))
    else:
        print(report(found))
    return int(bool(bad))


def _doctor(options: argparse.Namespace) -> int:
    from slicescan.engine.doctor import diagnosis

    print(diagnosis())
    return 0


def _existing(name: str) -> str:
    """A file's name; anything else is an error that names the models nearest to it."""
    from slicescan.registry import model_entry

    if not Path(name).exists():
        if Path(name).suffix or "/" in name:
            raise FileNotFoundError(f"{name}: no such file")
        model_entry(name)
    return name


def _bar(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="photo")
