"""Two halves gated by row and by column, as plain operations and as a kernel on an emulated machine."""

import pytest
import torch

from slicescan.layers import InterScan, InterVSSM
from slicescan.ops import dispatch, slice_gate
from slicescan.ops.backends.cuda import driver, nvrtc, pixels
from slicescan.ops.backends.cuda import slice_gate as backend
from tests.layers.agreement import noise
from tests.layers.restated import perturb
from tests.ops import cuda_emulator

HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
CASES = {
    "halves of one map": {},
    "separate maps": {"apart": True},
    "channels that fill no vector": {"d": 5},
    "channels that fill no vector, apart": {"d": 5, "apart": True},
    "more items than a block has threads": {"d": 72, "h": 9, "w": 11},
    "one pixel": {"b": 1, "h": 1, "w": 1},
    "one row": {"h": 1},
    "one column": {"w": 1},
    "one channel": {"d": 1},
    "values that halves cannot hold": {"scale": 1e4},
    "values that halves round to zero": {"scale": 1e-4},
    "no image": {"b": 0},
    "no row": {"h": 0},
}


@pytest.fixture
def kernels(monkeypatch):
    """The kernel on a processor, for all but float64; what was started."""
    started = []

    def launch(device, kernel, *rest):
        started.append(kernel)
        cuda_emulator.launch(device, kernel, *rest)

    monkeypatch.setattr(driver, "launch", launch)
    monkeypatch.setattr(slice_gate, "runs_kernels", lambda *maps: maps[0].dtype != torch.float64)
    return started


def draw(dtype=FLOAT, b=2, d=12, h=3, w=7, apart=False, scale=1.0):
    """Both maps, the gates of rows and those of columns."""
    first, second = (scale * noise(b, h, w, 2 * d)).to(dtype).chunk(2, -1)
    if apart:
        first, second = first.contiguous(), second.contiguous()
    rows, columns = noise(b, h, 1, d, seed=1), noise(b, w, 1, d, seed=2).transpose(1, 2)
    return first, second, (scale * rows).to(dtype), (scale * columns).to(dtype)


def products(first, second, rows, columns):
    return torch.cat([torch.mul(first, rows), torch.mul(second, columns)], -1)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [HALF, BFLOAT, FLOAT])
def test_the_kernel_has_the_bits_of_plain_products(dtype, name, kernels):
    maps = draw(dtype, **CASES[name])
    y = slice_gate.slice_gate(*maps)
    assert y.dtype == dtype and y.is_contiguous() and torch.equal(y, products(*maps))
    assert len(kernels) == (y.numel() > 0)


@pytest.mark.parametrize("name", CASES)
def test_without_the_kernel_they_are_plain_products(name):
    for dtype in (BFLOAT, torch.float64):
        maps = draw(dtype, **CASES[name])
        y = slice_gate.slice_gate(*maps)
        assert y.dtype == dtype and y.is_contiguous() and torch.equal(y, products(*maps))


@pytest.mark.parametrize(
    ("dtype", "d", "vector"), [(BFLOAT, 72, 8), (BFLOAT, 12, 4), (HALF, 5, 1), (FLOAT, 12, 4), (FLOAT, 6, 2)]
)
def test_a_thread_takes_as_many_channels_as_alignment_permits(dtype, d, vector, kernels):
    slice_gate.slice_gate(*draw(dtype, d=d))
    assert [pixels.vector(kernel) for kernel in kernels] == [vector]


def test_the_order_of_threads_changes_nothing(monkeypatch, kernels):
    maps = draw(d=24, h=7, w=9)
    monkeypatch.setattr(driver, "launch", lambda *given: cuda_emulator.launch(*given, falling=True))
    assert torch.equal(slice_gate.slice_gate(*maps), products(*maps))


def test_a_far_part_of_a_large_map_is_reached_by_wide_offsets(monkeypatch, kernels):
    maps = draw(d=5)
    monkeypatch.setattr(pixels, "reach", lambda *_: 2**31)
    pixels._planned.cache_clear()
    y = slice_gate.slice_gate(*maps)
    pixels._planned.cache_clear()
    assert dict(kernels[0].macros)["WIDE"] == 1 and torch.equal(y, products(*maps))


def test_maps_off_any_order_are_copied_first(kernels):
    maps = draw()
    spread = [x.repeat_interleave(2, 2)[:, :, ::2] for x in maps]
    assert torch.equal(slice_gate.slice_gate(*spread), products(*maps)) and kernels


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("dtype", [HALF, BFLOAT, FLOAT])
def test_the_kernel_compiles_without_a_gpu(architecture, dtype, kernels, monkeypatch):
    monkeypatch.setattr(driver, "launch", lambda device, kernel, *_: kernels.append(kernel))
    slice_gate.slice_gate(*draw(dtype))
    (kernel,) = kernels
    image = nvrtc.compile_source(driver.source(kernel.file), driver.options(kernel.macros), architecture)
    assert image.startswith(b"\x7fELF")


def test_dispatch_loads_it():
    assert dispatch.load("cuda.slice_gate") is backend


@pytest.mark.parametrize("kind", [InterScan, InterVSSM])
@pytest.mark.parametrize("dtype", [BFLOAT, FLOAT])
def test_layers_run_it_where_nothing_records_and_keep_their_bits(kind, dtype, kernels, monkeypatch):
    layer = perturb(kind(4, state=3)).to(dtype)
    x = noise(2, 4, 3, 5).to(dtype).contiguous(memory_format=torch.channels_last)
    layer(x)  # records gradients
    assert not kernels
    with torch.no_grad():
        y = layer(x)
        assert [kernel.name for kernel in kernels] == ["slice_gate_forward"]
        monkeypatch.setattr(slice_gate, "runs_kernels", lambda *_: False)
        assert torch.equal(y, layer(x))
    assert len(kernels) == 1


@pytest.mark.parametrize("compression", [0.4, 0.5])
def test_strips_of_slices_have_plain_gates(compression, kernels):
    layer = perturb(InterScan(4, state=3, compression=compression)).float()
    with torch.no_grad():
        layer(noise(2, 4, 4, 5).float())
    assert not kernels
