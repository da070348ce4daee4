"""Turn a checked call into kernel variants, sizes and strides."""

import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from slicescan.ops.call import ScanCall

TILE_STEPS = {torch.bfloat16: 8, torch.float16: 8, torch.float32: 8}  # steps of a tile, between checkpoints
KINDS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
_REGION = 227 * 1024  # shared memory of a multiprocessor, a block's own kilobyte left out below
# Time of a lane when 1, 2 or 4 sequences share a warp: their B and C come from as many places of shared memory.
_PACKING_COST = {"forward": {1: 1.0, 2: 1.04, 4: 1.33}, "backward": {1: 1.0, 2: 1.1, 4: 1.4}}


def states_per_lane(n: int) -> tuple[int, int]:
    """``(nl, ns)``: states a lane holds, padded to a multiple of 4, and lanes that share a channel."""
    ns = 1 if n <= 16 else 2 if n <= 32 else 4
    return -(-n // (4 * ns)) * 4, ns


@dataclasses.dataclass(frozen=True)
class Steps:
    """How positions of sequences lie in maps: the call's axis, direction and carry."""

    shape: tuple[int, int, int, int]
    axis: str
    reverse: bool
    carry: bool

    @property
    def slices(self) -> int:
        """Slices of an image."""
        return self.shape[1] if self.axis == "w" else self.shape[2]

    @property
    def slice_length(self) -> int:
        """Steps of a slice."""
        return self.shape[2] if self.axis == "w" else self.shape[1]

    def place(self, tensor: Tensor) -> tuple[int, list[int]]:
        """``(offset, [batch, slice, step, ...])`` in elements: where a tensor's first step lies, and its strides."""
        stride = [s if n != 1 else 0 for s, n in zip(tensor.stride(), tensor.shape)]
        b, s, t = (stride[0], stride[1], stride[2]) if self.axis == "w" else (stride[0], stride[2], stride[1])
        offset = 0
        if self.reverse:
            offset += t * (self.slice_length - 1)
            t = -t
            if self.carry:
                offset += s * (self.slices - 1)
                s = -s
        return offset, [b, s, t, *stride[3:]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything about a call that its addresses do not change."""

    macros: tuple[tuple[str, int], ...]
    lanes: int
    places: tuple[tuple[int, tuple[int, ...]], ...]  # of the tensors given, in their order: bytes, strides in elements
    sequences: int
    slices: int
    length: int
    slice_length: int
    channels: int
    groups: int
    n: int
    nt: int
    steps: int
    element_size: int

    @property
    def tiles(self) -> int:
        """Tiles of a sequence."""
        return -(-self.length // self.steps)

    @property
    def unit_groups(self) -> int:
        """Groups of sequences that share a warp."""
        return -(-self.sequences // self.packed)

    @property
    def packed(self) -> int:
        """Sequences of a warp."""
        return 32 // dict(self.macros)["NS"] // self.lanes

    @property
    def channel_warps(self) -> int:
        """Warps that cover the channels of a group."""
        return -(-(self.channels // self.groups) // self.lanes)

    def size(self, blocks: int, resumed: bool = False) -> list[int]:
        """The ``Size`` of scan.cuh."""
        tiles = self.tiles
        return [self.sequences, 1, tiles, tiles, self.slices, self.length, self.slice_length, self.channels,
                self.channels // self.groups, self.groups, blocks, int(resumed)]  # fmt: skip


def sequence_shape(call: ScanCall) -> tuple[int, int, int]:
    """``(sequences, steps, slices)`` of the call's scan; with carry an image is one sequence."""
    b, h, w, _ = call.u.shape
    slices, length = (h, w) if call.axis == "w" else (w, h)
    return (b, slices * length, slices) if call.carry else (b * slices, length, slices)


def plan_of(call: ScanCall, direction: str, maps: Sequence[Tensor], mixes: Sequence[Tensor]) -> Plan:
    """Plan the forward or backward pass over ``maps`` (b, h, w, d) and ``mixes`` (b, h, w, g, n)."""
    key = tuple((t.stride(), t.data_ptr() % 16) for t in (*maps, *mixes))
    shape = tuple(call.u.shape)
    steps = Steps(shape, call.axis, call.reverse, call.carry)  # type: ignore[arg-type]
    groups, n = call.B.shape[3:]
    flags = (call.z is not None, call.delta_softplus)
    return _plan(steps, groups, n, call.u.dtype, flags, direction, key, len(maps))


@functools.lru_cache(maxsize=1024)
def _plan(
    steps: Steps,
    groups: int,
    n: int,
    dtype: torch.dtype,
    flags: tuple[bool, bool],
    direction: str,
    key: tuple,
    maps: int,
) -> Plan:
    b, h, w, d = steps.shape
    size = dtype.itemsize
    metas = [
        torch.empty_strided((b, h, w, d) if i < maps else (b, h, w, groups, n), stride, device="meta", dtype=dtype)
        for i, (stride, _) in enumerate(key)
    ]
    places = [steps.place(t) for t in metas]
    slices, slice_length = steps.slices, steps.slice_length
    two_levels = False
    if steps.carry:
        runs_on = slices == 1 or all(s == t * slice_length for _, (_, s, t, *_) in places)
        if slice_length == 1:
            places = [(o, [b_, 0, s, *rest]) for o, (b_, s, _, *rest) in places]
        elif runs_on:
            places = [(o, [b_, 0, t, *rest]) for o, (b_, _, t, *rest) in places]
        else:
            two_levels = True
        sequences, length, kernel_slices = b, slices * slice_length, 1
    else:
        sequences, length, kernel_slices = b * slices, slice_length, slices
    nl, ns = states_per_lane(n)
    wide = any(
        sum(abs(s) * (c - 1) for s, c in zip(t.stride(), t.shape) if c > 1) >= 2**31 - 2**20 for t in metas
    )
    map_bytes = min(
        _copy_bytes(size, d // groups, offset, place, aligned)
        for (offset, place), (_, aligned) in zip(places[:maps], key[:maps])
    )
    mix_bytes = min(
        _copy_bytes(size, n, offset, place, aligned) for (offset, place), (_, aligned) in zip(places[maps:], key[maps:])
    )
    lanes = _lane_width(d // groups, 32 // ns, sequences, _PACKING_COST[direction])
    macros = {
        "KIND": KINDS[dtype], "N": n, "NL": nl, "NS": ns, "TS": TILE_STEPS[dtype], "GU": map_bytes, "GB": mix_bytes,
        "WIDE": int(wide), "CARRY": int(two_levels), "HAS_Z": int(flags[0]), "SOFTPLUS": int(flags[1]), "LANES": lanes,
    }  # fmt: skip
    return Plan(
        macros=tuple(macros.items()), lanes=lanes, places=tuple((o * size, tuple(p)) for o, p in places),
        sequences=sequences, slices=kernel_slices, length=length, slice_length=slice_length, channels=d, groups=groups,
        n=n, nt=nl * ns, steps=TILE_STEPS[dtype], element_size=size,
    )  # fmt: skip


def _copy_bytes(size: int, run: int, offset: int, place: list[int], aligned: int) -> int:
    """Bytes that every run of channels or states can be copied by."""
    if run > 1 and place[-1] != 1:
        return size
    starts = [aligned, offset * size, run * size, *(s * size for s in place[:-1])]
    return next((g for g in (16, 8, 4) if g > size and all(s % g == 0 for s in starts)), size)


def _lane_width(channels: int, row: int, sequences: int, packing_cost: dict[int, float]) -> int:
    """Lanes of a warp for neighbouring channels of one sequence; the rest of its row takes further sequences."""

    def cost(width: int) -> float:
        packed = row // width
        filled = -(-sequences // packed) * packed / max(sequences, 1)
        return -(-channels // width) * width * filled * packing_cost[packed]

    return min((w for w in (32, 16, 8) if w <= row), key=cost)


def forward_variant(plan: Plan, save: bool) -> tuple[tuple[tuple[str, int], ...], int, int]:
    """Macros, warps a block and bytes of shared memory a warp of the forward kernel."""
    m = dict(plan.macros)
    tile, packed = plan.steps * (32 // m["NS"]), plan.packed
    own = _mix_bytes(m, packed) + 2 * (3 if m["HAS_Z"] else 2) * tile * plan.element_size
    warps = 3
    lean = m["GU"] == m["GB"] == 16 and not m["WIDE"] and not m["CARRY"] and m["NL"] <= 16
    extra = {"SAVE": int(save), "NW": warps, "MIN_BLOCKS": 6 if lean else 5, "WARP_BYTES": own}
    return (*plan.macros, *extra.items()), warps, own


def backward_variant(plan: Plan) -> tuple[tuple[tuple[str, int], ...], int, int]:
    """Macros, warps a block and bytes of shared memory a warp of the backward kernel."""
    m = dict(plan.macros)
    row, packed, steps = 32 // m["NS"], plan.packed, plan.steps
    states = m["NL"] * (2 if m["KIND"] == 0 else 4)
    lean = m["KIND"] == 0 and packed > 1 and m["SOFTPLUS"] == 1
    buffers = 2 if lean else 3
    own = steps * 32 * states + steps * 32 * (16 if m["KIND"] else 10 if lean else 12) + 32 * states
    own += (4 if m["HAS_Z"] else 3) * steps * row * plan.element_size + _mix_bytes(m, packed)
    short = m["KIND"] == 0 and packed > 1
    own += buffers * steps * packed * (plan.nt if short else 2 * plan.nt) * 4
    warps = min((4, 3, 2, 1), key=lambda w: -(-plan.channel_warps // w) * w)
    blocks = max(1, min(12 // warps, _REGION // (own * warps + 1040)))
    direct = int(plan.channel_warps <= warps)
    extra = {"NW": warps, "MIN_BLOCKS": blocks, "WARP_BYTES": own, "DIRECT": direct, "AT_ONCE": 2, "LEAN": int(lean),
             "BUFFERS": buffers}  # fmt: skip
    return (*plan.macros, *extra.items()), warps, own


def finish_variant(plan: Plan, steps: int) -> tuple[tuple[str, int], ...]:
    """Macros of the sums that follow the backward kernel; ``steps`` rows of dB and dC wait for theirs."""
    skip = ("HAS_Z", "SOFTPLUS", "GU", "GB", "WIDE")
    wide = int(dict(plan.macros)["WIDE"] or steps >= 2**31)
    kept = tuple((k, v) for k, v in plan.macros if k not in skip)
    return (*kept, ("GU", 4), ("GB", plan.element_size), ("SOFTPLUS", 1), ("WIDE", wide))


def _mix_bytes(m: dict[str, int], packed: int) -> int:
    size = 4 if m["KIND"] == 2 else 2
    tile = packed * (m["TS"] * 2 * m["NL"] * m["NS"] + (4 if packed > 1 else 0)) * 4
    return tile + -(-packed * m["TS"] * 2 * m["N"] * size // 16) * 16
