"""Train a network by a recipe; a run that stops continues from its last checkpoint with the same bits."""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor, nn

from slicescan.checkpoint import write_checkpoint
from slicescan.engine.ahead import ahead
from slicescan.engine.blur import SyntheticMotionBlur
from slicescan.engine.config import Recipe, read_recipe
from slicescan.engine.losses import total
from slicescan.engine.pictures import read_pictures
from slicescan.engine.quality import mean_gain, measure
from slicescan.engine.training_state import read_state, write_state
from slicescan.registry import create_model


def train(
    recipe: str | Path | Recipe,
    *,
    out: str | Path,
    photos: str | Path | None = None,
    validation: str | Path | None = None,
    device: str | None = None,
    iterations: int | None = None,
    max_seconds: float | None = None,
) -> Path:
    """Run a recipe, from its last checkpoint in ``out`` if there is one.

    Args:
        recipe: TOML file, or what :func:`~slicescan.engine.config.read_recipe` makes of it.
        out: Folder of the run: ``log.jsonl``, ``checkpoint/`` and ``<model>.safetensors``, the averaged weights.
        photos: Folder of sharp photographs, instead of the recipe's.
        validation: Folder of photographs to measure on, instead of the recipe's.
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
    folder = photos or recipe.data.photos
    if not folder:
        raise ValueError("the recipe names no folder of photographs: pass photos=, or --photos on the command line")
    out.mkdir(parents=True, exist_ok=True)
    if recipe.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=False)
        torch.backends.cudnn.benchmark = False
    source = SyntheticMotionBlur(
        [image for _, image in read_pictures(folder)], recipe.data, recipe.blur, seed=recipe.seed, device=where
    )
    held_out = validation or recipe.data.validation
    measured_on = read_pictures(held_out) if held_out else []
    run = Run(recipe, where)
    run.step = read_state(out / "checkpoint", run.state())
    weights_file = out / f"{recipe.model.name}.safetensors"
    step_once = run.captured() if recipe.cuda_graph and where.type == "cuda" else run.update
    progress, seconds_before = Progress(run.step, recipe.iterations), time.monotonic()
    with open(out / "log.jsonl", "a", encoding="utf-8") as log:
        for blurred, sharp in ahead(source, run.step, recipe.iterations):
            step_once(blurred, sharp)
            run.step += 1
            if run.step % recipe.log_every == 0:
                now = time.monotonic()
                line = run.report() | {"seconds_per_step": (now - seconds_before) / recipe.log_every}
                seconds_before = now
                _write(log, line)
                progress.show(run.step, line["loss"])
            if measured_on and run.step % recipe.validate_every == 0:
                gain = mean_gain(measure(run.restorer(), measured_on))
                _write(log, {"step": run.step, "gain_db": gain})
                progress.note(f"step {run.step}: mean gain {gain:+.2f} dB")
            late = max_seconds is not None and time.monotonic() - start > max_seconds
            if run.step % recipe.save_every == 0 or run.step == recipe.iterations or late:
                write_checkpoint(weights_file, run.averaged())  # first, so that a finished run always has it
                write_state(out / "checkpoint", run.state(), run.step)
            if late:
                break
        _write(log, {"step": run.step, "of": recipe.iterations, "wall_seconds": time.monotonic() - start})
    progress.close()
    return weights_file


class Run:
    """What changes while a network is trained: its weights, their average, the optimiser's moments, the step."""

    def __init__(self, recipe: Recipe, device: torch.device):
        self.recipe, self.device, self.step = recipe, device, 0
        torch.manual_seed(recipe.seed)
        model = create_model(recipe.model.name, **recipe.model.arguments)
        self.model = model.to(device).to(memory_format=torch.channels_last).train()
        self.parameters = list(self.model.parameters())
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        section = recipe.optimizer
        spared: set[str] = getattr(model, "no_weight_decay", set)()
        groups: dict[float, list[nn.Parameter]] = {section.weight_decay: [], 0.0: []}
        for name, parameter in model.named_parameters():
            keeps = parameter.ndim < 2 or any(fnmatchcase(name, pattern) for pattern in spared)
            groups[0.0 if keeps else section.weight_decay].append(parameter)
        self.rate = torch.zeros((), device=device)
        self.optimizer = torch.optim.AdamW(
            [{"params": members, "weight_decay": decay} for decay, members in groups.items() if members],
            lr=self.rate,
            betas=section.betas,
            fused=True,
            capturable=device.type == "cuda",
        )
        for parameter in self.parameters:
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), device=device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        self.sums = torch.zeros(3, device=device)  # loss, gradient norm, skipped steps since the last report
        self.steps_summed = torch.zeros((), device=device)

    def update(self, blurred: Tensor, sharp: Tensor) -> None:
        """One step on one batch; a step whose gradient is not finite changes no weight and is counted."""
        self.rate.fill_(self.rate_at(self.step))
        self._update(blurred.contiguous(memory_format=torch.channels_last), sharp)

    def _update(self, blurred: Tensor, sharp: Tensor) -> None:
        section = self.recipe.optimizer
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.amp == "bf16"):
            restored = self.model(blurred)
        loss = total(restored.float(), sharp, self.recipe.loss)
        gradients = torch.autograd.grad(loss, self.parameters)
        norm = torch.nn.utils.get_total_norm(gradients)
        finite = torch.isfinite(norm)
        factor = (section.clip / norm.clamp(min=1e-12)).clamp(max=1) if section.clip else torch.ones_like(norm)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        torch._foreach_mul_(gradients, factor)
        self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [*self.parameters], 1 - section.average)
            zero = torch.zeros_like(loss)
            seen = torch.stack([torch.where(finite, loss, zero), torch.where(finite, norm, zero), (~finite).float()])
            self.sums += seen.detach()
            self.steps_summed += 1

    def captured(self) -> Callable[[Tensor, Tensor], None]:
        """:meth:`update` as a CUDA graph: thousands of small kernels start as one."""
        data = self.recipe.data
        shape = (data.batch, 3, data.patch, data.patch)
        blurred = torch.rand(shape, device=self.device).contiguous(memory_format=torch.channels_last)
        sharp = torch.rand(shape, device=self.device)
        kept = [tensor.clone() for tensor in self.state()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._update(blurred, sharp)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._update(blurred, sharp)
        with torch.no_grad():
            for tensor, value in zip(self.state(), kept, strict=True):
                tensor.copy_(value)
            self.sums.zero_(), self.steps_summed.zero_()

        def replay(next_blurred: Tensor, next_sharp: Tensor) -> None:
            self.rate.fill_(self.rate_at(self.step))
            blurred.copy_(next_blurred)
            sharp.copy_(next_sharp)
            graph.replay()

        return replay

    def rate_at(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine to ``final_rate``."""
        section = self.recipe.optimizer
        if step < section.warmup:
            return section.rate * (step + 1) / section.warmup
        done = (step - section.warmup) / max(1, self.recipe.iterations - section.warmup)
        return section.final_rate + (section.rate - section.final_rate) * (1 + math.cos(math.pi * min(1, done))) / 2

    def report(self) -> dict[str, float]:
        """Means over the steps since the last report that were not skipped, and the count of those that were."""
        loss, norm, skipped = self.sums.tolist()
        kept = self.steps_summed.item() - skipped
        self.sums.zero_(), self.steps_summed.zero_()
        return {
            "step": self.step,
            "loss": loss / kept if kept else math.nan,
            "gradient_norm": norm / kept if kept else math.nan,
            "skipped": round(skipped),
            "rate": self.rate_at(self.step),
        }

    def state(self) -> list[Tensor]:
        """Every tensor that a later step depends on, in a fixed order: weights, average, both moments, step counts."""
        moments = [self.optimizer.state[parameter] for parameter in self.parameters]
        return [
            *(parameter.data for parameter in self.parameters),
            *self.average,
            *(moment["exp_avg"] for moment in moments),
            *(moment["exp_avg_sq"] for moment in moments),
            *(moment["step"] for moment in moments),
        ]

    def averaged(self) -> nn.Module:
        """A model with the averaged weights, on the CPU."""
        model = create_model(self.recipe.model.name, **self.recipe.model.arguments)
        with torch.no_grad():
            for parameter, average in zip(model.parameters(), self.average, strict=True):
                parameter.copy_(average)
        return model.eval()

    def restorer(self) -> Callable[[Tensor], Tensor]:
        """The averaged network as a function on uint8 images ``(3, h, w)``."""
        model = self.averaged().to(self.device)

        @torch.inference_mode()
        def restore(image: Tensor) -> Tensor:
            restored = model(image[None].to(self.device).float() / 255)[0]
            return restored.clamp(0, 1).mul(255).round().to(torch.uint8).cpu()

        return restore


class Progress:
    """A bar with the time left on a terminal, plain lines elsewhere."""

    def __init__(self, step: int, of: int):
        from tqdm import tqdm

        self.of, self.plain = of, not sys.stderr.isatty()
        self.bar = tqdm(total=of, initial=step, unit="step", disable=self.plain)

    def show(self, step: int, loss: float) -> None:
        """Show where the run is."""
        self.bar.update(step - self.bar.n)
        self.bar.set_postfix(loss=f"{loss:.4f}")
        if self.plain:
            print(f"step {step}/{self.of}, loss {loss:.4f}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leave the last state on the screen."""
        self.bar.close()


def _write(log: TextIO, line: dict) -> None:
    log.write(json.dumps(line) + "\n")
    log.flush()


def describe(recipe: Recipe) -> str:
    """A recipe as indented JSON, for logs and model cards."""
    return json.dumps(asdict(recipe), indent=1)
