"""What the CPU's kernels between the scans find, beside float64 and PyTorch's own float32."""

import pytest
import torch
import torch.nn.functional as F

from slicescan import create_model
from slicescan.layers import FeedForwardBlock
from slicescan.ops import add_layer_norm, depthwise_conv, dispatch, layer_norm
from slicescan.ops.backends.cpu import pixels
from slicescan.ops.divergence import divergence_sums, gated_by_divergence
from tests.layers.agreement import noise, relative

SIZES = [(1, 48, 20, 31), (2, 6, 5, 7), (2, 10, 1, 9), (3, 14, 8, 1), (1, 2, 1, 1), (1, 22, 3, 2), (2, 72, 33, 40)]


def image(*shape, seed=0, size=1.0):
    return (size * noise(*shape, seed=seed)).float().contiguous(memory_format=torch.channels_last)


def gated(x, weight, bias):
    return depthwise_conv(x, weight, bias, gate="silu")


def gated_plain(x, weight, bias):
    a, b = F.conv2d(x, weight, bias, padding=1, groups=x.shape[1]).chunk(2, 1)
    return F.silu(a) * b


def norm_plain(x, weight, bias):
    return F.layer_norm(x.movedim(1, -1), weight.shape, weight, bias).movedim(-1, 1)


def sums(x, first, second):
    return divergence_sums(x, [first, second])


def sums_plain(x, *maps):
    parts = [torch.sigmoid(x) * (F.logsigmoid(x) - F.logsigmoid(n)) for n in maps]
    return torch.stack([part.sum((1, 2, 3)) for part in parts], 1)


def cases(b, c, h, w):
    """Each kernel: its operator, the same in plain PyTorch, and arguments."""
    x, branch = image(b, c, h, w), image(b, c, h, w, seed=1, size=9)
    weight, bias, taps = 1 + noise(c, seed=2).float(), noise(c, seed=3).float(), noise(c, 1, 3, 3, seed=4).float()
    return {
        "gated convolution": (gated, gated_plain, (branch, taps, bias)),
        "gated convolution without bias": (lambda *a: gated(*a, None), lambda *a: gated_plain(*a, None), (x, taps)),
        "norm": (layer_norm, norm_plain, (branch + 30, weight, bias)),
        "sum": (lambda *a: add_layer_norm(*a)[0], lambda x, branch, *_: x + branch, (x, branch, weight, bias)),
        "norm of a sum": (
            lambda *a: add_layer_norm(*a)[1], lambda x, branch, *rest: norm_plain(x + branch, *rest),
            (x, branch, weight, bias),
        ),
        "divergences": (sums, sums_plain, (branch, x, image(b, c, h, w, seed=5, size=20))),
    }  # fmt: skip


@pytest.fixture
def served(monkeypatch):
    """Names of the kernels that ran."""
    names = []

    def noting(name, run):
        return lambda *arguments: (names.append(name), run(*arguments))[1]

    for name in ("gated_conv", "norm", "divergences"):
        monkeypatch.setattr(pixels, name, noting(name, getattr(pixels, name)))
    return names


@pytest.mark.parametrize("kernel", cases(1, 2, 1, 1))
@pytest.mark.parametrize("size", SIZES)
def test_kernels_err_no_more_than_pytorch(kernel, size, served):
    run, plain, arguments = cases(*size)[kernel]
    exact = plain(*(x.double() for x in arguments))
    with torch.no_grad():
        y = run(*arguments)
    assert len(served) == 1 and y.dtype == torch.float32 and y.shape == exact.shape
    own = relative(plain(*arguments), exact)
    moved = [x * (1 + 6e-8 * noise(*x.shape, seed=k).sign()) for k, x in enumerate(x.double() for x in arguments)]
    rounding = relative(plain(*moved), exact) + torch.finfo(torch.float32).eps / 2
    assert relative(y, exact) <= 2 * own + rounding
    assert y.ndim != 4 or y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kernel", cases(1, 2, 1, 1))
def test_the_number_of_threads_changes_no_bit(kernel):
    run, _, arguments = cases(2, 72, 63, 80)[kernel]
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


@pytest.mark.parametrize("kernel", cases(1, 2, 1, 1))
def test_what_is_no_number_stays_so(kernel):
    run, _, arguments = cases(2, 6, 4, 5)[kernel]
    arguments[0][0, 3, 2, 2] = float("nan")
    with torch.no_grad():
        y = run(*arguments)
    assert y[0].isnan().any() and not y[1].isnan().any()


@pytest.mark.parametrize("kernel", cases(1, 2, 1, 1))
def test_gradients_planes_other_dtypes_and_autocast_have_it_from_pytorch(kernel, served, monkeypatch):
    run, plain, arguments = cases(2, 6, 4, 5)[kernel]
    assert relative(run(*(x.double() for x in arguments)), plain(*(x.double() for x in arguments))) < 1e-12
    run(*(x.bfloat16() for x in arguments))
    run(*(x.contiguous() for x in arguments))
    assert run(arguments[0].clone().requires_grad_(), *arguments[1:]).grad_fn is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        run(*arguments)
    assert not served
    with monkeypatch.context() as patch:
        patch.setenv(dispatch.VARIABLE, "torch")
        run(*arguments)
    assert not served
    run(*arguments)
    assert served


def test_each_image_diverges_by_itself(served):
    x, first, second = (image(3, 4, 5, 6, seed=k, size=4) for k in range(3))
    together = gated_by_divergence(x, [first, second], per_image=True)
    alone = [gated_by_divergence(x[k : k + 1], [first[k : k + 1], second[k : k + 1]], per_image=True) for k in range(3)]
    assert relative(together, torch.cat(alone).double()) < 1e-6 and len(served) == 4
    exact = gated_by_divergence(x.double(), [first.double(), second.double()], per_image=True)
    assert relative(together, exact) < 1e-6


def test_blocks_and_networks_restore_alike_with_the_kernels_and_without(served, monkeypatch):
    torch.manual_seed(0)
    for module, x in (
        (FeedForwardBlock(6), image(2, 6, 5, 7)),
        (create_model("xyscannet_tiny", blocks=(1, 1, 1)).eval(), image(1, 3, 9, 14).clamp(0, 1)),
    ):
        with torch.no_grad():
            y = module(x)
            assert "norm" in served
            served.clear()
            with monkeypatch.context() as patch:
                patch.setenv(dispatch.VARIABLE, "torch")
                assert relative(y, module(x).double()) < 1e-5
            assert not served
