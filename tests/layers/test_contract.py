"""What every public layer promises. A new layer is built as ``MyLayer(8)``; one that needs more has a recipe here."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import slicescan.layers
from slicescan.layers import (
    AFF,
    CAB,
    KLFF,
    SS2D,
    BidirectionalMamba,
    InterScan,
    InterVSSM,
    LocalMean2d,
    Mamba,
    SimpleChannelAttention,
    SimpleGate,
    SliceScan2D,
)
from tests.layers.agreement import noise, relative
from tests.layers.restated import perturb

DIM = 8
ROUNDINGS = 64  # how many roundings of a dtype its result may be away from float64


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    widths: tuple[int, ...] = (DIM,)  # of the input maps; the second is half as high and wide, the third a quarter
    listed: slice | None = None  # which inputs the layer takes as one list
    maps: bool = True  # False: takes (b, l, d)
    mixes_batch: bool = False

    def inputs(self, b: int, h: int, w: int, seed: int = 0) -> list[Tensor]:
        if not self.maps:
            return [noise(b, h * w, self.widths[0], seed=seed)]
        sizes = [(max(1, h >> i), max(1, w >> i)) for i in range(len(self.widths))]
        return [noise(b, c, *size, seed=seed + i) for i, (c, size) in enumerate(zip(self.widths, sizes, strict=True))]

    def run(self, layer: nn.Module, inputs: list[Tensor]) -> Tensor:
        if self.listed is None:
            return layer(*inputs)
        return layer(*inputs[: self.listed.start], inputs[self.listed])


def klff(gate: str) -> Case:
    return Case(lambda: KLFF(DIM, (16, 32), gate=gate), (DIM, 16, 32), slice(1, 3), mixes_batch=gate == "tensor")


RECIPES: dict[type, dict[str, Case]] = {
    Mamba: {"": Case(lambda: Mamba(DIM), maps=False)},
    BidirectionalMamba: {"": Case(lambda: BidirectionalMamba(DIM, layer_scale=0.5), maps=False)},
    SS2D: {
        "": Case(lambda: SS2D(DIM)),
        "cascade": Case(lambda: SS2D(DIM, paths="cascade2d", gate="none", out_norm="cnorm", out_act=True)),
        "softmax": Case(lambda: SS2D(DIM, paths="bidi", gate="linear", out_norm="softmax", bias=True)),
    },
    CAB: {"": Case(lambda: CAB(DIM)), "light": Case(lambda: CAB(DIM, light=True))},
    KLFF: {gate: klff(gate) for gate in ("sample", "tensor", "pixel")},
    AFF: {"": Case(lambda: AFF((DIM, 16, 32), 16), (DIM, 16, 32), slice(0, 3))},
    SliceScan2D: {
        "": Case(lambda: SliceScan2D(DIM)),
        "own weights both ways": Case(lambda: SliceScan2D(DIM, bidirectional=True, shared=False)),
    },
    InterScan: {
        "": Case(lambda: InterScan(DIM)),
        "compressed": Case(lambda: InterScan(DIM, compression=0.4)),
    },
    InterVSSM: {
        "": Case(lambda: InterVSSM(DIM)),
        "compressed": Case(lambda: InterVSSM(DIM, compression=0.4)),
    },
    LocalMean2d: {"": Case(LocalMean2d), "windows": Case(lambda: LocalMean2d(3))},
    SimpleChannelAttention: {
        "": Case(lambda: SimpleChannelAttention(DIM)),
        "windows": Case(lambda: SimpleChannelAttention(DIM, window=3)),
    },
    SimpleGate: {"": Case(SimpleGate)},
}
OF_ANY_WIDTH = (LocalMean2d, SimpleGate)
LAYERS = [getattr(slicescan.layers, name) for name in slicescan.layers.__all__]
CASES = {
    f"{layer.__name__} {variant}".strip(): case
    for layer in LAYERS
    if inspect.isclass(layer)
    for variant, case in RECIPES.get(layer, {"": Case(lambda layer=layer: layer(DIM))}).items()
}

every_layer = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
few = settings(deadline=None, derandomize=True, max_examples=6)
sizes = {"b": st.integers(1, 2), "h": st.integers(1, 6), "w": st.integers(1, 6)}


def converted(inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [x.to(dtype) for x in inputs]


@every_layer
@few
@given(**sizes, channels_last=st.booleans())
def test_any_size_works_and_the_memory_order_is_kept(case, b, h, w, channels_last):
    order = torch.channels_last if channels_last and case.maps else torch.contiguous_format
    inputs = [x.contiguous(memory_format=order) for x in converted(case.inputs(b, h, w), torch.float32)]
    y = case.run(case.build(), inputs)
    assert y.isfinite().all()
    assert y.is_contiguous(memory_format=order)


@every_layer
def test_both_memory_orders_and_strided_views_give_one_result(case):
    layer, inputs = perturb(case.build()), case.inputs(2, 5, 7)
    want = case.run(layer, inputs)
    strided = [torch.stack([x, x], -1).flatten(-2)[..., ::2] for x in inputs]
    assert relative(case.run(layer, strided), want) < 1e-12
    if case.maps:
        channels_last = [x.contiguous(memory_format=torch.channels_last) for x in inputs]
        assert relative(case.run(layer, channels_last), want) < 1e-12


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_dtype_gives_its_own_and_stays_near_float64(case, dtype):
    layer, inputs = case.build().to(dtype), converted(case.inputs(2, 3, 5), dtype)
    got = case.run(layer, inputs)
    assert got.dtype == dtype
    want = case.run(layer.double(), converted(inputs, torch.float64))
    assert relative(got, want) < ROUNDINGS * torch.finfo(dtype).eps


@every_layer
@few
@given(h=sizes["h"], w=sizes["w"])
def test_an_image_does_not_depend_on_its_batch(case, h, w):
    layer, inputs = perturb(case.build()), case.inputs(2, h, w)
    want = case.run(layer, [x[1:] for x in inputs])
    for x in inputs:
        x[0] = float("nan")
    got = case.run(layer, inputs)[1:]
    assert got.isnan().all() if case.mixes_batch else relative(got, want) < 1e-12


@every_layer
def test_the_state_dict_makes_the_round_trip(case):
    inputs = case.inputs(1, 3, 5)
    layer, other = perturb(case.build()), case.build().double()
    other.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(case.run(layer, inputs), case.run(other, inputs))
    assert list(other.state_dict()) == list(layer.state_dict())


@every_layer
def test_a_compiled_layer_is_one_graph_and_agrees(case):
    torch.compiler.reset()
    layer, inputs = perturb(case.build()), [x.requires_grad_() for x in case.inputs(1, 3, 5)]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for run in (layer, compiled):
        y = case.run(run, inputs)
        results.append([y, *torch.autograd.grad(y.sum(), inputs)])
    for got, want in zip(*results, strict=True):
        assert relative(got, want) < 1e-12


@every_layer
def test_autocast_trains_float32_weights(case):
    layer, inputs = case.build(), converted(case.inputs(2, 3, 5), torch.float32)
    inputs = [x.requires_grad_() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        y = case.run(layer, inputs)
    assert relative(y, case.run(layer, inputs)) < ROUNDINGS * torch.finfo(torch.bfloat16).eps
    y.float().square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.dtype == torch.float32, name


@every_layer
def test_two_runs_give_equal_bits(case):
    layer, inputs = case.build(), converted(case.inputs(2, 5, 6), torch.float32)
    assert torch.equal(case.run(layer, inputs), case.run(layer, inputs))


@every_layer
def test_the_representation_names_the_layer(case):
    layer = case.build()
    assert repr(layer).startswith(type(layer).__name__ + "(")
    assert layer.extra_repr() or len(list(layer.children())) > 0


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if inspect.isclass(layer)], ids=lambda c: c.__name__)
def test_options_of_a_layer_are_keywords_and_its_docstring_says_the_rest(layer):
    _, *options = inspect.signature(layer.__init__).parameters.values()
    if layer not in OF_ANY_WIDTH:
        assert options.pop(0).name in ("dim", "dims")
    positional = {p.name for p in options if p.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD}
    assert positional <= {"other_dims", "out_dim", "window"}
    for section in ("Args:",) * (layer is not SimpleGate) + ("Shape:", "Source:", "Example:"):
        assert section in (inspect.getdoc(layer) or ""), section
