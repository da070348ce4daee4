import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from slicescan.ops import causal_conv, dispatch
from slicescan.ops.backends.cuda import conv


def restated(x: Tensor, weight: Tensor, bias: Tensor | None, axis: str) -> Tensor:
    """Sum over taps, one shifted map each."""
    dim, taps = (2 if axis == "w" else 1), weight.shape[1]
    y = 0 * x * weight.sum(1) + (0 if bias is None else bias)
    for j in range(taps):
        delay = min(taps - 1 - j, x.shape[dim])
        late = torch.cat([x.narrow(dim, 0, delay) * 0, x.narrow(dim, 0, x.shape[dim] - delay)], dim)
        y = y + weight[:, j] * late
    return y


sizes = st.sampled_from([0, 1, 2, 3, 7])


@given(b=st.integers(0, 2), h=sizes, w=sizes, d=st.sampled_from([1, 3]), taps=st.integers(1, 5),
       axis=st.sampled_from("hw"), biased=st.booleans(), silu=st.booleans(), planes=st.booleans())  # fmt: skip
def test_it_is_a_sum_of_shifted_maps(b, h, w, d, taps, axis, biased, silu, planes):
    generator = torch.Generator().manual_seed(taps)
    x = torch.randn(b, h, w, d, generator=generator, dtype=torch.float64)
    if planes:
        x = x.movedim(-1, 1).contiguous().movedim(1, -1)
    weight = torch.randn(d, taps, generator=generator, dtype=torch.float64)
    bias = torch.randn(d, generator=generator, dtype=torch.float64) if biased else None
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias) if tensor is not None]
    y = causal_conv(x, weight, bias, axis=axis, silu=silu)
    want = restated(x, weight, bias, axis)
    want = F.silu(want) if silu else want
    torch.testing.assert_close(y, want)
    for one, two in zip(*(torch.autograd.grad(out.square().sum(), leaves) for out in (y, want)), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("axis", ["h", "w"])
def test_no_position_knows_a_later_one_or_another_slice(axis):
    x, weight = torch.randn(1, 5, 6, 2), torch.randn(2, 4)
    other = x.clone()
    other[:, 2, 3] += 1
    changed = (causal_conv(x, weight, axis=axis) != causal_conv(other, weight, axis=axis)).any(-1)[0]
    assert set(map(tuple, changed.nonzero().tolist())) == (
        {(2, 3), (2, 4), (2, 5)} if axis == "w" else {(2, 3), (3, 3), (4, 3)}
    )


def test_a_backward_pass_of_the_flipped_map_looks_the_other_way():
    x, weight = torch.randn(2, 3, 5, 2), torch.randn(2, 4)
    columns = causal_conv(x.transpose(1, 2), weight, axis="h").transpose(1, 2)
    torch.testing.assert_close(columns, causal_conv(x, weight, axis="w"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype):
    assert causal_conv(torch.ones(1, 2, 3, 4, dtype=dtype), torch.ones(4, 2, dtype=dtype), axis="h").dtype == dtype


def test_what_does_not_fit_is_named():
    x = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="axis must be 'h' or 'w', got 1"):
        causal_conv(x, torch.zeros(4, 2), axis=1)
    with pytest.raises(ValueError, match=r"k of 1 or more, got \(4, 0\)"):
        causal_conv(x, torch.zeros(4, 0), axis="h")
    with pytest.raises(ValueError, match=r"causal_conv: weight must be \(d, k\) = \(4, k\), got \(4, 1, 2\)"):
        causal_conv(x, torch.zeros(4, 1, 2), axis="h")
    with pytest.raises(ValueError, match=r"bias must be \(d,\) = \(4,\), got \(3,\)"):
        causal_conv(x, torch.zeros(4, 2), torch.zeros(3), axis="h")
    with pytest.raises(ValueError, match="weight must be on cpu like x, got meta"):
        causal_conv(x, torch.zeros(4, 2, device="meta"), axis="h")
    with pytest.raises(ValueError, match=r"x must be \(b, h, w, d\)"):
        causal_conv(x[0], torch.zeros(4, 2), axis="h")


def test_a_device_with_a_kernel_of_its_own_uses_it(monkeypatch):
    asked = []
    monkeypatch.setattr(dispatch, "has_fast_convolution", lambda *constants: asked.append(constants) or True)
    monkeypatch.setattr(conv, "causal_conv", lambda x, weight, bias, axis, silu: x + len(axis) + silu)
    x, weight = torch.zeros(1, 2, 3, 4), torch.zeros(4, 3)
    assert torch.equal(causal_conv(x, weight, axis="h", silu=True), x + 2)
    assert asked == [(torch.device("cpu"), torch.float32, 3)]


def test_a_plain_backend_by_name_means_plain_convolutions(monkeypatch):
    monkeypatch.setattr(conv, "why_not", lambda x, weight: None)
    gpu = torch.device("cuda:0"), torch.bfloat16, 4
    assert dispatch.has_fast_convolution(*gpu)
    assert not dispatch.has_fast_convolution(torch.device("cpu"), torch.bfloat16, 4)
    monkeypatch.setenv("SLICESCAN_BACKEND", "torch")
    assert not dispatch.has_fast_convolution(*gpu)
