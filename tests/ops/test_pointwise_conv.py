"""Convolutions of a CPU in one pass, beside float64 and PyTorch's own float32."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from slicescan.layers import GatedDconvFFN, InterVSSM, IntraVSSM, Mamba
from slicescan.layers.pointwise import PointwiseConv2d
from slicescan.ops import causal_conv, dispatch
from slicescan.ops.backends.cpu import pointwise
from slicescan.ops.pointwise_conv import gated_pointwise_conv, pointwise_conv, pointwise_linear, widened_conv
from tests.layers.agreement import noise, relative

WIDTHS = [(1, 1), (3, 2), (5, 7), (8, 8), (12, 48), (24, 33), (48, 25), (50, 100)]
"""Channels, and channels of the output: less than a vector, whole vectors, whole panels, and some more than that."""

SIZES = [(1, 3, 5), (2, 1, 9), (3, 8, 1), (1, 1, 1), (1, 20, 131)]
"""Images, rows and columns: fewer and more pixels than a panel, fewer and more columns than a band."""


def image(*shape, seed=0, size=1.0, halves=False):
    """Channels side by side; with ``halves`` those of a wider image, so that pixels lie apart."""
    b, c, h, w = shape
    wide = (size * noise(b, 2 * c if halves else c, h, w, seed=seed)).float()
    return wide.contiguous(memory_format=torch.channels_last)[:, -c:]


def widened_plain(x, weight, bias, taps, shift, last=None, last_bias=None):
    y = F.conv2d(F.conv2d(x, weight, bias), taps, shift, padding=1, groups=len(taps))
    if last is None:
        return y
    a, b = y.chunk(2, 1)
    return F.conv2d(F.silu(a) * b, last, last_bias)


def causal_plain(x, weight, bias, axis):
    k, sequences = weight.shape[1], x.permute(0, 1, 3, 2) if axis == "w" else x.permute(0, 2, 3, 1)
    y = F.conv1d(F.pad(sequences.flatten(0, 1), (k - 1, 0)), weight[:, None], bias, groups=len(weight))
    y = F.silu(y).unflatten(0, sequences.shape[:2])
    return y.permute(0, 1, 3, 2) if axis == "w" else y.permute(0, 3, 1, 2)


def cases(c=6, o=10, b=2, h=4, w=5):
    """Each operator, the same in plain PyTorch, and arguments."""
    x, gate = image(b, c, h, w), image(b, c, h, w, seed=1, size=9)
    weight, bias, taps = noise(o, c, 1, 1, seed=2).float(), noise(o, seed=3).float(), noise(o, 1, 3, 3, seed=4).float()
    last, shift, end = noise(c, o // 2, 1, 1, seed=5).float(), noise(o, seed=6).float(), noise(c, seed=7).float()
    apart, apart_gate = image(b, c, h, w, halves=True), image(b, c, h, w, seed=8, halves=True)
    four, three = noise(c, 4, seed=9).float(), noise(c, 3, seed=10).float()
    found = {
        "1x1": (pointwise_conv, F.conv2d, (x, weight, bias)),
        "1x1 without bias, of pixels that lie apart": (pointwise_conv, F.conv2d, (apart, weight)),
        "linear": (
            lambda x, *rest: pointwise_linear(x.permute(0, 2, 3, 1), *rest),
            lambda x, *rest: F.linear(x.permute(0, 2, 3, 1), *rest), (apart, weight[:, :, 0, 0], bias),
        ),
        "gated 1x1": (
            lambda a, x, *conv: gated_pointwise_conv(a, x, conv),
            lambda a, x, *conv: F.conv2d(F.silu(a) * x, *conv), (gate, x, weight, bias),
        ),
        "gated 1x1 of pixels that lie apart": (
            lambda a, x, weight: gated_pointwise_conv(a, x, (weight, None)),
            lambda a, x, weight: F.conv2d(F.silu(a) * x, weight), (apart_gate, apart, weight),
        ),
        "widened": (
            lambda x, *rest: widened_conv(x, rest[:2], rest[2:]), widened_plain, (x, weight, bias, taps, shift)
        ),
        "widened without bias": (
            lambda x, weight, taps: widened_conv(x, (weight, None), (taps, None)),
            lambda x, weight, taps: widened_plain(x, weight, None, taps, None), (x, weight, taps),
        ),
        "causal, rows": (
            lambda x, *rest: causal_conv(x.permute(0, 2, 3, 1), *rest, axis="w", silu=True),
            lambda x, *rest: causal_plain(x.permute(0, 2, 3, 1), *rest, "w"), (apart, four, end),
        ),
        "causal, columns": (
            lambda x, *rest: causal_conv(x.permute(0, 2, 3, 1), *rest, axis="h", silu=True),
            lambda x, *rest: causal_plain(x.permute(0, 2, 3, 1), *rest, "h"), (x, four, end),
        ),
        "causal, three taps without bias": (
            lambda x, taps: causal_conv(x.permute(0, 2, 3, 1), taps, axis="h", silu=True),
            lambda x, taps: causal_plain(x.permute(0, 2, 3, 1), taps, None, "h"), (x, three),
        ),
    }  # fmt: skip
    if o % 2 == 0:
        found["widened, gated and narrowed"] = (
            lambda x, *rest: widened_conv(x, rest[:2], rest[2:4], rest[4:]), widened_plain,
            (x, weight, bias, taps, shift, last, end),
        )  # fmt: skip
    return found


KERNELS = ("product", "gated_product", "around", "causal_silu")


@pytest.fixture
def served(monkeypatch):
    """Names of the kernels that ran."""
    names = []

    def noting(name, run):
        return lambda *arguments: (names.append(name), run(*arguments))[1]

    for name in KERNELS:
        monkeypatch.setattr(pointwise, name, noting(name, getattr(pointwise, name)))
    return names


def judge(case, served):
    run, plain, arguments = case
    exact = plain(*(x.double() for x in arguments))
    with torch.no_grad():
        y = run(*arguments)
    assert len(served) == 1 and y.dtype == torch.float32 and y.shape == exact.shape
    moved = [x * (1 + 6e-8 * noise(*x.shape, seed=k).sign()) for k, x in enumerate(x.double() for x in arguments)]
    rounding = relative(plain(*moved), exact) + torch.finfo(torch.float32).eps / 2
    assert relative(y, exact) <= 2 * relative(plain(*arguments), exact) + rounding


@pytest.mark.parametrize("kernel", cases())
@pytest.mark.parametrize("size", SIZES)
def test_kernels_err_no_more_than_pytorch(kernel, size, served):
    b, h, w = size
    judge(cases(b=b, h=h, w=w)[kernel], served)


@pytest.mark.parametrize("widths", WIDTHS)
def test_any_number_of_channels_is_taken(widths, served):
    c, o = widths
    for case in cases(c, o, h=5, w=7).values():
        judge(case, served)
        served.clear()


@pytest.mark.parametrize("kernel", cases())
def test_the_number_of_threads_changes_no_bit(kernel):
    run, _, arguments = cases(50, 72, h=63, w=80)[kernel]
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            with torch.no_grad():
                results.append(run(*arguments))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.parametrize("kernel", cases())
def test_what_is_no_number_stays_so_and_in_its_image(kernel):
    run, _, arguments = cases()[kernel]
    arguments[0][0, 3, 2, 2] = float("nan")
    with torch.no_grad():
        y = run(*arguments)
    assert y[0].isnan().any() and not y[1].isnan().any()


@pytest.mark.parametrize("kernel", cases())
def test_gradients_planes_other_dtypes_and_autocast_have_it_from_pytorch(kernel, served, monkeypatch):
    run, plain, arguments = cases()[kernel]
    assert relative(run(*(x.double() for x in arguments)), plain(*(x.double() for x in arguments))) < 1e-12
    run(*(x.bfloat16() for x in arguments))
    run(*(x.contiguous() for x in arguments))
    assert run(arguments[0].clone().requires_grad_(), *arguments[1:]).grad_fn is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        run(*arguments)
    with monkeypatch.context() as patch:
        patch.setenv(dispatch.VARIABLE, "torch")
        run(*arguments)
    assert not served
    run(*arguments)
    assert served


def test_wrong_shapes_are_pytorchs_errors():
    x = image(1, 6, 4, 5)
    with torch.no_grad(), pytest.raises(RuntimeError):
        pointwise_conv(x, torch.ones(3, 5, 1, 1))
    with torch.no_grad(), pytest.raises(RuntimeError):
        pointwise_linear(x.permute(0, 2, 3, 1), torch.ones(3, 5))


@pytest.mark.parametrize("make", [GatedDconvFFN, IntraVSSM, InterVSSM])
def test_layers_find_the_same_with_the_kernels_and_without(make, served, monkeypatch):
    torch.manual_seed(0)
    layer, x = make(6).eval(), image(2, 6, 5, 7)
    with torch.no_grad():
        y = layer(x)
        assert {"around"} <= set(served)
        served.clear()
        with monkeypatch.context() as patch:
            patch.setenv(dispatch.VARIABLE, "torch")
            assert relative(y, layer(x).double()) < 1e-5
        assert not served


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (GatedDconvFFN, "project_out"), (GatedDconvFFN, "dwconv"), (IntraVSSM, "proj_in"), (IntraVSSM, "proj_out"),
        (IntraVSSM, "fuse_out"), (lambda dim: nn.Sequential(PointwiseConv2d(dim, dim)), "0"), (Mamba, "in_proj"),
        (Mamba, "out_proj"),
    ],
)  # fmt: skip
def test_hooks_and_what_stands_in_a_convolutions_place_are_called(make, name):
    layer, x = make(8).eval(), image(1, 8, 5, 7)
    x = x[0].permute(1, 2, 0) if isinstance(layer, Mamba) else x
    calls = []
    with torch.no_grad():
        y = layer(x)
        handle = layer.get_submodule(name).register_forward_hook(lambda *_: calls.append(name))
        assert relative(layer(x), y.double()) < 1e-5 and calls
        handle.remove()
        calls.clear()
        setattr(layer, name, Wrapped(layer.get_submodule(name), calls))
        assert relative(layer(x), y.double()) < 1e-5 and calls


class Wrapped(nn.Module):
    """A module in the place of another, without its weight."""

    def __init__(self, inner, calls):
        super().__init__()
        self.inner, self.calls = inner, calls

    def forward(self, x):
        self.calls.append("wrapped")
        return self.inner(x)


def test_a_pointwise_convolution_is_a_conv2d_by_name_and_weights():
    torch.manual_seed(0)
    ours = PointwiseConv2d(8, 4)
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 4, 1)
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), plain.parameters(), strict=True))
    x = image(1, 8, 3, 5)
    assert ours.load_state_dict(plain.state_dict()) and relative(ours(x), plain(x).double()) < 1e-6
