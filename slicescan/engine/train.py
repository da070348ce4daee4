"""Train a network by a recipe; a run that stops continues from its last checkpoint with the same bits."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from slicescan.engine.ahead import Source, ahead
from slicescan.engine.config import Recipe, read_recipe
from slicescan.engine.failures import explained
from slicescan.engine.processes import Processes, weight
from slicescan.engine.progress import Progress
from slicescan.engine.quality import HeldOut, mean_gain, mean_psnr, measure
from slicescan.engine.run import Run
from slicescan.engine.samples import Sample, draw_samples, write_samples
from slicescan.engine.sources import open_held_out, open_source, with_folders
from slicescan.engine.training_log import TrainingLog
from slicescan.engine.training_state import has_state, read_state, write_state
from slicescan.engine.weights_files import write_weights

AGREE_EVERY = 10
"""Steps after which several processes ask each other for the time: it empties the queues of their GPUs."""


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
    seed: int | None = None,
    max_seconds: float | None = None,
) -> Path:
    """Run a recipe, from its last checkpoint in ``out`` if there is one.

    Of several processes, started by ``accelerate launch`` or ``torchrun``, each works on its share of every batch, and
    the first one writes.

    Args:
        recipe: TOML file, or what :func:`~slicescan.engine.config.read_recipe` makes of it.
        out: Folder of the run: ``log.jsonl``, ``tensorboard/``, ``samples/``, ``checkpoint/``, ``<model>.safetensors``,
            the averaged weights, and ``<model>.pth`` with ``params`` and ``params_ema``.
        photos: Folder of sharp photographs to blur, instead of the recipe's pictures.
        pairs: Data set of pairs, instead of the recipe's pictures.
        validation: Folder to measure on, instead of the recipe's: pairs where the run learns from pairs, else
            photographs, which are blurred.
        weights: File of weights to start from, instead of the recipe's.
        device: Where to train; by default a GPU if there is one, of several processes each its own.
        iterations: Length of the run and of its learning-rate schedule, instead of the recipe's.
        seed: Draws of weights and data, instead of the recipe's.
        max_seconds: Stop after this time with a checkpoint; the next call goes on.

    Returns:
        The file with the averaged weights.

    Raises:
        FileNotFoundError: A folder is missing, or the recipe.
        ValueError: The recipe or the folder of the run does not fit, or a picture cannot be read.
        OSError: The disk is full; the last checkpoint is whole.
        RuntimeError: Another process is gone; the last checkpoint is whole.
        ImportError: There are several processes, and the ``train`` extra is missing.
    """
    start = time.monotonic()
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    recipe = replace(recipe, data=with_folders(recipe.data, photos, pairs, validation))
    recipe = replace(recipe, iterations=recipe.iterations if iterations is None else iterations)
    recipe = replace(recipe, seed=recipe.seed if seed is None else seed)
    out, processes = Path(out), Processes(device)
    recipe = _starting(recipe, out, weights, processes)
    source, held_out = open_source(recipe, processes.device), open_held_out(recipe.data)
    if recipe.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=False)
        torch.backends.cudnn.benchmark = False
    with explained(out, processes):
        run = Run(recipe, processes.device, processes)
        step = read_state(out / "checkpoint", run.state()) if processes.first else 0
        run.step = _agree(run, step, processes)
        if processes.first:
            out.mkdir(parents=True, exist_ok=True)
        with TrainingLog(out, run.step, tensorboard=recipe.tensorboard, on=processes.first) as log:
            return _go_on(run, source, held_out, out, log, start, max_seconds)


def _starting(recipe: Recipe, out: Path, weights: str | Path | None, processes: Processes) -> Recipe:
    """The recipe with the weights that this process starts from: those of the run, the caller's, or the recipe's."""
    if has_state(out / "checkpoint") or not processes.first:
        return replace(recipe, model=replace(recipe.model, weights=""))  # the run, or the first process, has its own
    if weights:
        recipe = replace(recipe, model=replace(recipe.model, weights=str(weights)))
    if recipe.model.weights not in ("", "pretrained") and not Path(recipe.model.weights).exists():
        raise FileNotFoundError(
            f"{recipe.model.weights}: the run starts from these weights, and they are not there; train them first, or "
            "pass weights=, or --weights on the command line"
        )
    return recipe


def _agree(run: Run, step: int, processes: Processes) -> int:
    """Give every process what the first one starts from, and its step."""
    shared = torch.tensor(step, device=run.device)
    processes.spread([shared, *run.state()])
    return int(shared)


def _go_on(
    run: Run,
    source: Source,
    held_out: Sequence[HeldOut],
    out: Path,
    log: TrainingLog,
    start: float,
    max_seconds: float | None,
) -> Path:
    """The steps of a run that are left; returns the file with the averaged weights."""
    recipe, processes = run.recipe, run.processes
    step_once = run.captured() if run.in_graphs else run.update
    begun, seconds_before = run.step, time.monotonic()
    progress = Progress(run.step, recipe.iterations, on=processes.first)
    for what, why in {"the contrastive loss": run.missing, "TensorBoard": log.missing}.items():
        if why:
            log.write({"step": run.step, "off": f"{what}: {why}"})
            progress.note(f"{what} is off: {why}")
    file = out / f"{recipe.model.name}.safetensors"
    for blurred, sharp in ahead(source, run.step, recipe.iterations, processes.part):
        step_once(blurred, sharp, weight(source.size(run.step), processes.part))
        run.step += 1
        if run.step % recipe.log_every == 0:
            now = time.monotonic()
            line = run.report() | {"seconds_per_step": (now - seconds_before) / recipe.log_every}
            seconds_before = now
            log.write(line)
            progress.show(run.step, line["loss"])
        if held_out and run.step % recipe.validate_every == 0:
            _validate(run, held_out, out, log, progress)
        asked = max_seconds is not None and (processes.alone or (run.step - begun) % AGREE_EVERY == 1)
        late = asked and processes.any(time.monotonic() - start > (max_seconds or 0))
        if run.step % recipe.save_every == 0 or run.step == recipe.iterations or late:
            if processes.first:
                write_weights(out, run)  # first, so that a finished run always has them
                write_state(out / "checkpoint", run.state(), run.step)
        if late:
            break
    processes.wait()
    log.write({"step": run.step, "of": recipe.iterations, "wall_seconds": time.monotonic() - start})
    progress.close()
    return file


def _validate(run: Run, held_out: Sequence[HeldOut], out: Path, log: TrainingLog, progress: Progress) -> None:
    """Measure the averaged network on what is held out, each process its share, and draw samples."""
    index, count = run.processes.part
    samples: list[Sample] = []

    def keep(one: HeldOut, restored: torch.Tensor) -> None:
        if len(samples) < run.recipe.samples:
            samples.append((one.name, one.blurred, restored, one.sharp))

    mine = (held_out[place] for place in range(index, len(held_out), count))
    measured = run.processes.gather(measure(run.restorer(), mine, keep))
    gain, psnr = mean_gain(measured), mean_psnr(measured)
    log.write({"step": run.step, "gain_db": gain, "psnr_db": psnr})
    progress.note(f"step {run.step}: {psnr:.2f} dB, mean gain {gain:+.2f} dB")
    if run.processes.first and samples:
        sheet = draw_samples(samples)
        write_samples(out / "samples", run.step, sheet)
        log.show(sheet, run.step)


def describe(recipe: Recipe) -> str:
    """A recipe as indented JSON, for logs and model cards."""
    return json.dumps(asdict(recipe), indent=1)
