"""Turn a checked call into kernel variants, sizes and strides."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from slicescan.ops.backends.cuda.driver import Kernel
from slicescan.ops.call import ScanCall

KINDS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
TILE_STEPS = {torch.bfloat16: 8, torch.float16: 8, torch.float32: 8}  # steps of a tile, between checkpoints

_SHARED = 227 * 1024  # bytes of shared memory on a multiprocessor, a block's own kilobyte included
_BLOCK_SHARED = 99 * 1024  # what a block may have on every device since compute capability 8.0
# Measured time of a warp whose lanes serve 1, 2 or 4 sequences: their B and C come from as many places.
_PACKING_COST = {"forward": {1: 1.0, 2: 1.04, 4: 1.33}, "backward": {1: 1.0, 2: 1.06, 4: 1.22}}
_ALONE_COST = 1.1  # of a backward block of one warp that shares its channels with others: more sums leave the block
_WORTH_A_TAIL = 1.05  # times faster that warps of their own for the last channels must promise to be
_ENOUGH_WARPS = 1536  # to fill a device; with fewer than half, long sequences are cut into chunks
_SHORTEST_CHUNK = 8  # tiles
_PROCESSORS = 132  # of an H100; on others the plans are as right, and about as fast
_LOW_PLACES = {"forward": (1,), "backward": (1, 4)}  # of the steps and their gradient among the maps

FUSED_RANKS = {"forward": 64, "backward": 64}
"""The largest rank of steps that a pass projects by itself, 0 for none; above it they are projected first."""


def fuses_steps(call: ScanCall, direction: str) -> bool:
    """Whether a pass takes low-rank steps; the backward one adds up their gradient over one group of channels."""
    assert call.delta_weight is not None
    channels, rank = call.delta_weight.shape
    one_group = direction == "forward" or call.B.shape[3] == 1
    return one_group and 0 < rank <= FUSED_RANKS[direction] and pays(call.u.dtype, channels, rank, direction)


def pays(dtype: torch.dtype, channels: int, rank: int, direction: str) -> bool:
    """Whether projecting inside is the faster way, by what ``benchmarks/check_cuda.py steps`` measured on an H100."""
    if direction == "forward":
        return dtype == torch.float32 or rank <= 4 or channels % 32 == 0
    return dtype != torch.float32 or channels >= 128


def keeps_y(call: ScanCall) -> bool:
    """Whether the forward pass saves y before its gate: 2 bytes an element that spare the backward pass a read-out."""
    return call.z is not None and call.u.dtype == torch.bfloat16


def states_per_lane(n: int) -> tuple[int, int]:
    """``(nl, ns)``: states a lane holds, padded to a multiple of 4, and lanes that share a channel."""
    ns = 1 if n <= 16 else 2 if n <= 32 else 4
    return -(-n // (4 * ns)) * 4, ns


def sequence_shape(call: ScanCall) -> tuple[int, int]:
    """Sequences of a call's scan and their steps; with carry an image is one sequence."""
    b, h, w, _ = call.u.shape
    slices, length = (h, w) if call.axis == "w" else (w, h)
    return (b, slices * length) if call.carry else (b * slices, length)


class Part(NamedTuple):
    """A dense map inside a tensor: all that a plan asks of a map, without a view's cost."""

    address: int
    strides: tuple[int, ...]

    def data_ptr(self) -> int:
        """Where it starts."""
        return self.address

    def stride(self) -> tuple[int, ...]:
        """In elements."""
        return self.strides


Placed = Tensor | Part


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Everything about a pass that the addresses of its tensors do not change, but for their alignment."""

    macros: dict[str, int]
    places: tuple[tuple[int, tuple[int, ...]], ...]  # of the tensors given, in their order: bytes, strides in elements
    sequences: int
    chunks: int
    slices: int
    length: int
    slice_length: int
    channels: int
    groups: int
    tail: int = 0  # lanes of a forward warp for the last channels of a group, if these have warps of their own

    @property
    def element_size(self) -> int:
        """Bytes of a map's element."""
        return 4 if self.macros["KIND"] == 2 else 2

    @property
    def nt(self) -> int:
        """States of a channel, padded."""
        return self.macros["NL"] * self.macros["NS"]

    @property
    def row(self) -> int:
        """Columns of a step's sums over channels: of dB, dC and a low-rank step's gradient."""
        return 2 * self.nt + self.low

    @property
    def low(self) -> int:
        """Numbers of a low-rank step, padded."""
        return _multiple(self.macros["RANK"], 4)

    @property
    def weight_pitch(self) -> int:
        """Numbers from row to row of the step projection, a multiple of what one product takes."""
        return _multiple(self.macros["RANK"], 16 if self.macros["KIND"] == 0 else 8)

    @functools.cached_property
    def all_tiles(self) -> int:
        """Tiles of a sequence."""
        return -(-self.length // self.macros["TS"])

    @functools.cached_property
    def tiles(self) -> int:
        """Tiles of a chunk."""
        return -(-self.all_tiles // self.chunks)

    @functools.cached_property
    def packed(self) -> int:
        """Chunks that share a warp."""
        return 32 // self.macros["NS"] // self.macros["LANES"]

    @functools.cached_property
    def unit_groups(self) -> int:
        """Groups of chunks that share a warp."""
        return -(-self.sequences * self.chunks // self.packed)

    @functools.cached_property
    def channel_warps(self) -> int:
        """Warps that cover the channels of a group, but for the last ones with a tail."""
        channels = self.channels // self.groups
        return channels // self.macros["LANES"] if self.tail else -(-channels // self.macros["LANES"])

    @functools.cached_property
    def forward_warps(self) -> int:
        """Warps of the forward kernel."""
        last = -(-self.sequences * self.chunks * self.tail // (32 // self.macros["NS"])) if self.tail else 0
        return (self.unit_groups * self.channel_warps + last) * self.groups

    def size(self, blocks: int, resumed: bool = False) -> list[int]:
        """The ``Size`` of scan.cuh."""
        return [self.sequences * self.chunks, self.chunks, self.tiles, self.all_tiles, self.slices, self.length,
                self.slice_length, self.channels, self.channels // self.groups, self.groups, blocks,
                int(resumed)]  # fmt: skip

    def _kernel(self, name: str, macros: dict[str, int], warps: int, warp_bytes: int, more: int = 0) -> Kernel:
        macros = macros | {"NW": warps, "WARP_BYTES": warp_bytes}
        return Kernel(name, f"scan_{name}", tuple(macros.items()), 32 * warps, warps * warp_bytes + more)

    def _staged(self, maps: int, lanes: int = 0) -> int:
        """Bytes of a warp that keeps two tiles of some maps, one tile of B and C, and the next as it comes."""
        m = self.macros
        rest = self._shared_by(32 // m["NS"] // lanes) if lanes else self._shared
        return sum(rest) + 2 * maps * m["TS"] * (32 // m["NS"]) * self.element_size

    @functools.cached_property
    def forward(self) -> dict[bool, Kernel]:
        """The forward kernel, by whether it saves for the backward pass."""
        m = self.macros
        lean = m["GU"] == m["GB"] == 16 and not m["WIDE"] and not m["CARRY"]
        warps = _even_block(self.forward_warps)
        more = {"MIN_BLOCKS": (18 if lean else 15) // warps, "TAIL": self.tail}
        own = self._staged(2 + m["HAS_Z"], self.tail)
        return {save: self._kernel("forward", m | more | {"SAVE": int(save)}, warps, own) for save in (False, True)}

    @functools.cached_property
    def summary(self) -> dict[bool, Kernel]:
        """The kernel that finds what a chunk does to a state (False) or to its gradient (True)."""

        def one(back: bool) -> Kernel:
            gated = int(back and self.macros["HAS_Z"])
            macros = self.macros | {"HAS_Z": 0, "BACK": int(back), "GATED": gated, "MIN_BLOCKS": 5}
            return self._kernel("summary", macros, 3, self._staged(2 + gated))

        return {back: one(back) for back in (False, True)}

    @functools.cached_property
    def backward(self) -> Kernel:
        """The backward kernel."""
        m, row, packed, size = self.macros, 32 // self.macros["NS"], self.packed, self.element_size
        mix, raw, low = self._shared
        bfloat, states = m["KIND"] == 0, m["NL"] * (2 if m["KIND"] == 0 else 4)
        # several sequences a warp: save shared memory, which limits the warps
        room = 32 * states - 2 * row * size >= m["TS"] * 2 * m["N"] * size
        lean = int(bfloat and packed > 1 and bool(m["SOFTPLUS"]) and room)
        buffers = 2 if bfloat else 3
        own = 32 * (m["TS"] + 1) * states  # before each step, and the next checkpoint
        own += 32 * m["TS"] * (16 if not bfloat else 10 if lean else 12)  # scalars of each step
        own += (2 + (not m["RANK"]) + m["HAS_Z"] + m["KEEP_Y"]) * m["TS"] * row * size + mix
        pairs = self.nt * (4 if bfloat and packed > 1 else 8)
        own += buffers * m["TS"] * packed * (pairs + self.low * (2 if bfloat else 4))  # sums over channels
        own += (0 if lean else raw) + low
        fitting = [w for w in (4, 3, 2, 1) if w * own + 16 <= _BLOCK_SHARED or w == 1]
        warps = _block_warps(self.channel_warps, fitting)
        extra = {"MIN_BLOCKS": max(1, min(12 // warps, _SHARED // (own * warps + 1040))), "AT_ONCE": 2, "LEAN": lean,
                 "BUFFERS": buffers, "DIRECT": int(self.channel_warps <= warps)}  # fmt: skip
        return self._kernel("backward", m | extra, warps, own, 16)

    @functools.cached_property
    def finish(self) -> Kernel:
        """The kernel of the sums that follow the backward kernel."""
        return Kernel("reduce", "scan_finish", self._reduced, 256, 1024)

    @functools.cached_property
    def chain(self) -> Kernel:
        """The kernel that goes from chunk to chunk."""
        return Kernel("reduce", "scan_chain", self._reduced, 128, 0)

    @functools.cached_property
    def weights(self) -> Kernel:
        """The kernel that lays out the step projection."""
        return Kernel("reduce", "scan_weights", self._reduced, 256, 0)

    @functools.cached_property
    def _reduced(self) -> tuple[tuple[str, int], ...]:
        steps = self.groups * self.sequences * self.all_tiles * self.macros["TS"]
        kept = {
            k: v for k, v in self.macros.items() if k not in ("HAS_Z", "SOFTPLUS", "KEEP_Y", "GU", "GB", "GR", "WIDE")
        }
        wide = int(self.macros["WIDE"] or steps >= 2**30)
        sizes = {"GU": 4, "GB": self.element_size, "GR": self.element_size}
        return tuple((kept | sizes | {"SOFTPLUS": 1, "WIDE": wide}).items())

    @functools.cached_property
    def _shared(self) -> tuple[int, int, int]:
        return self._shared_by(self.packed)

    def _shared_by(self, packed: int) -> tuple[int, int, int]:
        """Bytes of a warp of some chunks for a tile of B and C, for the next as it comes, and for steps of low rank."""
        m = self.macros
        mix = packed * (m["TS"] * 2 * self.nt + (4 if packed > 1 else 0)) * 4
        raw = _multiple(packed * m["TS"] * 2 * m["N"] * self.element_size, 16)
        return mix, raw, packed * m["TS"] * self.low * self.element_size


def _multiple(size: int, of: int) -> int:
    """The first multiple that is not smaller."""
    return -(-size // of) * of


def plan_of(call: ScanCall, direction: str, maps: Sequence[Placed], mixes: Sequence[Tensor]) -> Plan:
    """Plan the forward or backward pass over ``maps`` (b, h, w, d) and ``mixes`` (b, h, w, g, n).

    The second map are the steps, the fifth one of a backward pass their gradient; both may be of low rank.
    """
    rank = 0 if call.delta_weight is None else call.delta_weight.shape[1]
    layouts = tuple([(t.stride(), t.data_ptr() % 16) for t in (*maps, *mixes)])
    flags = (call.axis, call.reverse, call.carry, call.z is not None, call.delta_softplus, keeps_y(call))
    return _plan(direction, call.u.dtype, tuple(call.u.shape), tuple(call.B.shape[3:]), rank, flags, layouts, len(maps))


@functools.lru_cache(maxsize=1024)
def _plan(
    direction: str,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int],
    mix_shape: tuple[int, int],
    rank: int,
    flags: tuple[str, bool, bool, bool, bool, bool],
    layouts: tuple[tuple[tuple[int, ...], int], ...],
    maps: int,
) -> Plan:
    axis, reverse, carry, gated, softplus, keep = flags
    (groups, n), d, size = mix_shape, shape[3], dtype.itemsize
    slices, slice_length = (shape[1], shape[2]) if axis == "w" else (shape[2], shape[1])
    lows = _LOW_PLACES[direction] if rank else ()
    sizes = [
        (*shape[:3], *((rank,) if i in lows else shape[3:] if i < maps else mix_shape)) for i in range(len(layouts))
    ]
    places = [place_of(stride, of, axis, reverse, carry) for (stride, _), of in zip(layouts, sizes, strict=True)]
    two_levels = False
    if carry:
        if slice_length == 1:
            places = [(o, (b, 0, s, *rest)) for o, (b, s, _, *rest) in places]
        elif slices == 1 or all(s == t * slice_length for _, (_, s, t, *_) in places):
            places = [(o, (b, 0, t, *rest)) for o, (b, _, t, *rest) in places]
        else:
            two_levels = True
    sequences, length = (shape[0], slices * slice_length) if carry else (shape[0] * slices, slice_length)
    aligned = [(o, p, a) for (o, p), (_, a) in zip(places, layouts, strict=True)]
    nl, ns = states_per_lane(n)
    lanes = _lane_width(d // groups, 32 // ns, sequences, direction)
    wide_maps = [x for i, x in enumerate(aligned[:maps]) if i not in lows]
    macros = {
        "KIND": KINDS[dtype], "N": n, "NL": nl, "NS": ns, "TS": TILE_STEPS[dtype], "LANES": lanes,
        "RANK": rank, "GR": copy_bytes(size, rank, *aligned[1]) if rank else size,
        "GU": min(copy_bytes(size, d // groups, *x) for x in wide_maps),
        "GB": min(copy_bytes(size, n, *x) for x in aligned[maps:]),
        "WIDE": int(any(reach(stride, of) >= 2**31 - 2**20 for (stride, _), of in zip(layouts, sizes, strict=True))),
        "CARRY": int(two_levels), "HAS_Z": int(gated), "SOFTPLUS": int(softplus), "KEEP_Y": int(keep),
    }  # fmt: skip
    warps = sequences * groups * -(-(d // groups) // lanes) / (32 // ns // lanes)
    tiles = -(-length // macros["TS"])
    chunks = min(int(_ENOUGH_WARPS // max(warps, 1)), tiles // _SHORTEST_CHUNK) if 2 * warps <= _ENOUGH_WARPS else 1
    chunks = -(-tiles // -(-tiles // max(chunks, 1)))  # none is empty
    tail = 0
    if direction == "forward" and chunks == 1:
        macros["LANES"], tail = _with_tail(d // groups, 32 // ns, sequences, lanes)
    return Plan(
        macros=macros, places=tuple((o * size, tuple(p)) for o, p in places), sequences=sequences, chunks=chunks,
        slices=1 if carry else slices, length=length, slice_length=slice_length, channels=d, groups=groups,
        tail=tail,
    )  # fmt: skip


def place_of(
    stride: tuple[int, ...], shape: tuple[int, ...], axis: str, reverse: bool, carry: bool
) -> tuple[int, tuple[int, ...]]:
    """Where a tensor's first step lies and its strides ``(batch, slice, step, ...)``, in elements."""
    stride = tuple(s if n != 1 else 0 for s, n in zip(stride, shape, strict=True))
    turned = axis == "h"
    b, s, t = (stride[0], stride[2], stride[1]) if turned else stride[:3]
    slices, length = (shape[2], shape[1]) if turned else shape[1:3]
    offset = 0
    if reverse:
        offset, t = t * (length - 1), -t
        if carry:
            offset, s = offset + s * (slices - 1), -s
    return offset, (b, s, t, *stride[3:])


def reach(stride: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """Elements between the first and the last of a tensor."""
    return sum(s * (n - 1) for s, n in zip(stride, shape, strict=True) if n > 1)


def copy_bytes(size: int, run: int, offset: int, place: tuple[int, ...], aligned: int) -> int:
    """Bytes that every run of channels or states can be copied by."""
    if run > 1 and place[-1] != 1:
        return size
    starts = [aligned, offset * size, run * size, *(s * size for s in place[:-1])]
    return next((g for g in (16, 8, 4) if g > size and all(s % g == 0 for s in starts)), size)


def _lane_width(channels: int, row: int, sequences: int, direction: str) -> int:
    """Lanes of a warp for neighbouring channels of one sequence; the rest of its row takes further sequences."""

    def cost(width: int) -> float:
        time, warps = _warp_time(width, row, sequences, direction), -(-channels // width)
        if direction == "backward":
            block = _block_warps(warps, (4, 3, 2, 1))
            time *= _ALONE_COST if block == 1 < warps else 1.0
            warps = -(-warps // block) * block
        return warps * time

    return min((w for w in (32, 16, 8) if w <= row), key=cost)


def _with_tail(channels: int, row: int, sequences: int, lanes: int) -> tuple[int, int]:
    """``lanes`` and 0, or a whole row of lanes and fewer for the channels that are left, if that is the faster way."""
    whole, left = divmod(channels, row)
    tail = next((w for w in (8, 16) if left <= w < row), 0)
    if not (whole and left and tail):
        return lanes, 0

    def time(width: int) -> float:
        return _warp_time(width, row, sequences, "forward")

    gain = -(-channels // lanes) * time(lanes) / (whole * time(row) + time(tail))
    return (row, tail) if gain > _WORTH_A_TAIL else (lanes, 0)


def _warp_time(width: int, row: int, sequences: int, direction: str) -> float:
    packed = row // width
    filled = -(-sequences // packed) * packed / sequences
    return width * filled * _PACKING_COST[direction][packed]


def _even_block(warps: int) -> int:
    """Warps of a block of a kernel whose warps work alone: the processors should have about as many of them each."""
    if warps > _PROCESSORS * 15:  # which have one after the other then
        return 3
    return min((3, 2, 1), key=lambda block: math.ceil(math.ceil(warps / block) / _PROCESSORS) * block)


def _block_warps(warps: int, choices: Sequence[int]) -> int:
    """Warps of a block, so that few are idle when ``warps`` share the channels of a group."""
    return min(choices, key=lambda w: -(-warps // w) * w)
