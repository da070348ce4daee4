"""Train a network by a recipe; a run that stops continues from its last checkpoint with the same bits."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from slicescan.checkpoint import write_checkpoint
from slicescan.engine.ahead import Source, ahead
from slicescan.engine.blur import SyntheticMotionBlur
from slicescan.engine.config import DataSection, Recipe, read_recipe
from slicescan.engine.data import choose, find_sets, frame_sets, pair_folders
from slicescan.engine.data.layouts import choose_held_out
from slicescan.engine.data.patches import PairPatches
from slicescan.engine.pictures import open_pictures, read_pictures
from slicescan.engine.progress import Progress
from slicescan.engine.quality import Measured, mean_gain, mean_psnr, measure, measure_pairs
from slicescan.engine.run import Run
from slicescan.engine.training_state import has_state, read_state, write_state


def train(
    recipe: str | Path | Recipe,
    *,
    out: str | Path,
    photos: str | Path | None = None,
    pairs: str | Path | None = None,
    validation: str | Path | None = None,
    weights: str | Path | None = None,
    device: str | None = None,
    iterations: int | None = None,
    max_seconds: float | None = None,
) -> Path:
    """Run a recipe, from its last checkpoint in ``out`` if there is one.

    Args:
        recipe: TOML file, or what :func:`~slicescan.engine.config.read_recipe` makes of it.
        out: Folder of the run: ``log.jsonl``, ``checkpoint/`` and ``<model>.safetensors``, the averaged weights.
        photos: Folder of sharp photographs to blur, instead of the recipe's pictures.
        pairs: Data set of pairs, instead of the recipe's pictures.
        validation: Folder to measure on, instead of the recipe's: pairs where the run learns from pairs, else
            photographs, which are blurred.
        weights: File of weights to start from, instead of the recipe's.
        device: Where to train; by default a GPU if there is one.
        iterations: Length of the run and of its learning-rate schedule, instead of the recipe's.
        max_seconds: Stop after this time with a checkpoint; the next call goes on.

    Returns:
        The file with the averaged weights.

    Raises:
        FileNotFoundError: A folder is missing, or the recipe.
        ValueError: The recipe or the folder of the run does not fit.
    """
    start = time.monotonic()
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    if iterations is not None:
        recipe = replace(recipe, iterations=iterations)
    out, where = Path(out), torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if has_state(out / "checkpoint"):
        recipe = replace(recipe, model=replace(recipe.model, weights=""))  # the run has its own by now
    elif weights:
        recipe = replace(recipe, model=replace(recipe.model, weights=str(weights)))
    if recipe.model.weights not in ("", "pretrained") and not Path(recipe.model.weights).exists():
        raise FileNotFoundError(
            f"{recipe.model.weights}: the run starts from these weights, and they are not there; train them first, or "
            "pass weights=, or --weights on the command line"
        )
    recipe = replace(recipe, data=_pictures(recipe.data, photos, pairs, validation))
    source, held_out = open_source(recipe, where), open_held_out(recipe.data)
    out.mkdir(parents=True, exist_ok=True)
    if recipe.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=False)
        torch.backends.cudnn.benchmark = False
    run = Run(recipe, where)
    run.step = read_state(out / "checkpoint", run.state())
    weights_file = out / f"{recipe.model.name}.safetensors"
    step_once = run.captured() if recipe.cuda_graph and where.type == "cuda" else run.update
    progress, seconds_before = Progress(run.step, recipe.iterations), time.monotonic()
    with _open_log(out / "log.jsonl", run.step) as log:
        if run.missing:
            _write(log, {"step": run.step, "off": run.missing})
            progress.note(f"the contrastive loss is off: {run.missing}")
        for blurred, sharp in ahead(source, run.step, recipe.iterations):
            step_once(blurred, sharp)
            run.step += 1
            if run.step % recipe.log_every == 0:
                now = time.monotonic()
                line = run.report() | {"seconds_per_step": (now - seconds_before) / recipe.log_every}
                seconds_before = now
                _write(log, line)
                progress.show(run.step, line["loss"])
            if held_out and run.step % recipe.validate_every == 0:
                measured = held_out(run.restorer())
                gain, psnr = mean_gain(measured), mean_psnr(measured)
                _write(log, {"step": run.step, "gain_db": gain, "psnr_db": psnr})
                progress.note(f"step {run.step}: {psnr:.2f} dB, mean gain {gain:+.2f} dB")
            late = max_seconds is not None and time.monotonic() - start > max_seconds
            if run.step % recipe.save_every == 0 or run.step == recipe.iterations or late:
                write_checkpoint(weights_file, run.averaged())  # first, so that a finished run always has it
                write_state(out / "checkpoint", run.state(), run.step)
            if late:
                break
        _write(log, {"step": run.step, "of": recipe.iterations, "wall_seconds": time.monotonic() - start})
    progress.close()
    return weights_file


def open_source(recipe: Recipe, device: torch.device) -> Source:
    """The batches of a recipe: patches of pairs, or of photographs blurred here.

    Raises:
        FileNotFoundError: A folder is missing.
        ValueError: The recipe names no pictures, they do not fit together, or one cannot be read.
    """
    data = recipe.data
    if data.pairs and data.frames:
        chosen = choose(frame_sets(data.pairs, data.frames, data.frame_gamma), data.split)
    elif data.pairs and data.sharp:
        chosen = choose([pair_folders(data.pairs, data.sharp)], data.split)
    elif data.pairs:
        chosen = choose(find_sets(data.pairs), data.split, data.variant)
    elif data.photos:
        photos = open_pictures(data.photos, data.memory)
        return SyntheticMotionBlur(photos, data, recipe.blur, seed=recipe.seed, device=device)
    else:
        raise ValueError(
            "the recipe names no pictures: pass photos=, or --photos on the command line, a folder of photographs "
            "to blur; or pairs=, or --pairs, a data set of blurred and sharp pictures"
        )
    return PairPatches(chosen.pairs, data, seed=recipe.seed, device=device)


def open_held_out(data: DataSection) -> Callable[[Callable[[Tensor], Tensor]], list[Measured]] | None:
    """What measures a network, given as a function on uint8 images; None without pictures to measure on."""
    if not data.validation:
        return None
    if not data.pairs:
        photos = read_pictures(data.validation)
        return lambda restore: measure(restore, photos)
    pairs = choose_held_out(find_sets(data.validation), data.variant).pairs
    if data.measured:
        pairs = pairs[:: -(-len(pairs) // data.measured)]
    return lambda restore: measure_pairs(restore, pairs)


def _pictures(
    data: DataSection, photos: str | Path | None, pairs: str | Path | None, validation: str | Path | None
) -> DataSection:
    """The data of a recipe with the folders that the caller names in place of its own."""
    if photos and pairs:
        raise ValueError("photos= and pairs= are two kinds of pictures to learn from: pass one of them")
    if photos:
        data = replace(data, photos=str(photos), pairs="", sharp="", frames=0)
    if pairs:
        data = replace(data, pairs=str(pairs), photos="", sharp="")
    return replace(data, validation=str(validation)) if validation else data


def _open_log(file: Path, step: int) -> TextIO:
    """A log to go on with: without what came after the checkpoint, and without a line that was cut short."""
    kept = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []:
        try:
            fits = json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            continue
        kept += [line + "\n"] if fits else []
    fresh = file.with_suffix(".partial")
    fresh.write_text("".join(kept), encoding="utf-8")
    os.replace(fresh, file)
    return open(file, "a", encoding="utf-8")


def _write(log: TextIO, line: dict) -> None:
    log.write(json.dumps(line) + "\n")
    log.flush()


def describe(recipe: Recipe) -> str:
    """A recipe as indented JSON, for logs and model cards."""
    return json.dumps(asdict(recipe), indent=1)
