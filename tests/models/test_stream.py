"""Streaming a network: the result of the whole image, in less memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from slicescan import list_models, model_entry
from slicescan.engine.memory import LiveMemory
from slicescan.layers.strips import Strips
from slicescan.models.base import Restorer
from slicescan.models.xyscannet import XYScanNet
from tests.models.weights import error, far_from_default

ROUNDINGS = 64 * torch.finfo(torch.float64).eps
STREAMED = [name for name in list_models("xyscannet*") if "stream" in model_entry(name).supports]
SMALL = {"dim": 8, "blocks": (1, 1, 1), "state": 4}

VARIED = [
    {},
    {"fusion_gate": "tensor"},
    {"fusion_gate": "pixel"},
    {"fusion": "aff"},
    {"fusion": "skip"},
    {"norm": "bias_free"},
    {"bias": True, "vssm_expand": 1.5, "ffn_expand": 2.0},
    {"scanners": ("intra", "intra")},
    {"scanners": ("inter", "inter")},
    {"scanners": ("inter", "intra"), "norm": "bias_free", "bias": True, "fusion": "aff"},
]

SHAPES = [(1, 3, 46, 27), (2, 3, 20, 36), (1, 3, 5, 9)]
"""Strips that do not divide the height, more than one image and wider than high, and less than one strip."""


def network(**arguments) -> XYScanNet:
    model = XYScanNet(**{**SMALL, **arguments}).double().eval()
    model.load_state_dict(far_from_default(model, seed=1))
    return model


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("arguments", VARIED, ids=str)
@torch.no_grad()
def test_a_streamed_image_equals_the_whole(arguments):
    model = network(**arguments)
    for shape in SHAPES:
        x = images(*shape)
        want = model(x)
        for rows in (4, 12):
            assert error(model.stream(x, rows), want) <= ROUNDINGS, (shape, rows)


@torch.no_grad()
def test_every_map_on_the_way_equals_that_of_the_whole(monkeypatch):
    """The encoder's maps, the fused ones and the decoder's: errors that later layers hide show here."""
    model, x = network(), images(1, 3, 44, 20)
    names = {module: name for name, module in model.named_children()}
    found: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}

    def keep(method: str, which: int) -> None:
        run = getattr(Strips, method)

        def kept(*arguments, **keywords):
            made = run(*arguments, **keywords)
            found[names[arguments[which]]] = made.clone()
            return made

        monkeypatch.setattr(Strips, method, kept)

    for method, which in (("refine", 1), ("fuse", 1), ("merge", 4)):
        keep(method, which)
    model.stream(x, 4)
    for module in found:
        model.get_submodule(module).register_forward_hook(lambda layer, _, y: expected.update({names[layer]: y}))
    model(x)
    assert len(found) == 10
    for name, y in found.items():
        assert error(y, expected[name]) <= ROUNDINGS, name


@pytest.mark.parametrize("fusion", ["klff", "aff", "skip"])
@torch.no_grad()
def test_memory_falls_to_the_maps_between_layers(fusion):
    """What the model says that it keeps, the images, and a few strips; the whole image takes several times as much."""
    model = XYScanNet(8, blocks=(1, 1, 1), state=4, fusion=fusion)
    x = torch.rand(1, 3, 256, 16)
    whole, streamed = peak(model, x), peak(lambda x: model.stream(x, 16), x)
    maps = x[0, 0].numel() * model.stream_channels * 4
    strip = peak(model, x[:, :, :16].clone())
    assert maps < streamed <= maps + 4 * x.nbytes + 4 * strip
    assert streamed < whole / 3


def peak(run: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Most bytes that tensors held at any moment."""
    memory = LiveMemory()
    with memory:
        run(x)
    return memory.peak


@torch.no_grad()
def test_bfloat16_errs_no_more_in_strips_than_in_the_whole():
    model, x = network(dim=16), images(1, 3, 96, 64)
    exact, low = model(x), x.bfloat16()
    model.bfloat16()
    streamed, whole = model.stream(low, 16), model(low)
    assert streamed.dtype == torch.bfloat16 and streamed.isfinite().all()
    assert error(streamed, exact) <= 1.1 * error(whole, exact)


@torch.no_grad()
def test_autocast_and_memory_order_are_those_of_the_whole():
    model, x = network().float(), images(1, 3, 22, 20).float()
    with torch.autocast("cpu", torch.bfloat16):
        whole, streamed = model(x), model.stream(x, 8)
    assert streamed.dtype == whole.dtype and error(streamed, whole) < 0.05
    last = x.to(memory_format=torch.channels_last)
    assert model.stream(x).is_contiguous()
    assert model.stream(last).is_contiguous(memory_format=torch.channels_last)


def test_streaming_asks_for_no_gradients_and_changes_no_input():
    model, x = network(), images(1, 3, 21, 9)
    before = x.clone()
    assert not model.stream(x.requires_grad_(), 4).requires_grad
    assert torch.equal(x.detach(), before)


def test_records_claim_streaming_where_nothing_scans_the_flattened_image():
    assert STREAMED == [name for name in list_models("xyscannet*") if name != "xyscannet_small_mambair"]


def test_a_network_that_cannot_be_streamed_says_why():
    model = XYScanNet(**SMALL, scanners=("ss2d", "inter"))
    with pytest.raises(ValueError, match="XYScanNet cannot stream: the scans of ss2d run through the whole image"):
        model.stream(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="Restorer cannot stream: it has no streamed form"):
        Restorer().stream(torch.rand(1, 3, 8, 8))


def test_a_wrong_image_is_refused_as_by_the_network():
    with pytest.raises(ValueError, match=r"XYScanNet expects.*got \(1, 1, 8, 8\)"):
        network().stream(images(1, 1, 8, 8))
