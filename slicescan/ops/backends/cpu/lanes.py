"""Numbers of a lane: elementary functions that compilers can turn into vectors, and short floats by their bits."""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, types  # noqa: TID253

EXACT: dict[str, Any] = {
    "error_model": "numpy",
    "fastmath": {"contract", "nsz"},
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
"""How functions are compiled: a product and a sum may become one operation, division by zero raises nothing, and only
kernels call them."""

SUMS: dict[str, Any] = {**EXACT, "fastmath": {"contract", "nsz", "reassoc"}}
"""The same where sums over channels may go by vectors."""

intrinsic: Any = extending.intrinsic
"""Makes a function of an instruction that Python has no words for; callers leave out its ``context``."""


def _bitcast(context, builder, signature, arguments):
    return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))


@intrinsic
def _bits(context, x):
    return types.uint32(x), _bitcast


@intrinsic
def _float(context, x):
    return types.float32(x), _bitcast


@intrinsic
def _times_power(context, x, shifted):
    """``x`` times 2 to the integer that the last bits of ``shifted`` are, by adding it to the exponent of ``x``."""
    single = x == types.float32

    def generate(context, builder, signature, arguments):
        integer = context.get_value_type(types.int32 if single else types.int64)
        number, shifted = (builder.bitcast(value, integer) for value in arguments)
        power = builder.shl(shifted, integer(23 if single else 52))
        return builder.bitcast(builder.add(number, power), context.get_value_type(x))

    return x(x, shifted), generate


def _polynomial(single: list[float], double: list[float]) -> Callable:
    """A polynomial of one variable, with its coefficients, lowest first, for either precision."""

    def evaluate(context, x):
        def generate(context, builder, signature, arguments):
            kind = context.get_value_type(x)
            *rest, value = [kind(c) for c in (single if x == types.float32 else double)]
            for coefficient in reversed(rest):
                value = builder.fadd(builder.fmul(value, arguments[0]), coefficient)
            return value

        return x(x), generate

    return intrinsic(evaluate)


# Best in the relative error; the lowest coefficient of the first is 1 without error, so that slow decays are exact.
_exp2_of_fraction = _polynomial(  # from -1/2 to 1/2
    [1.0, 0.693147202868029451, 0.240226479120029221, 0.0555033244032650803, 0.00961843747736487362,
     0.00133988873227691303, 0.000153533526033549955],
    [1.0, 0.693147180559945326, 0.240226506959101313, 0.0555041086648200817, 0.0096181291075940928,
     0.00133335581467748981, 0.000154035304571501151, 1.52527334929392033e-5, 1.32154352617987332e-6,
     1.0178199618316703e-7, 7.07378700951155741e-9, 4.43476895152248527e-10],
)  # fmt: skip
_two_artanh_over = _polynomial(  # 2 artanh(s) / s, of the square of s, for s from 0 to 1/3
    [2.0, 0.666664162858453186, 0.400215272402599887, 0.280018051789707182, 0.280119874537012321],
    [2.0, 0.666666666666663097, 0.400000000001551157, 0.285714285481180486, 0.222222239536438686,
     0.181817444791599211, 0.153865483910582796, 0.133011213960988156, 0.121049448151211374, 0.0834497165513636438,
     0.170097568074587403],
)  # fmt: skip


@intrinsic
def _fused(context, x, y, z):
    """``x y + z``, rounded once where the machine can."""

    def generate(context, builder, signature, arguments):
        kind = context.get_value_type(x)
        name = f"llvm.fmuladd.{'f32' if x == types.float32 else 'f64'}"
        return builder.call(builder.module.declare_intrinsic(name, (), ir.FunctionType(kind, [kind] * 3)), arguments)

    return x(x, x, x), generate


def constants(x):
    """Zero, one, log2(e) in two parts, a summand that rounds to integers, and where to cut exponents of e.

    All of the type of ``x``: a number of another type would widen what it meets.
    """


@extending.overload(constants)
def _constants_of(x):
    log2_e = 1.44269504088896341
    if x == types.float32:
        high = np.float32(log2_e)
        numbers: tuple = (0, 1, high, log2_e - float(high), 1.5 * 2**23, -87.3, 88.3)
        values: tuple = tuple(np.float32(number) for number in numbers)
    else:
        numbers = (0, 1, log2_e, 2.03552737409310331e-17, 1.5 * 2**52, -708.3, 709.3)
        values = tuple(np.float64(number) for number in numbers)
    return lambda x: values


@njit(**EXACT)
def exp(x):
    """The exponential, between the least and the greatest normal number."""
    _, _, log2_e, rest, rounding, least, greatest = constants(x)
    x = least if x < least else x  # so written, what is not a number stays so
    x = greatest if x > greatest else x
    shifted = _fused(x, log2_e, rounding)
    fraction = _fused(x, rest, _fused(x, log2_e, rounding - shifted))
    return _times_power(_exp2_of_fraction(fraction), shifted)


@njit(**EXACT)
def sigmoid(x):
    """``1 / (1 + exp(-x))``."""
    _, one, _, _, _, _, _ = constants(x)
    return one / (one + exp(-x))


@njit(**EXACT)
def softplus(x):
    """``ln(1 + exp(x))``, as exact for small results as for large ones."""
    zero, one, _, _, _, _, _ = constants(x)
    e = exp(-abs(x))
    s = e / (one + one + e)
    return (x if x > zero else zero) + s * _two_artanh_over(s * s)  # ln(1 + e) = 2 artanh(e / (2 + e))


def widen(x):
    """A number of a map in the compute dtype; bfloat16 comes as int16, float16 as uint16."""


def narrow(x, dtype):
    """The inverse of :func:`widen`: to the nearest, ties to even."""


@extending.overload(widen)
def _widen_from(x):
    return {types.int16: _from_bfloat16, types.uint16: _from_float16}.get(x, lambda x: x)


@extending.overload(narrow)
def _narrow_to(x, dtype):
    return {types.int16: _to_bfloat16, types.uint16: _to_float16}.get(dtype.dtype, lambda x, dtype: x)


def _from_bfloat16(x):
    return _float(np.uint32(np.uint32(x) << 16))


def _to_bfloat16(x, dtype):
    bits = _bits(np.float32(x))
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.int16(0x7FC0 if x != x else rounded)


_TWO_TO_112, _HALF = np.float32(2.0**112), np.float32(0.5)


def _from_float16(x):
    size = (np.uint32(x) & 0x7FFF) << 13
    scaled = _bits(_float(np.uint32(size)) * _TWO_TO_112)
    special = size | 0x7F800000  # infinity, or not a number
    sign = (np.uint32(x) & 0x8000) << 16
    return _float(np.uint32((special if (x & 0x7C00) == 0x7C00 else scaled) | sign))


def _to_float16(x, dtype):
    bits = _bits(np.float32(x))
    size = np.uint32(bits & 0x7FFFFFFF)
    normal = (size - 0x37FFF001 + ((size >> 13) & 1)) >> 13
    half = _bits(_float(size) + _HALF) - 0x3F000000 if size < 0x38800000 else normal  # 2^-14: below, a sum rounds
    half = 0x7C00 if size >= 0x477FF000 else half
    half = 0x7E00 if size > 0x7F800000 else half
    return np.uint16(half | ((bits >> 16) & 0x8000))
