"""The scan in ONNX: one ``Scan`` node along rows or columns of the map, whatever their length."""

from collections.abc import Sequence
from typing import Any

from onnxscript import FLOAT, graph, script, values
from onnxscript import opset18 as op


@script(values.Opset("slicescan", 1), default_opset=op)
def recurrence(state, rates, delta, entering, B, C, input_axes: Sequence[int], input_directions: Sequence[int],
               output_axes: Sequence[int], output_directions: Sequence[int]) -> tuple[FLOAT, FLOAT]:  # fmt: skip
    """The state after the last step, and what is read out at each."""

    @graph()
    def step(state_before, delta_t, entering_t, B_t, C_t):
        decay = op.Exp(op.Unsqueeze(delta_t, [-1]) * rates)
        state_after = decay * state_before + op.Unsqueeze(entering_t, [-1]) * op.Unsqueeze(B_t, [-2])
        y_t = op.ReduceSum(state_after * op.Unsqueeze(C_t, [-2]), [-1], keepdims=0)
        return state_after, y_t

    last, y = op.Scan(
        state, delta, entering, B, C, body=step, num_scan_inputs=4, scan_input_axes=input_axes,
        scan_input_directions=input_directions, scan_output_axes=output_axes, scan_output_directions=output_directions,
    )  # fmt: skip
    return last, y


def translate(
    u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, delta_bias: Any, initial_state: Any, delta_weight: Any,
    axis: str, reverse: bool, carry: bool, delta_softplus: bool, backend: str, save: bool,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """Write ``slicescan::slice_scan``, whose arguments these are; what it would save for a backward pass is left out.

    Channels are seen as ``g`` groups of ``k``: ``B`` and ``C`` belong to a group.
    """
    (d, n), groups = A.shape, B.shape[3]
    if delta_weight is not None:
        delta = op.MatMul(delta, op.Transpose(delta_weight, perm=[1, 0]))
    turned = carry and axis == "h"  # the slices that are laid end to end must be neighbours
    if turned:
        u, delta, z = (None if x is None else op.Transpose(x, perm=[0, 2, 1, 3]) for x in (u, delta, z))
        B, C = (op.Transpose(x, perm=[0, 2, 1, 3, 4]) for x in (B, C))
        axis = "w"
    shape = op.Shape(u)
    batch, rows, columns = (op.Shape(u, start=i, end=i + 1) for i in range(3))
    step = delta if delta_bias is None else op.Add(delta, delta_bias)
    step = op.Softplus(step) if delta_softplus else step
    maps = [step, op.Mul(step, u), B, C]
    slices, along = (rows, 2) if axis == "w" else (columns, 1)
    if carry:
        slices, outer = op.Constant(value_ints=[1]), op.Concat(batch, op.Constant(value_ints=[1, -1]), axis=0)
    else:
        outer = op.Shape(u, start=0, end=3)
    sizes = [[groups, d // groups], [groups, d // groups], [groups, n], [groups, n]]
    maps = [
        op.Reshape(x, op.Concat(outer, op.Constant(value_ints=size), axis=0))
        for x, size in zip(maps, sizes, strict=True)
    ]
    inner = op.Constant(value_ints=[groups, d // groups, n])
    states = op.Concat(batch, slices, inner, axis=0)
    if initial_state is None:
        first = op.Expand(op.CastLike(op.Constant(value_float=0.0), A), states)
    else:
        first = op.Reshape(initial_state, states)
    last, y = recurrence(
        first,
        op.Reshape(A, inner),
        *maps,
        input_axes=[along] * 4,
        input_directions=[int(reverse)] * 4,
        output_axes=[along],
        output_directions=[int(reverse)],
    )
    y = op.Reshape(y, shape)
    if D is not None:
        y = op.Add(y, op.Mul(D, u))
    if z is not None:
        y = op.Mul(y, op.Mul(z, op.Sigmoid(z)))
    last = op.Reshape(last, op.Concat(batch, slices, op.Constant(value_ints=[d, n]), axis=0))
    return op.Transpose(y, perm=[0, 2, 1, 3]) if turned else y, last, op.Identity(last)


def log_sigmoid(x: Any) -> Any:
    """Write ``aten::log_sigmoid`` as ``-softplus(-x)``: a sigmoid rounds to 0 long before its logarithm is lost."""
    return op.Neg(op.Softplus(op.Neg(x)))
