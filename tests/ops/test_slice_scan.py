"""What slice_scan and selective_scan take, give back and refuse."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from slicescan.ops import selective_scan, slice_scan
from tests.parity import available
from tests.strategies import Scan

WRONG_SHAPES = {
    "u": (torch.zeros(3, 5, 6), r"u must be \(b, h, w, d\) = \(b, h, w, d\), got \(3, 5, 6\)"),
    "delta": (torch.zeros(2, 3, 5, 7), r"delta must be \(b, h, w, d\) = \(2, 3, 5, 6\), got \(2, 3, 5, 7\)"),
    "A": (torch.zeros(4, 6), r"A must be \(d, n\) = \(6, n\), got \(4, 6\)"),
    "B": (torch.zeros(2, 3, 5, 5), r"B must be \(b, h, w, n\) = \(2, 3, 5, 4\), got \(2, 3, 5, 5\)"),
    "C": (torch.zeros(2, 3, 5, 1, 4), r"C must be \(b, h, w, n\) = \(2, 3, 5, 4\), got \(2, 3, 5, 1, 4\)"),
    "D": (torch.zeros(5), r"D must be \(d,\) = \(6,\), got \(5,\)"),
    "z": (torch.zeros(2, 3, 6, 6), r"z must be \(b, h, w, d\) = \(2, 3, 5, 6\), got \(2, 3, 6, 6\)"),
    "delta_bias": (torch.zeros(()), r"delta_bias must be \(d,\) = \(6,\), got \(\)"),
    "initial_state": (
        torch.zeros(2, 5, 6, 4),
        r"initial_state must be \(b, h, d, n\) = \(2, 3, 6, 4\), got \(2, 5, 6, 4\)",
    ),
}


@pytest.mark.parametrize("name", WRONG_SHAPES)
def test_an_argument_of_the_wrong_shape_is_named_with_the_right_one(name):
    wrong, message = WRONG_SHAPES[name]
    with pytest.raises(ValueError, match="^slice_scan: " + message):
        slice_scan(**(Scan().arguments() | {name: wrong}))


def test_a_state_has_the_shape_that_carry_and_the_axis_give_it():
    arguments = Scan().arguments()
    with pytest.raises(ValueError, match=r"initial_state must be \(b, d, n\) = \(2, 6, 4\), got \(2, 3, 6, 4\)"):
        slice_scan(**(arguments | {"carry": True}))
    with pytest.raises(ValueError, match=r"initial_state must be \(b, w, d, n\) = \(2, 5, 6, 4\), got \(2, 3, 6, 4\)"):
        slice_scan(**(arguments | {"axis": "h"}))


def test_steps_of_low_rank_are_as_many_as_their_weight_has_columns():
    arguments = Scan(rank=2).arguments()
    for wrong in (torch.zeros(6, 3), torch.zeros(5, 2), torch.zeros(6)):
        with pytest.raises(ValueError, match=r"^slice_scan: delta_weight must be \(d, r\) = \(6, 2\), got "):
            slice_scan(**(arguments | {"delta_weight": wrong}))
    with pytest.raises(ValueError, match=r"delta must be \(b, h, w, r\) = \(2, 3, 5, r\), got \(2, 3, 4, 2\)"):
        slice_scan(**(arguments | {"delta": arguments["delta"][:, :, 1:]}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", available("cpu"))
def test_steps_of_low_rank_are_those_of_a_linear_layer(backend, dtype):
    arguments = Scan(rank=3, layout="cut", dtype=dtype).arguments()
    steps = F.linear(arguments["delta"], arguments["delta_weight"].to(dtype))
    found = slice_scan(**arguments, return_last_state=True, backend=backend)
    separate = {name: x for name, x in arguments.items() if name != "delta_weight"} | {"delta": steps}
    expected = slice_scan(**separate, return_last_state=True, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_groups_must_divide_the_channels():
    mix = torch.zeros(2, 3, 5, 4, 4)
    with pytest.raises(ValueError, match="B has 4 groups, which do not divide the 6 channels of u"):
        slice_scan(**(Scan().arguments() | {"B": mix, "C": mix}))


def test_an_unknown_axis_is_refused():
    with pytest.raises(ValueError, match="axis must be 'h' or 'w', got 'x'"):
        slice_scan(**(Scan().arguments() | {"axis": "x"}))


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "D", "initial_state"])
def test_other_numbers_and_other_devices_are_refused(name):
    arguments = Scan().arguments()
    for dtype in (torch.int64, torch.complex64, torch.bool):
        with pytest.raises(ValueError, match=f"{name} must be float16, bfloat16, float32 or float64, got {dtype}"):
            slice_scan(**(arguments | {name: arguments[name].to(dtype)}))
    other = "must be on meta like u, got cpu" if name == "u" else f"{name} must be on cpu like u, got meta"
    with pytest.raises(ValueError, match=other):
        slice_scan(**(arguments | {name: arguments[name].to("meta")}))


def sequences(scan: Scan) -> dict:
    arguments = scan.replace(h=1, carry=False, axis="w").arguments()
    kept = {name: x for name, x in arguments.items() if name not in ("axis", "carry")}
    return {name: x[:, 0] if isinstance(x, Tensor) and x.ndim > 3 else x for name, x in kept.items()}


def test_sequences_are_checked_like_maps():
    arguments = sequences(Scan())
    with pytest.raises(ValueError, match=r"^selective_scan: u must be \(b, l, d\) = \(b, l, d\), got \(2, 1, 5, 6\)"):
        selective_scan(**(arguments | {"u": arguments["u"][:, None]}))
    with pytest.raises(ValueError, match=r"C must be \(b, l, n\) = \(2, 5, 4\), got \(2, 4, 4\)"):
        selective_scan(**(arguments | {"C": arguments["C"][:, 1:]}))
    with pytest.raises(ValueError, match=r"initial_state must be \(b, d, n\) = \(2, 6, 4\), got \(1, 6, 4\)"):
        selective_scan(**(arguments | {"initial_state": arguments["initial_state"][:1]}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["dense", "planes", "turned"])
def test_the_output_has_the_dtype_and_memory_order_of_the_input(dtype, layout):
    scan = Scan(dtype=dtype, layout=layout)
    arguments = scan.arguments()
    for backend in ("torch", "reference"):
        y, last = slice_scan(**arguments, return_last_state=True, backend=backend)
        assert (y.dtype, y.shape, y.stride()) == (dtype, arguments["u"].shape, arguments["u"].stride())
        assert last.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    row = sequences(scan)
    assert selective_scan(**row).stride() == row["u"].stride()


def test_a_channels_last_image_gives_a_contiguous_map():
    image = torch.randn(2, 6, 3, 5).to(memory_format=torch.channels_last)
    assert slice_scan(**(Scan().arguments() | {"u": image.permute(0, 2, 3, 1)})).is_contiguous()


def test_mixed_dtypes_are_promoted_and_the_output_is_not():
    single = Scan(dtype=torch.bfloat16).arguments() | {"delta": Scan().arguments()["delta"]}
    y, last = slice_scan(**single, return_last_state=True)
    wide = {name: x.float() if isinstance(x, Tensor) else x for name, x in single.items()}
    want, state = slice_scan(**wide, return_last_state=True)
    assert y.dtype == torch.bfloat16 and torch.equal(y, want.bfloat16()) and torch.equal(last, state)
    halves = slice_scan(**(single | {"A": single["A"].half(), "D": single["D"].double()}))
    assert halves.dtype == torch.bfloat16
    double = slice_scan(**(single | {"z": single["z"].double()}), return_last_state=True)
    assert double[0].dtype == torch.bfloat16 and double[1].dtype == torch.float64


def test_gradients_have_the_dtypes_of_their_arguments():
    mixed = Scan(dtype=torch.bfloat16).arguments()
    mixed |= {"A": mixed["A"].bfloat16(), "D": mixed["D"].double(), "delta": mixed["delta"].float()}
    tensors = {name: x.requires_grad_() for name, x in mixed.items() if isinstance(x, Tensor)}
    slice_scan(**mixed).sum().backward()
    assert all(x.grad.dtype == x.dtype for x in tensors.values())


def test_the_documented_forms_run():
    u, mix, grouped = torch.rand(1, 2, 3, 4), torch.rand(1, 2, 3, 5), torch.rand(1, 2, 3, 2, 5)
    A = -torch.rand(4, 5)
    assert slice_scan(u, u, A, mix, mix, axis="w").shape == u.shape
    assert slice_scan(u, u, A, grouped, grouped, torch.ones(4), u, torch.ones(4), axis="h").shape == u.shape
    assert slice_scan(u, u, A, mix, mix, axis="w", return_last_state=True)[1].shape == (1, 2, 4, 5)
    assert slice_scan(u, u, A, mix, mix, axis="h", return_last_state=True)[1].shape == (1, 3, 4, 5)
    assert slice_scan(u, u, A, mix, mix, axis="h", carry=True, return_last_state=True)[1].shape == (1, 4, 5)
    y, last = selective_scan(u[:, 0], u[:, 0], A, grouped[:, 0], grouped[:, 0], return_last_state=True)
    assert y.shape == (1, 3, 4) and last.shape == (1, 4, 5)
