"""How a call is cut into programs of Triton."""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slicescan.ops.call import ScanCall

MAX_STATES = 64
CHUNK = 16
"""Steps between two saved states; the backward pass recomputes those between."""

FEW_PROGRAMS = 1024  # with fewer, long paths are cut into segments, to fill the device
SHORTEST_SEGMENT = 256


class Plan(NamedTuple):
    """Programs of a call: one for each block of channels of each segment of each sequence."""

    sequences: int
    slices: int  # of one image that are separate sequences
    total: int  # steps of a sequence
    length: int  # of a slice
    d: int
    n: int
    states: int  # n, padded to a power of 2
    lanes: int  # channels of a program
    warps: int
    per_group: int
    group_blocks: int
    blocks: int
    segment_steps: int
    segments: int
    carry: bool
    reverse: bool
    softplus: bool

    @property
    def empty(self) -> bool:
        """Whether there is nothing to run."""
        return self.sequences * self.total * self.d == 0

    @property
    def programs(self) -> int:
        """Number of programs."""
        return self.sequences * self.segments * self.blocks

    @property
    def sizes(self) -> tuple[int, ...]:
        """Arguments that the kernels share."""
        return (self.blocks, self.per_group, self.group_blocks, self.segment_steps, self.segments, self.slices,
                self.total, self.length)  # fmt: skip

    @property
    def options(self) -> dict[str, Any]:
        """Constants that the kernels share."""
        return {"n": self.n, "N": self.states, "LANES": self.lanes, "CARRY": self.carry, "REVERSE": self.reverse,
                "SOFTPLUS": self.softplus, "num_warps": self.warps}  # fmt: skip


def plan_of(call: ScanCall) -> Plan:
    """Cut a call into programs; from shapes and the kind of device alone."""
    b, h, w, d = call.u.shape
    slices, length = (h, w) if call.axis == "w" else (w, h)
    sequences, total = (b, slices * length) if call.carry else (b * slices, length)
    n, groups = call.A.shape[1], call.B.shape[3]
    states = 1 << (n - 1).bit_length()
    warps = max(1, states // 16)  # a lane holds all states up to 32; B and C of a step never fill the lanes
    lanes = min(warps, 2) * _warp_size(call.u.device)
    group_blocks = -(-d // (groups * lanes))
    blocks = groups * group_blocks
    segments, steps = 1, total
    if total >= 2 * SHORTEST_SEGMENT and 0 < sequences * blocks < FEW_PROGRAMS:
        wanted = min(total // SHORTEST_SEGMENT, -(-FEW_PROGRAMS // (sequences * blocks)))
        steps = -(-total // (wanted * CHUNK)) * CHUNK
        segments = -(-total // steps)
    return Plan(
        sequences=sequences,
        slices=1 if call.carry else slices,
        total=total,
        length=length,
        d=d,
        n=n,
        states=states,
        lanes=lanes,
        warps=warps,
        per_group=d // groups,
        group_blocks=group_blocks,
        blocks=blocks,
        segment_steps=steps,
        segments=segments,
        carry=call.carry and slices > 1,
        reverse=call.reverse,
        softplus=call.delta_softplus,
    )


def strides_of(call: ScanCall, *tensors: Tensor | None) -> list[Any]:
    """Strides of each tensor in the order batch, slice, step, and the rest."""
    slice_, step = (1, 2) if call.axis == "w" else (2, 1)
    return [None if x is None else (x.stride(0), x.stride(slice_), x.stride(step), *x.stride()[3:]) for x in tensors]


@cache
def _warp_size(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).warp_size if device.type == "cuda" and torch.version.hip else 32
