"""Facts about scans that fail if the idea is wrong: each for any shape, layout and direction, on every backend."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from slicescan.ops import selective_scan, slice_scan
from tests.parity import available
from tests.strategies import Scan, scans

MAPS = ("u", "delta", "B", "C", "z")
backends = pytest.mark.parametrize("backend", available("cpu"))


def change(arguments: dict, function, names: tuple[str, ...] = MAPS) -> dict:
    return arguments | {name: function(arguments[name]) for name in names if name in arguments}


def agree(one: Tensor, two: Tensor) -> None:
    """Equal up to a few roundings of float64: both compute the same numbers, in an order of their own."""
    torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)


def noise_from(x: Tensor, dim: int, start: int) -> Tensor:
    """``x`` with other numbers from ``start`` on."""
    other = x.clone()
    other.narrow(dim, start, x.shape[dim] - start).add_(1.5)
    return other


@backends
@given(scan=scans(carry=False, axis="w", dtype=torch.float64))
def test_a_row_scan_of_the_transposed_map_is_the_transposed_column_scan(backend, scan):
    arguments = scan.arguments()
    rows = slice_scan(**arguments, return_last_state=True, backend=backend)
    turned = change(arguments, lambda x: x.transpose(1, 2)) | {"axis": "h"}
    columns = slice_scan(**turned, return_last_state=True, backend=backend)
    agree(columns[0].transpose(1, 2), rows[0])
    agree(columns[1], rows[1])


@backends
@given(scan=scans(carry=False, axis="w", dtype=torch.float64), data=st.data())
def test_changing_a_row_changes_no_other_row(backend, scan, data):
    scan = scan.replace(h=max(scan.h, 2))
    row = data.draw(st.integers(0, scan.h - 1))
    arguments = change(scan.arguments(), torch.clone)  # rows that share memory cannot differ

    def disturbed(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, row] += 1.5
        return x

    before = slice_scan(**arguments, return_last_state=True, backend=backend)
    after = slice_scan(**change(arguments, disturbed), return_last_state=True, backend=backend)
    others = [i for i in range(scan.h) if i != row]
    for one, two in zip(before, after, strict=True):
        assert torch.equal(one[:, others], two[:, others])
    assert scan.b == 0 or scan.w == 0 or not torch.equal(before[0][:, row], after[0][:, row])


@backends
@given(scan=scans(dtype=torch.float64), data=st.data())
def test_no_output_knows_what_the_scan_has_yet_to_meet(backend, scan, data):
    scan = scan.replace(w=max(scan.w, 2), axis="w", carry=False)
    start = data.draw(st.integers(1, scan.w - 1))
    seen = slice(start, None) if scan.reverse else slice(0, start)

    def disturbed(x: Tensor) -> Tensor:
        return noise_from(x.flip(2), 2, scan.w - start).flip(2) if scan.reverse else noise_from(x, 2, start)

    arguments = change(scan.arguments(), torch.clone)
    before = slice_scan(**arguments, backend=backend)
    after = slice_scan(**change(arguments, disturbed), backend=backend)
    assert torch.equal(before[:, :, seen], after[:, :, seen])


@backends
@given(scan=scans(dtype=torch.float64, axis="w"), data=st.data())
def test_two_pieces_with_the_state_handed_over_are_one_scan(backend, scan, data):
    along = 1 if scan.carry else 2  # rows follow rows where the state runs on
    cut = data.draw(st.integers(0, scan.h if scan.carry else scan.w))
    arguments = scan.arguments()
    whole, last = slice_scan(**arguments, return_last_state=True, backend=backend)
    pieces = [
        change(arguments, lambda x: x.narrow(along, 0, cut)),
        change(arguments, lambda x: x.narrow(along, cut, x.shape[along] - cut)),
    ]
    if scan.reverse:
        pieces.reverse()
    first, state = slice_scan(**pieces[0], return_last_state=True, backend=backend)
    second, state = slice_scan(**(pieces[1] | {"initial_state": state}), return_last_state=True, backend=backend)
    halves = [second, first] if scan.reverse else [first, second]
    agree(torch.cat(halves, along), whole)
    agree(state, last)


@backends
@given(scan=scans(carry=True, dtype=torch.float64))
def test_a_state_that_runs_on_scans_the_flattened_map(backend, scan):
    arguments = scan.arguments()
    y, last = slice_scan(**arguments, return_last_state=True, backend=backend)
    sequences = {name: x for name, x in arguments.items() if name not in ("axis", "carry")}

    def flattened(x: Tensor) -> Tensor:
        return (x.transpose(1, 2) if scan.axis == "h" else x).flatten(1, 2)

    want, state = selective_scan(**change(sequences, flattened), return_last_state=True, backend=backend)
    agree(flattened(y), want)
    agree(last, state)


@backends
@given(scan=scans(dtype=torch.float64))
def test_a_scan_is_linear_in_its_input_and_state(backend, scan):
    one, two = scan.arguments(), scan.replace(seed=scan.seed + 1).arguments()

    def run(**changed: Tensor) -> Tensor:
        kept = {name: x for name, x in changed.items() if name in one}
        return slice_scan(**(one | kept), backend=backend)

    start, other = one.get("initial_state", torch.tensor(0.0)), two.get("initial_state", torch.tensor(0.0))
    both = run(u=2 * one["u"] - 3 * two["u"], initial_state=2 * start - 3 * other)
    agree(both, 2 * run(u=one["u"], initial_state=start) - 3 * run(u=two["u"], initial_state=other))


@backends
@given(scan=scans(dtype=torch.float64, without=("z", "delta_bias"), delta_softplus=False))
def test_a_step_of_zero_leaves_the_skip_and_the_state(backend, scan):
    arguments = scan.replace(without=("z", "delta_bias", "initial_state")).arguments()
    arguments["delta"] = torch.zeros_like(arguments["u"])
    y = slice_scan(**arguments, backend=backend)
    assert torch.equal(y, arguments["D"] * arguments["u"])
    arguments = scan.arguments() | {"delta": arguments["delta"]}
    _, last = slice_scan(**arguments, return_last_state=True, backend=backend)
    if "initial_state" in arguments:
        assert torch.equal(last, arguments["initial_state"])


@backends
def test_constant_parameters_are_a_convolution(backend):
    length, d, n = 12, 3, 4
    drawn = Scan(b=2, h=3, w=length, d=d, n=n, dtype=torch.float64, delta_softplus=False).arguments()
    u, A, B, C, step = drawn["u"], drawn["A"], drawn["B"][0, 0, 0], drawn["C"][0, 0, 0], drawn["delta"][0, 0, 0]
    maps = {"delta": step.expand_as(u), "B": B.expand(2, 3, length, n), "C": C.expand(2, 3, length, n)}
    y = slice_scan(u=u, A=A, **maps, axis="w", backend=backend)
    age = torch.arange(length, dtype=torch.float64)
    kernel = ((age[:, None, None] * step[:, None] * A).exp() * step[:, None] * B * C).sum(-1)  # l d
    padded = F.pad(u.permute(0, 1, 3, 2).flatten(0, 1), (length - 1, 0))
    want = F.conv1d(padded, kernel.flip(0).t()[:, None], groups=d).unflatten(0, (2, 3)).transpose(2, 3)
    agree(y, want)


@backends
@given(scan=scans(dtype=torch.float64))
def test_a_backward_scan_is_a_forward_scan_of_the_flipped_map(backend, scan):
    flipped_dims = (1, 2) if scan.carry else (2,) if scan.axis == "w" else (1,)
    arguments = scan.arguments()
    y, last = slice_scan(**arguments, return_last_state=True, backend=backend)
    mirrored = change(arguments, lambda x: x.flip(flipped_dims)) | {"reverse": not scan.reverse}
    want, state = slice_scan(**mirrored, return_last_state=True, backend=backend)
    agree(y, want.flip(flipped_dims))
    agree(last, state)


@backends
@pytest.mark.parametrize("axis", ["h", "w"])
def test_an_image_does_not_depend_on_its_batch(backend, axis):
    scan = Scan(b=3, h=5, w=4, d=24, n=16, axis=axis)
    arguments = scan.arguments()
    whole = slice_scan(**arguments, return_last_state=True, backend=backend)
    for i in range(scan.b):
        alone = change(arguments, lambda x, i=i: x[i : i + 1], (*MAPS, "initial_state"))
        for all_images, image in zip(whole, slice_scan(**alone, return_last_state=True, backend=backend), strict=True):
            assert torch.equal(all_images[i : i + 1], image)


@backends
@given(scan=scans(dtype=torch.float64))
def test_groups_of_channels_are_scans_of_their_own(backend, scan):
    scan = scan.replace(groups=3, d=6)
    arguments = scan.arguments()
    y, last = slice_scan(**arguments, return_last_state=True, backend=backend)
    for g, channels in enumerate((slice(0, 2), slice(2, 4), slice(4, 6))):
        alone = change(arguments, lambda x, c=channels: x[..., c], ("u", "delta", "z", "D", "delta_bias"))
        alone = change(alone, lambda x, c=channels: x[..., c, :], ("A", "initial_state"))
        alone = change(alone, lambda x, g=g: x[..., g, :], ("B", "C"))
        one, state = slice_scan(**alone, return_last_state=True, backend=backend)
        agree(y[..., channels], one)
        agree(last[..., channels, :], state)
