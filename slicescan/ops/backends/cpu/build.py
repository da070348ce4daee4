"""What every kernel of threads is made with: compiled at first use, kept on disk, claiming work from a counter."""

import hashlib
import inspect
from collections.abc import Callable
from types import ModuleType

import numpy as np
from numba import njit, types  # noqa: TID253

from slicescan.ops.backends.cpu.lanes import EXACT, intrinsic


@intrinsic
def claim(context, counter):
    """The next number of a counter that threads share."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", data, context.get_constant(types.int64, 1), "monotonic")

    return types.int64(counter), generate


@intrinsic
def arrays_are_apart(context):
    """Promise that no two arrays of floats among the arguments of the function around overlap.

    So the compiler need not test for it before each loop over channels.
    """

    def generate(context, builder, signature, arguments):
        floats = [context.get_data_type(x).as_pointer() for x in (types.float32, types.float64)]
        for argument in builder.function.args:
            if argument.type in floats:
                argument.add_attribute("noalias")
        return context.get_dummy_value()

    return types.none(), generate


@njit(**EXACT)
def room(shape, like):
    """An array of a shape, not filled, of the dtype of another."""
    return np.empty(shape, like.dtype)


def entry(kernel: Callable[..., None]) -> Callable[..., None]:
    """Compile a kernel at first use and keep it on disk, if there is a folder to write to.

    Numba compiles anew what it finds on disk if the kernel's own file has changed, or what the kernel encloses: so it
    encloses the :func:`fingerprint` of the others.
    """
    try:
        return njit(nogil=True, cache=True, error_model="numpy")(kernel)
    except RuntimeError:
        return njit(nogil=True, error_model="numpy")(kernel)


def fingerprint(*modules: ModuleType) -> str:
    """What changes when the source of a module does."""
    try:
        text = "".join(inspect.getsource(module) for module in modules)
    except OSError:  # none come with this application, and nothing can change
        text = ""
    return hashlib.sha256(text.encode()).hexdigest()
