"""How a call is cut into pieces of work, and where its maps lie in memory."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from slicescan.ops.call import ScanCall

CHUNK = 32
"""Steps between two saved states; the backward pass computes those between anew."""

FEW_STEPS = 16
"""Steps whose gradients of ``A``, which may cancel, are summed in the compute dtype before they join a float64 sum."""

VECTOR = 8
"""Channels of a block come in whole vectors of so many, whatever the machine's own vectors are."""

WIDEST, NARROW = 144, 40  # channels of a block, with many sequences and with few
CACHE = 5 << 17  # bytes of a core's own cache that the states of a chunk may take
FEW_SEQUENCES = 16  # with fewer, threads share out the channels too
TEAMS = 128  # of sequences, which sum gradients of parameters; fixed, so that no sum depends on the number of threads

U, DELTA, Z, GRAD_Y, Y, GRAD_U, GRAD_DELTA, GRAD_Z, B, C, GRAD_B, GRAD_C = range(12)
"""Rows of the table of places, one for each map: what blocks of channels take, what they give, and mixes."""

ADDRESS, BATCH, SLICE, STEP, GROUP, BLOCK, LAST = range(7)
"""Its columns: the address of a map's first step, and the strides of its axes, in bytes."""

COMPUTED, BFLOAT16, FLOAT16 = range(3)
"""What a map holds: numbers of the compute dtype, or shorter ones."""

_KINDS = {torch.float32: COMPUTED, torch.float64: COMPUTED, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}


class Plan(NamedTuple):
    """Sizes of a call, from shapes alone. The kernels take the first ten, as integers."""

    sequences: int
    slices: int  # of one image that are separate sequences
    length: int  # of a slice
    total: int  # steps of a sequence
    in_group: int  # blocks of a group of channels
    per_group: int  # channels of a group
    span: int  # blocks of a piece of work: all, or 1
    kind: int  # what maps hold
    softplus: bool
    gated: bool
    d: int
    n: int
    groups: int
    blocks: int
    width: int  # channels of a block, with padding
    teams: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """What the kernels take."""
        return (*self[:8], int(self.softplus), int(self.gated))

    @property
    def parts(self) -> int:
        """Pieces of work of a sequence."""
        return self.blocks // self.span

    @property
    def checkpoints(self) -> int:
        """States of a sequence that the forward pass saves: before each chunk but the first."""
        return max(self.total - 1, 0) // CHUNK


def plan_of(call: ScanCall) -> Plan:
    """Cut a call into blocks of channels and teams of sequences; never by the number of threads."""
    b, h, w, d = call.u.shape
    slices, length = (h, w) if call.axis == "w" else (w, h)
    sequences, total = (b, slices * length) if call.carry else (b * slices, length)
    groups, n = call.B.shape[3], call.A.shape[1]
    per_group = d // groups
    few = sequences < FEW_SEQUENCES
    states = 2 * CHUNK * max(n, 1) * call.A.element_size()  # bytes for each channel
    widest = max(VECTOR, min(NARROW if few else WIDEST, CACHE // states) // VECTOR * VECTOR)
    width = VECTOR * max(1, _ceil(_ceil(per_group, _ceil(per_group, widest) or 1), VECTOR))
    in_group = max(1, _ceil(per_group, width))
    blocks = groups * in_group
    return Plan(
        sequences=sequences,
        slices=1 if call.carry else slices,
        length=length,
        total=total,
        in_group=in_group,
        per_group=per_group,
        span=1 if few else blocks,
        kind=_KINDS[call.u.dtype],
        softplus=call.delta_softplus,
        gated=call.z is not None,
        d=d,
        n=n,
        groups=groups,
        blocks=blocks,
        width=width,
        teams=min(TEAMS, sequences),
    )


def table(call: ScanCall, plan: Plan, maps: dict[int, Tensor], blocks: dict[int, int] | None = None) -> Any:
    """Where the maps of a call lie, as the kernels want to know it.

    Args:
        call: Gives axis and direction.
        plan: Of that call.
        maps: By their rows, ``(b, h, w, d)`` or ``(b, h, w, g, n)``; others are nowhere.
        blocks: Strides, in numbers, of maps ``(b, h, w, g, n)`` that have a copy for each block of a group.
    """
    places = np.zeros((12, 7), dtype=np.int64)
    slices, length = (1, 2) if call.axis == "w" else (2, 1)
    for row, x in maps.items():
        strides = x.stride()
        slice_, step, last, start = strides[slices], strides[length], strides[-1], 0
        if call.reverse:
            start, step = (x.shape[length] - 1) * step, -step
            if call.carry:
                start, slice_ = start + (x.shape[slices] - 1) * slice_, -slice_
        group, block = (plan.per_group * last, plan.width * last) if x.ndim == 4 else (strides[3], 0)
        if blocks:
            block = blocks.get(row, block)
        places[row, BATCH:] = strides[0], slice_, step, group, block, last
        places[row, BATCH:] *= x.element_size()
        places[row, ADDRESS] = x.data_ptr() + start * x.element_size()
    return places


def _ceil(x: int, y: int) -> int:
    return -(-x // y)
