"""Make the next batch while the network works on this one."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import torch
from torch import Tensor

from slicescan.engine.blur import SyntheticMotionBlur

Batch = tuple[Tensor, Tensor]


def ahead(source: SyntheticMotionBlur, first: int, last: int) -> Iterator[Batch]:
    """Batches ``first`` to ``last - 1`` in order, each made by a thread, and on a GPU by a stream, of its own."""
    on_gpu = source.device.type == "cuda"
    stream = torch.cuda.Stream(source.device) if on_gpu else None

    def make(step: int) -> Batch:
        with torch.cuda.stream(stream) if stream else nullcontext():
            batch = source.batch(step)
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
