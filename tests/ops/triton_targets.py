"""What test_triton.py runs in a process of its own: compile the kernels for devices that need not be here.

Prints, for each device and kernel, the bytes of shared memory and whether machine code came out.
"""

import json
from collections import defaultdict
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from slicescan.ops.backends import triton as backend
from slicescan.ops.backends.triton import kernels, product, product_kernel
from slicescan.ops.call import ScanCall

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class Driver:
    """As much of a Triton driver as compilation asks for."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        """The device to compile for."""
        return self.target

    def get_current_device(self) -> str:
        """Key of the compiled kernels."""
        return str(self.target)

    def get_current_stream(self, device: str) -> int:
        """No stream."""
        return 0


class Kernels:
    """The kernels; a launch compiles and notes what came out."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[int, bool]] = {}

    def __getattr__(self, name: str) -> Any:
        def launch(*arguments: Any, **options: Any) -> None:
            module = product_kernel if name == "product" else kernels
            kernel = getattr(module, name).warmup(*arguments, grid=(1,), **options)
            self.found[name] = (kernel.metadata.shared, bool(kernel.asm.get("cubin") or kernel.asm.get("hsaco")))

        return defaultdict(lambda: launch)  # whatever the grid


def compiled(target: GPUTarget, call: ScanCall) -> dict[str, tuple[int, bool]]:
    """Compile what a call launches."""
    noted = Kernels()
    driver.set_active(Driver(target))
    backend._kernels = lambda: noted
    backend._interpreted = lambda: False
    backend._nvidia = lambda device: target.backend == "cuda"
    y, last, saved = backend.forward(call, save=True)
    backend.backward(call, saved, y, last)
    if target.backend == "cuda":  # others have no such products
        product._kernels = lambda: noted
        product.run(torch.zeros(1, 64, 144), torch.zeros(288, 144), torch.zeros(1, 64, 288))
    return noted.found


def main() -> None:
    """Compile for every target."""
    u = torch.zeros(1, 2, 1024, 48, dtype=torch.bfloat16)
    mix = torch.zeros(1, 2, 1024, 1, 16, dtype=torch.bfloat16)
    call = ScanCall(u, u, -torch.ones(48, 16), mix, mix, torch.ones(48), u, torch.ones(48), delta_softplus=True)
    print(json.dumps({name: compiled(target, call) for name, target in TARGETS.items()}))


if __name__ == "__main__":
    main()
