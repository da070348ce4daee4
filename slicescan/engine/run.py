"""A network that learns: its weights, what the optimiser knows, and one step on one batch."""

import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from slicescan.engine.config import LossSection, Recipe
from slicescan.engine.contrast import Contrast
from slicescan.engine.losses import total, total_of_scales
from slicescan.engine.processes import Processes
from slicescan.registry import create_model

PRECISIONS = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FIRST_SCALE, GROWS_AFTER = 2.0**16, 2000
"""Of the loss in float16: a factor that keeps small gradients from vanishing, and steps after which it doubles."""


class Run:
    """What changes while a network is trained: its weights, their average, the optimiser's moments, the step.

    Args:
        recipe: The training run.
        device: Where.
        processes: Those that train together; by default this one alone.
    """

    def __init__(self, recipe: Recipe, device: torch.device, processes: Processes | None = None):
        self.recipe, self.device, self.step, self.processes = recipe, device, 0, processes or Processes(device)
        torch.manual_seed(recipe.seed)
        weights = recipe.model.weights
        start: dict[str, Any] = {"pretrained": True} if weights == "pretrained" else {"checkpoint_path": weights}
        model = create_model(recipe.model.name, **start, **recipe.model.arguments)
        for module in model.modules():
            if hasattr(module, "recompute"):
                module.recompute = recipe.recompute  # type: ignore[assignment]
        self.contrast, self.missing = _contrast(recipe.loss, device)
        self.model = model.to(device).to(memory_format=torch.channels_last).train()
        self.own_network = _Outputs(self.model, recipe.loss.every_output)
        self.in_graphs = recipe.cuda_graph and device.type == "cuda" and self._equal_shares()
        # graphs exchange gradients between them; what exchanges them in a backward pass would break their capture
        self.network = self.own_network if self.in_graphs else self.processes.parallel(self.own_network)
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
        self.scale = torch.full((), FIRST_SCALE, device=device)
        self.good_steps = torch.zeros((), device=device)  # since the scale changed
        self._settle()
        self.sums = torch.zeros(3, device=device)  # loss, gradient norm, skipped steps since the last report
        self.steps_summed = torch.zeros((), device=device)

    def _equal_shares(self) -> bool:
        """Whether each process has as many patches as another, in every batch."""
        data, count = self.recipe.data, self.processes.part[1]
        return all(batch % count == 0 for batch in [data.batch, *(stage.batch for stage in data.progressive)])

    def update(self, blurred: Tensor, sharp: Tensor, weight: float = 1.0) -> None:
        """One step on one batch; a step whose gradient is not finite changes no weight and is counted.

        Args:
            blurred: ``(b, 3, h, w)``; of several processes the share of this one.
            sharp: What the network should make of it.
            weight: What the share counts, see :func:`slicescan.engine.processes.weight`.
        """
        self._begin()
        kind = self.parameters[0].dtype
        self._update(blurred.to(kind, memory_format=torch.channels_last), sharp.to(kind), weight)

    def _begin(self) -> None:
        """Set what changes from step to step and is no tensor: the rate, and the draws of layers that draw."""
        self.rate.fill_(self.rate_at(self.step))
        seed = (self.recipe.seed * 1_000_003 + self.step + self.processes.part[0] * 1_000_000_007) % 2**63
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(seed)

    def _loss(self, network: nn.Module, blurred: Tensor, sharp: Tensor) -> Tensor:
        section, amp = self.recipe.loss, self.recipe.amp
        with torch.autocast(self.device.type, PRECISIONS[amp], enabled=amp != "none"):
            outputs = network(blurred)
        outputs = [output.to(sharp.dtype) for output in outputs]
        if section.every_output:
            return total_of_scales(outputs, sharp, section)
        return total(outputs[0], sharp, section, blurred=blurred, contrast=self.contrast)

    def _gradients(self, blurred: Tensor, sharp: Tensor, weight: float = 1.0) -> tuple[Tensor, list[Tensor]]:
        """Loss of a batch, and its gradients, piece by piece; of several processes the mean of their gradients."""
        if self.processes.alone:
            return self._own_gradients(blurred, sharp, weight)
        pieces = self._pieces(blurred, sharp)
        loss = torch.zeros((), device=self.device)
        for parameter in self.parameters:
            parameter.grad = None
        for number, (one, other) in enumerate(pieces, 1):
            with nullcontext() if number == len(pieces) else self.processes.quiet(self.network):
                part = self._loss(self.network, one, other) * (len(one) / len(blurred) * weight)
                loss = loss + part.detach()
                self._scaled(part).backward()  # the processes exchange gradients while others are still computed
        return loss, self._unscaled([parameter.grad for parameter in self.parameters if parameter.grad is not None])

    def _own_gradients(self, blurred: Tensor, sharp: Tensor, weight: float = 1.0) -> tuple[Tensor, list[Tensor]]:
        """Loss of this process's share of a batch, and its gradients, piece by piece."""
        loss = torch.zeros((), device=self.device)
        gradients: list[Tensor] = []
        for one, other in self._pieces(blurred, sharp):
            part = self._loss(self.own_network, one, other) * (len(one) / len(blurred) * weight)
            loss = loss + part.detach()
            found = list(torch.autograd.grad(self._scaled(part), self.parameters))
            if gradients:
                torch._foreach_add_(gradients, found)
            else:
                gradients = found
        return loss, self._unscaled(gradients)

    def _pieces(self, blurred: Tensor, sharp: Tensor) -> list[tuple[Tensor, Tensor]]:
        return list(zip(*(image.chunk(self.recipe.accumulate) for image in (blurred, sharp)), strict=True))

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss * self.scale if self.recipe.amp == "fp16" else loss

    def _unscaled(self, gradients: list[Tensor]) -> list[Tensor]:
        if self.recipe.amp == "fp16":
            torch._foreach_mul_(gradients, 1 / self.scale)
        return gradients

    def _settle(self) -> None:
        """Let DDP see one backward pass: it then groups the gradients anew.

        Before the first step it would add them in another order than later, and a run that goes on would differ in its
        last bits from one that was not stopped.
        """
        if not self.processes.alone and not self.in_graphs:
            blank = torch.zeros(1, 3, 16, 16, device=self.device, dtype=self.parameters[0].dtype)
            with warnings.catch_warnings():  # of one by one kernels, whose strides say nothing
                warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
                self._gradients(blank, blank)

    def _update(self, blurred: Tensor, sharp: Tensor, weight: float = 1.0) -> None:
        self._apply(*self._gradients(blurred, sharp, weight))

    def _apply(self, loss: Tensor, gradients: list[Tensor]) -> None:
        """One step of the optimiser and of the average."""
        section = self.recipe.optimizer
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
            torch._foreach_lerp_(self.average, [*self.parameters], 1 - section.ema_decay)
            if self.recipe.amp == "fp16":
                self._rescale(finite)
            zero = torch.zeros_like(loss)
            seen = torch.stack([torch.where(finite, loss, zero), torch.where(finite, norm, zero), (~finite).float()])
            self.sums += seen.detach()
            self.steps_summed += 1

    def _rescale(self, finite: Tensor) -> None:
        """Halve the scale of the loss after a skipped step, double it after many good ones."""
        many = finite & (self.good_steps + 1 >= GROWS_AFTER)
        self.scale.mul_(torch.where(many, 2.0, torch.where(finite, 1.0, 0.5)))
        self.good_steps.copy_(torch.where(finite & ~many, self.good_steps + 1, 0.0))

    def captured(self) -> Callable[[Tensor, Tensor, float], None]:
        """:meth:`update` by CUDA graphs: thousands of small kernels start as one.

        Several processes must have equal shares of every batch. When the patches change their size, graphs of the new
        size take the place of the old ones.
        """
        steps: dict[tuple[int, ...], Callable[[Tensor, Tensor], None]] = {}

        def update(blurred: Tensor, sharp: Tensor, _: float) -> None:
            if (shape := tuple(blurred.shape)) not in steps:
                steps.clear()
                steps[shape] = self._capture(shape)
            self._begin()
            steps[shape](blurred, sharp)

        return update

    def _capture(self, shape: tuple[int, ...]) -> Callable[[Tensor, Tensor], None]:
        """Graphs of one step on batches of a shape; nothing is changed by making them."""
        blurred = torch.rand(shape, device=self.device).contiguous(memory_format=torch.channels_last)
        sharp = torch.rand(shape, device=self.device)
        changing = [*self.state(), self.sums, self.steps_summed]
        kept = [tensor.clone() for tensor in changing]
        parts, meet = self.parts(blurred, sharp)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                for part in parts:
                    part()
        torch.cuda.current_stream().wait_stream(stream)
        graphs = []
        for part in parts:
            graphs.append(torch.cuda.CUDAGraph())
            with torch.cuda.graph(graphs[-1], capture_error_mode="thread_local"):  # other processes are waited for
                part()
        with torch.no_grad():
            for tensor, value in zip(changing, kept, strict=True):
                tensor.copy_(value)

        def replay(next_blurred: Tensor, next_sharp: Tensor) -> None:
            blurred.copy_(next_blurred)
            sharp.copy_(next_sharp)
            graphs[0].replay()
            for graph in graphs[1:]:
                meet()
                graph.replay()

        return replay

    def parts(self, blurred: Tensor, sharp: Tensor) -> tuple[list[Callable[[], None]], Callable[[], None]]:
        """One step on a batch in parts that need no other process, and what the processes do between them."""
        if self.processes.alone:
            return [lambda: self._update(blurred, sharp)], lambda: None
        flat = torch.zeros(1 + sum(p.numel() for p in self.parameters), device=self.device)

        def gradients() -> None:
            loss, found = self._own_gradients(blurred, sharp)
            flat.copy_(torch.cat([loss.reshape(1), *(gradient.flatten() for gradient in found)]))

        def apply() -> None:
            loss, *found = flat.split([1, *(p.numel() for p in self.parameters)])
            ordered = [torch.empty_like(p) for p in self.parameters]  # the optimiser reads memory in their order
            torch._foreach_copy_(ordered, [g.view_as(p) for g, p in zip(found, self.parameters, strict=True)])
            self._apply(loss[0].clone(), ordered)

        return [gradients, apply], lambda: self.processes.average(flat)

    def rate_at(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine to ``final_rate``."""
        section = self.recipe.optimizer
        step = step // section.hold * section.hold
        if step < section.warmup:
            return section.rate * (step + 1) / section.warmup
        done = (step - section.warmup) / max(1, self.recipe.iterations - section.warmup)
        return section.final_rate + (section.rate - section.final_rate) * (1 + math.cos(math.pi * min(1, done))) / 2

    def report(self) -> dict[str, float]:
        """Means over the steps since the last report that were not skipped, and the count of those that were."""
        loss, norm, skipped = self.processes.mean(self.sums).tolist()
        kept = self.steps_summed.item() - skipped
        self.sums.zero_(), self.steps_summed.zero_()
        scale = {"scale": self.scale.item()} if self.recipe.amp == "fp16" else {}
        return scale | {
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
            *([self.scale, self.good_steps] if self.recipe.amp == "fp16" else []),
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
        model, kind = self.averaged().to(self.device), self.parameters[0].dtype

        @torch.inference_mode()
        def restore(image: Tensor) -> Tensor:
            restored = model(image[None].to(self.device, kind) / 255)[0]
            return restored.clamp(0, 1).mul(255).round().to(torch.uint8).cpu()

        return restore


class _Outputs(nn.Module):
    """What a step calls: the outputs of a network that the loss compares, finest first."""

    def __init__(self, model: nn.Module, every: bool):
        super().__init__()
        self.model, self.every = model, every

    def forward(self, blurred: Tensor) -> tuple[Tensor, ...]:
        if self.every:
            return tuple(self.model.forward_outputs(blurred)["outputs"])  # type: ignore[operator]
        return (self.model(blurred),)


def _contrast(section: LossSection, device: torch.device) -> tuple[Contrast | None, str]:
    """The contrastive term, and why there is none if the recipe asks for it and its weights are nowhere."""
    if not section.contrast:
        return None, ""
    try:
        return Contrast.open(section.vgg).to(device), ""
    except FileNotFoundError as error:
        if section.vgg:
            raise
        return None, str(error)
