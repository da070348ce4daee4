"""Threads that run a kernel together; numba's own threading layers clash with OpenMP and do not survive a fork."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

_SMALLEST = 1 << 20  # updates of a state worth a thread

_pool: ThreadPoolExecutor | None = None


def share(kernel: Callable[..., None], arguments: tuple[Any, ...], *, pieces: int, updates: int, alive: Any) -> None:
    """Run a kernel in as many threads as PyTorch may use and the work is worth; this one takes part.

    Args:
        kernel: Claims pieces of work from its first argument, a counter, without holding Python's lock.
        arguments: The others of the kernel.
        pieces: How many there are to claim.
        updates: A measure of all the work.
        alive: What must not be freed while any thread runs, even if this one is interrupted.
    """
    counter = np.zeros(1, np.int64)
    helpers = min(torch.get_num_threads(), pieces, 1 + updates // _SMALLEST) - 1
    futures = [future for _ in range(helpers) if (future := _start(kernel, counter, arguments, alive))]
    kernel(counter, *arguments)
    for future in futures:
        if not future.cancel():  # one that never started is not missed: nothing is left to claim
            future.result()


def _start(*work: Any) -> Future | None:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="slicescan")
    try:
        return _pool.submit(_help, *work)
    except RuntimeError:  # the interpreter is going down
        return None


def _help(kernel: Callable[..., None], counter: Any, arguments: tuple[Any, ...], alive: Any) -> None:
    kernel(counter, *arguments)


def _forget() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
