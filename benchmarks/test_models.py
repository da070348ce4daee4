"""Time of whole networks on this machine: ``poe bench``."""

import pytest
import torch

import slicescan


@pytest.mark.parametrize("size", [(64, 64), (256, 256)], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", ["xyscannet_tiny", "xyscannet_small"])
def test_inference(benchmark, name: str, size: tuple[int, int]):
    benchmark.group = f"inference {size[0]}x{size[1]}"
    model = slicescan.create_model(name).eval()
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def restore():
        return model(image)

    benchmark.pedantic(restore, rounds=3, warmup_rounds=1)
