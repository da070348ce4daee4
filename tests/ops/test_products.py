"""Products written to a map, and when the tensor cores take them."""

from types import SimpleNamespace

import pytest
import torch

from slicescan.ops import dispatch
from slicescan.ops.backends.triton import product as kernel
from slicescan.ops.products import product


@pytest.mark.parametrize("lines", [(), (3,)])
@pytest.mark.parametrize("add", [False, True])
def test_a_product_is_written_or_added_to_some_channels_of_a_map(lines, add):
    x = torch.randn(*lines, 5, 8, dtype=torch.float64)[..., 4:]
    weight = torch.randn(4, 6, dtype=torch.float64).t()
    whole = torch.randn(*lines, 5, 9, dtype=torch.float64)
    before, out = whole.clone(), whole[..., 2:8]
    expected = x @ weight.t() + (out if add else 0)
    assert product(x, weight, out, add=add) is out
    torch.testing.assert_close(out, expected)
    before[..., 2:8] = out
    assert torch.equal(whole, before)


def map_on_a_gpu(dtype=torch.float32, numel=2**30, stride=1):
    device = torch.device("cuda", 0)
    return SimpleNamespace(is_cuda=True, dtype=dtype, device=device, numel=lambda: numel, stride=lambda axis: stride)


def test_what_the_tensor_cores_do_not_multiply_is_said(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(kernel, "_lacking", lambda device: None)
    weight = torch.zeros(1, 4)
    assert kernel.why_not(map_on_a_gpu(), weight) is None
    assert "NVIDIA" in kernel.why_not(torch.zeros(4, 4), weight)
    assert "float32" in kernel.why_not(map_on_a_gpu(torch.bfloat16), weight)
    assert "float32" in kernel.why_not(map_on_a_gpu(), weight.double())
    assert "small" in kernel.why_not(map_on_a_gpu(numel=2**30 - 1), weight)
    assert "side by side" in kernel.why_not(map_on_a_gpu(stride=2), weight)
    torch.set_float32_matmul_precision("high")
    try:
        assert "less precise" in kernel.why_not(map_on_a_gpu(), weight)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_only_gpus_that_gain_multiply_so(monkeypatch):
    kernel._lacking.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert "measured" in (kernel._lacking(torch.device("cuda", 5)) or "") or not kernel.backend._installed()
    kernel._lacking.cache_clear()


def test_another_backend_asked_for_does_without(monkeypatch):
    monkeypatch.setattr(kernel, "why_not", lambda *_: None)
    out = torch.zeros(4, 1)
    assert dispatch.has_float_products(map_on_a_gpu(), torch.zeros(1, 4), out)
    monkeypatch.setenv(dispatch.VARIABLE, "torch")
    assert not dispatch.has_float_products(map_on_a_gpu(), torch.zeros(1, 4), out)
