"""Products of pixels' channels with a matrix, by panels of a few pixels and outputs whose sums stay in registers.

Compilers do not find this by themselves, so a panel is written in the compiler's own words, of vectors.
"""

from collections.abc import Callable

from llvmlite import ir
from numba import njit, types  # noqa: TID253

from slicescan.ops.backends.cpu.lanes import EXACT, intrinsic

LANES, VECTORS, PIXELS = 8, 3, 4
"""Numbers of a vector, and how many vectors of outputs and pixels a panel has: twelve sums, for sixteen registers."""

OUTPUTS = LANES * VECTORS
"""Outputs of a panel, at most."""


def _panel(pixels: int, vectors: int) -> Callable:
    """What computes a panel: ``y[p, o] = matrix[0, o] + sum over i of x[p, i] matrix[1 + i, o]``.

    Its arguments are each array with the place where the panel begins, steps from pixel to pixel, and how many outputs
    are stored. Vectors are computed whole.
    """
    number, index, lane = ir.FloatType(), ir.IntType(64), ir.IntType(32)
    vector = ir.VectorType(number, LANES)

    def generate(context, builder, signature, arguments):
        y, x, matrix = (context.make_array(signature.args[k])(context, builder, arguments[k]).data for k in (0, 3, 6))
        to, y_step, at, x_step, begin, depth, count = (arguments[k] for k in (1, 2, 4, 5, 7, 8, 9))

        def place(array, offset):
            return builder.bitcast(builder.gep(array, [offset]), vector.as_pointer())

        def row(offset):
            return [builder.load(place(matrix, builder.add(offset, index(LANES * v))), align=4) for v in range(vectors)]

        def everywhere(value):
            first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, lane(0))
            return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(lane, LANES), None))

        kind = ir.FunctionType(vector, [vector] * 3)
        multiply_and_add = builder.module.declare_intrinsic(f"llvm.fmuladd.v{LANES}f32", (), kind)
        starts = [builder.add(at, builder.mul(x_step, index(p))) for p in range(pixels)]
        bias, before = row(begin), builder.block
        loop, behind = builder.append_basic_block(), builder.append_basic_block()
        builder.branch(loop)

        builder.position_at_end(loop)
        i = builder.phi(index)
        sums = [[builder.phi(vector) for _ in range(vectors)] for _ in range(pixels)]
        following = builder.add(i, index(1))
        weights = row(builder.add(begin, builder.mul(following, index(LANES * vectors))))
        i.add_incoming(index(0), before)
        i.add_incoming(following, loop)
        added = []
        for start, old in zip(starts, sums, strict=True):
            value = everywhere(builder.load(builder.gep(x, [builder.add(start, i)])))
            new = [builder.call(multiply_and_add, [value, *two]) for two in zip(weights, old, strict=True)]
            for phi, first, last in zip(old, bias, new, strict=True):
                phi.add_incoming(first, before)
                phi.add_incoming(last, loop)
            added.append(new)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, behind)

        builder.position_at_end(behind)
        targets = [
            [place(y, builder.add(to, builder.add(builder.mul(y_step, index(p)), index(LANES * v))))
             for v in range(vectors)]
            for p in range(pixels)
        ]  # fmt: skip
        for some, new in zip(targets, added, strict=True):
            for target, value in zip(some[:-1], new[:-1], strict=True):
                builder.store(value, target, align=4)
        ends = [(some[-1], new[-1]) for some, new in zip(targets, added, strict=True)]
        with builder.if_else(builder.icmp_signed("==", count, index(LANES * vectors))) as (whole, part):
            with whole:
                for target, value in ends:
                    builder.store(value, target, align=4)
            with part:
                for j in range(LANES - 1):
                    with builder.if_then(builder.icmp_signed(">", count, index(LANES * (vectors - 1) + j))):
                        for target, value in ends:
                            one = builder.gep(builder.bitcast(target, number.as_pointer()), [index(j)])
                            builder.store(builder.extract_element(value, lane(j)), one)
        return context.get_dummy_value()

    def panel(context, y, to, y_step, x, at, x_step, matrix, begin, depth, count):
        i = types.int64
        return types.none(y, i, i, x, i, i, matrix, i, i, i), generate

    return intrinsic(panel)


_four_by_three, _four_by_two, _four_by_one = (_panel(PIXELS, vectors) for vectors in (3, 2, 1))
_one_by_three, _one_by_two, _one_by_one = (_panel(1, vectors) for vectors in (3, 2, 1))


@njit(**EXACT)
def packed_size(outputs, depth):
    """Numbers of a packed matrix."""
    return (outputs + LANES - 1) // LANES * LANES * (depth + 1)


@njit(**EXACT)
def pack(packed, weight, bias, depth):
    """Lay a matrix, ``(outputs, depth)`` in one line, as panels read it: outputs of a panel together, its bias first.

    ``bias`` may be empty. Whole vectors are filled up with zeros.
    """
    outputs, at = weight.size // depth, 0
    for first in range(0, outputs, OUTPUTS):
        count = min(outputs - first, OUTPUTS)
        wide = (count + LANES - 1) // LANES * LANES
        for j in range(wide):
            packed[at + j] = bias[first + j] if j < count and bias.size else 0
            for i in range(depth):
                packed[at + (1 + i) * wide + j] = weight[(first + j) * depth + i] if j < count else 0
        at += wide * (depth + 1)


@njit(**EXACT)
def multiply(y, to, y_step, x, at, x_step, packed, pixels, outputs, depth):
    """Products of pixels with a matrix.

    Args:
        y: To be written, from its number ``to`` on.
        to: See there.
        y_step: Numbers from a pixel of ``y`` to the next.
        x: Numbers of the pixels, from ``at`` on.
        at: See there.
        x_step: Numbers from a pixel of ``x`` to the next.
        packed: The matrix, from :func:`pack`.
        pixels: How many.
        outputs: Rows of the matrix.
        depth: Columns of the matrix, 1 or more.
    """
    begin = 0
    for first in range(0, outputs, OUTPUTS):
        count = min(outputs - first, OUTPUTS)
        vectors = (count + LANES - 1) // LANES
        many = pixels // PIXELS * PIXELS
        for pixel in range(0, many, PIXELS):
            target, source = to + pixel * y_step + first, at + pixel * x_step
            if vectors == 3:
                _four_by_three(y, target, y_step, x, source, x_step, packed, begin, depth, count)
            elif vectors == 2:
                _four_by_two(y, target, y_step, x, source, x_step, packed, begin, depth, count)
            else:
                _four_by_one(y, target, y_step, x, source, x_step, packed, begin, depth, count)
        for pixel in range(many, pixels):
            target, source = to + pixel * y_step + first, at + pixel * x_step
            if vectors == 3:
                _one_by_three(y, target, y_step, x, source, x_step, packed, begin, depth, count)
            elif vectors == 2:
                _one_by_two(y, target, y_step, x, source, x_step, packed, begin, depth, count)
            else:
                _one_by_one(y, target, y_step, x, source, x_step, packed, begin, depth, count)
        begin += vectors * LANES * (depth + 1)
