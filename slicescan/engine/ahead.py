"""Make the next batch while the network works on this one."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor

from slicescan.engine.processes import WHOLE, Part

Batch = tuple[Tensor, Tensor]

QUEUED = 2
"""Steps that a GPU may have before it: enough to be never idle, and few, so that the host knows how far it is."""


class Source(Protocol):
    """What makes batches: each depends on nothing but the source's settings and the number of the step."""

    device: torch.device

    def batch(self, step: int, part: Part = WHOLE) -> Batch:
        """Blurred and sharp, ``(b, 3, h, w)`` each, float32 in [0, 1]: the share of one process in the batch."""
        ...

    def size(self, step: int) -> int:
        """Items in the whole batch."""
        ...


def ahead(source: Source, first: int, last: int, part: Part = WHOLE) -> Iterator[Batch]:
    """Batches ``first`` to ``last - 1`` in order, each made by a thread, and on a GPU by a stream, of its own.

    The stream goes before that of the network: a batch is many small operations, and each would wait for large ones.
    """
    on_gpu = source.device.type == "cuda"
    stream = torch.cuda.Stream(source.device, priority=-1) if on_gpu else None
    queued: deque[torch.cuda.Event] = deque()

    def make(step: int) -> Batch:
        with torch.cuda.stream(stream) if stream else nullcontext():
            batch = source.batch(step, part)
        if stream:
            stream.synchronize()
        return batch

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(make, first) if first < last else None
        for step in range(first, last):
            assert waiting is not None
            batch = waiting.result()
            waiting = pool.submit(make, step + 1) if step + 1 < last else None
            if on_gpu:
                for tensor in batch:
                    tensor.record_stream(torch.cuda.current_stream())
            yield batch
            if on_gpu:
                queued.append(torch.cuda.Event())
                queued[-1].record(torch.cuda.current_stream(source.device))
                if len(queued) > QUEUED:
                    queued.popleft().synchronize()
