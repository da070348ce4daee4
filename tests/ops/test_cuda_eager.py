"""Operators whose eager calls go round their wrapper."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from slicescan.ops.backends.cuda.eager import direct


@pytest.fixture
def scaled():
    """``x * weight + bias`` by a factor, and the names of what ran."""
    ran = []

    def named(name, function):
        def run(*arguments):
            ran.append(name)
            return function(*arguments)

        return run

    def forward(x, weight, bias, factor):
        y = x * weight * factor
        return y if bias is None else y + bias

    def backward(x, weight, bias, grad, factor):
        return grad * weight * factor, grad * x * factor, grad.clone()

    made = direct(
        named("operator", forward), named("backward operator", backward),
        named("forward", forward), named("backward", backward), tensors=3,
    )  # fmt: skip
    return made, ran


def leaves(*shape):
    return [torch.randn(shape, requires_grad=True) for _ in range(3)]


def test_gradients_are_those_of_the_function(scaled):
    call, ran = scaled
    x, weight, bias = leaves(3, 4)
    y = call(x, weight, bias, 2.0)
    seed = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, weight, bias], seed)
    for gradient, expected in zip(found, (seed * weight * 2, seed * x * 2, seed), strict=True):
        torch.testing.assert_close(gradient, expected)
    assert ran == ["forward", "backward"]


def test_what_is_not_there_has_no_gradient(scaled):
    call, ran = scaled
    x, weight, _ = leaves(2)
    call(x, weight, None, 1.0).sum().backward()
    torch.testing.assert_close(x.grad, weight.detach())
    assert ran == ["forward", "backward"]


def test_without_gradients_nothing_is_kept(scaled):
    call, ran = scaled
    x, weight, bias = leaves(2)
    with torch.no_grad():
        assert call(x, weight, bias, 1.0).grad_fn is None
    assert call(x.detach(), weight.detach(), None, 1.0).grad_fn is None
    assert ran == ["forward", "forward"]


def test_counters_and_second_derivatives_see_the_operator(scaled):
    call, ran = scaled
    x, weight, bias = leaves(2)
    with FlopCounterMode(display=False):
        call(x, weight, bias, 1.0)
    torch.autograd.grad(call(x, weight, bias, 1.0).sum(), x, create_graph=True)
    assert ran == ["operator", "forward", "backward operator"]
