"""A network that learns: its weights, what the optimiser knows, and one step on one batch."""

import math
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from slicescan.engine.config import LossSection, Recipe
from slicescan.engine.contrast import Contrast
from slicescan.engine.losses import total, total_of_scales
from slicescan.registry import create_model


class Run:
    """What changes while a network is trained: its weights, their average, the optimiser's moments, the step."""

    def __init__(self, recipe: Recipe, device: torch.device):
        self.recipe, self.device, self.step = recipe, device, 0
        torch.manual_seed(recipe.seed)
        weights = recipe.model.weights
        start: dict[str, Any] = {"pretrained": True} if weights == "pretrained" else {"checkpoint_path": weights}
        model = create_model(recipe.model.name, **start, **recipe.model.arguments)
        self.contrast, self.missing = _contrast(recipe.loss, device)
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
        self._begin()
        self._update(blurred.contiguous(memory_format=torch.channels_last), sharp)

    def _begin(self) -> None:
        """Set what changes from step to step and is no tensor: the rate, and the draws of layers that draw."""
        self.rate.fill_(self.rate_at(self.step))
        seed = (self.recipe.seed * 1_000_003 + self.step) % 2**63
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(seed)

    def _loss(self, blurred: Tensor, sharp: Tensor) -> Tensor:
        section = self.recipe.loss
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.amp == "bf16"):
            if section.every_output:
                outputs = self.model.forward_outputs(blurred)["outputs"]  # type: ignore[operator]
            else:
                outputs = [self.model(blurred)]
        outputs = [output.float() for output in outputs]
        if section.every_output:
            return total_of_scales(outputs, sharp, section)
        return total(outputs[0], sharp, section, blurred=blurred, contrast=self.contrast)

    def _gradients(self, blurred: Tensor, sharp: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Loss of a batch, and its gradients, piece by piece."""
        pieces = self.recipe.accumulate
        loss = torch.zeros((), device=self.device)
        gradients: list[Tensor] = []
        for one, other in zip(blurred.chunk(pieces), sharp.chunk(pieces), strict=True):
            part = self._loss(one, other) * (len(one) / len(blurred))
            found = list(torch.autograd.grad(part, self.parameters))
            if gradients:
                torch._foreach_add_(gradients, found)
            else:
                gradients = found
            loss = loss + part.detach()
        return loss, gradients

    def _update(self, blurred: Tensor, sharp: Tensor) -> None:
        section = self.recipe.optimizer
        loss, gradients = self._gradients(blurred, sharp)
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
            self._begin()
            blurred.copy_(next_blurred)
            sharp.copy_(next_sharp)
            graph.replay()

        return replay

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
