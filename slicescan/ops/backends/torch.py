"""A lean loop over the steps in plain PyTorch, for any device: states of a few slices and steps at a time, never all.

Work goes block of slices by block of slices, chunk of steps by chunk of steps, so that states stay in a processor's
caches. The forward pass keeps the state before every chunk; the backward pass computes those inside a chunk anew.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from slicescan.ops.call import Gradients, ScanCall
from slicescan.ops.paths import initial_states, state_shape

CHUNK = 16
"""Steps between two saved states."""

BLOCK = {"cpu": 2**16}
"""Numbers of all states that advance together, by kind of device; measured on two cores with 1 MiB of cache each."""


def why_not(call: ScanCall) -> None:
    """It runs everything, anywhere."""


def saved_spec(call: ScanCall) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of the saved states: ``(chunks, b, slices, g, n, d / g)``."""
    b, slices, d, n = state_shape(call)
    groups = call.B.shape[3]
    return (-(-_length(call) // CHUNK), b, slices, groups, n, d // groups), call.A.dtype


def forward(call: ScanCall, *, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Run a call: ``(y, last_state, saved)``."""
    shape, dtype = saved_spec(call)
    saved = call.A.new_empty(shape if save else (0,), dtype=dtype)
    maps, y = _Maps(call), _Output(call.u, call)
    states = _states_first(initial_states(call), call)
    for block, room in _blocks(call):
        h = states[block.images, block.slices].flatten(0, 1).clone()
        for first in range(0, _length(call), CHUNK):
            if save:
                saved[first // CHUNK, block.images, block.slices] = h.view_as(states[block.images, block.slices])
            chunk = _Chunk(call, maps, block, first, room)
            h = chunk.advance(h)
            out = chunk.read_out()
            if maps.z is not None:
                out = out.mul_(F.silu(chunk.read(maps.z)))
            y.write(out, block, first)
        states[block.images, block.slices] = h.view_as(states[block.images, block.slices])
    return y.map(), _states_last(states, call), saved


def backward(call: ScanCall, saved: Tensor, grad_y: Tensor, grad_last: Tensor | None) -> Gradients:
    """Gradients of every argument of a call, from the saved states."""
    maps, grad_steps = _Maps(call), _steps_first(grad_y, call)
    grad_u, grad_delta = _Output(call.u, call), _Output(call.delta, call)
    grad_B, grad_C = _Output(call.B, call, dense=True), _Output(call.C, call, dense=True)
    grad_z = None if call.z is None else _Output(call.z, call)
    rates = _rates(call)
    grad_A, grad_D, grad_bias = (
        torch.zeros_like(rates),
        call.A.new_zeros(call.u.shape[3]),
        call.A.new_zeros(call.u.shape[3]),
    )
    states = _states_first(
        call.A.new_zeros(state_shape(call)) if grad_last is None else grad_last.to(call.A.dtype), call
    )
    for block, room in _blocks(call, backward=True):
        grad = states[block.images, block.slices].flatten(0, 1).clone()
        for first in reversed(range(0, _length(call), CHUNK)):
            chunk = _Chunk(call, maps, block, first, room)
            chunk.advance(saved[first // CHUNK, block.images, block.slices].flatten(0, 1))
            grad_out = chunk.read(grad_steps)
            if maps.z is not None and grad_z is not None:
                z = chunk.read(maps.z)
                gate = torch.sigmoid(z)
                grad_z.write(grad_out * chunk.read_out() * gate * (1 + z * (1 - gate)), block, first)
                grad_out = grad_out * z * gate
            if call.D is not None:
                grad_D += (grad_out * chunk.u).sum((0, 1))
            found = chunk.differentiate(grad_out, grad, grad_A)
            grad_bias += found.delta.sum((0, 1))
            grad_u.write(found.u, block, first)
            grad_delta.write(found.delta, block, first)
            grad_B.write(found.B, block, first)
            grad_C.write(found.C, block, first)
        states[block.images, block.slices] = grad.view_as(states[block.images, block.slices])
    return Gradients(
        grad_u.map(),
        grad_delta.map(),
        grad_A.transpose(1, 2).contiguous().view(call.A.shape),
        grad_B.map(),
        grad_C.map(),
        None if call.D is None else grad_D,
        None if grad_z is None else grad_z.map(),
        None if call.delta_bias is None else grad_bias,
        None if call.initial_state is None else _states_last(states, call),
    )


class _Block(NamedTuple):
    """Sequences that are scanned together."""

    images: slice
    slices: slice


def _blocks(call: ScanCall, *, backward: bool = False) -> Iterator[tuple[_Block, "_Room"]]:
    b, slices, d, n = state_shape(call)
    size = max(BLOCK.get(call.u.device.type, 2**21) // max(d * n, 1), 1)  # sequences
    images = max(size // max(slices, 1), 1)
    room = None
    for image in range(0, b, images):
        for first in range(0, slices, size):
            block = _Block(slice(image, min(image + images, b)), slice(first, min(first + size, slices)))
            sequences = (block.images.stop - image) * (block.slices.stop - first)
            if room is None or room.states.shape[1] != sequences:
                room = _Room(call, sequences, backward)
            yield block, room


class _Room:
    """Memory for the states of one block and chunk, used again for every chunk: ``(steps, s, g, n, d / g)``."""

    def __init__(self, call: ScanCall, sequences: int, backward: bool):
        steps = min(CHUNK, _length(call))
        self.rates = _rates(call)
        self.rates_by_2 = self.rates * math.log2(math.e)  # powers of two are quicker than those of e
        self.states = call.A.new_empty(steps + 1, sequences, *self.rates.shape)
        self.decays = call.A.new_empty(steps, sequences, *self.rates.shape)
        if backward:
            self.grads, self.scratch = torch.empty_like(self.decays), torch.empty_like(self.decays)


class _Found(NamedTuple):
    u: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor


class _Maps:
    """The maps of a call as ``(l, b, slices, ...)``, steps in the order of memory; copies only where ``carry`` asks."""

    def __init__(self, call: ScanCall):
        self.u, self.delta, self.B, self.C = (_steps_first(x, call) for x in (call.u, call.delta, call.B, call.C))
        self.z = None if call.z is None else _steps_first(call.z, call)


class _Chunk:
    """A few steps of a few sequences, in the order of the scan: maps ``(steps, s, d)``, mixes ``(steps, s, g, n)``."""

    def __init__(self, call: ScanCall, maps: _Maps, block: _Block, first: int, room: _Room):
        self.call, self.block, self.first, self.room = call, block, first, room
        self.u, self.raw = self.read(maps.u), self.read(maps.delta)
        if call.delta_bias is not None:
            self.raw = self.raw + call.delta_bias
        self.delta = F.softplus(self.raw) if call.delta_softplus else self.raw
        self.B, self.C = self.read(maps.B), self.read(maps.C)
        self.input = self._grouped(self.delta * self.u)
        steps = len(self.u)
        self.states, self.decays = room.states[: steps + 1], room.decays[:steps]

    def read(self, steps: Tensor) -> Tensor:
        """This part of a map, dense and in the compute dtype."""
        part = _part(steps, self.call, self.block, self.first)
        part = part.flip(0) if self.call.reverse else part
        return part.to(self.call.A.dtype, memory_format=torch.contiguous_format).flatten(1, 2)

    def advance(self, h: Tensor) -> Tensor:
        """Find the state after every step; return the last."""
        torch.mul(self._grouped(self.delta)[:, :, :, None], self.room.rates_by_2, out=self.decays).exp2_()
        self.states[0] = h
        states, inputs, B = self.states.unbind(), self.input[:, :, :, None].unbind(), self.B[..., None].unbind()
        for k, decay in enumerate(self.decays.unbind()):
            torch.mul(states[k], decay, out=states[k + 1]).addcmul_(inputs[k], B[k])
        return states[-1]

    def read_out(self) -> Tensor:
        """The output before the gate, ``(steps, s, d)``."""
        out = torch.matmul(self.C[:, :, :, None], self.states[1:]).flatten(2)
        return out if self.call.D is None else out.addcmul_(self.u, self.call.D)

    def differentiate(self, grad_out: Tensor, grad: Tensor, grad_A: Tensor) -> _Found:
        """Gradients of a chunk; ``grad``, of the state behind, becomes that of the state before; ``grad_A`` grows."""
        steps = len(grad_out)
        by_group, grads, scratch = self._grouped(grad_out), self.room.grads[:steps], self.room.scratch[:steps]
        grad_y, C = by_group[:, :, :, None].unbind(), self.C[..., None].unbind()
        for k, (decay, after) in reversed(list(enumerate(zip(self.decays.unbind(), grads.unbind(), strict=True)))):
            torch.mul(torch.addcmul(grad, grad_y[k], C[k], out=after), decay, out=grad)
        grad_C = torch.mul(self.states[1:], by_group[:, :, :, None], out=scratch).sum(-1)
        grad_B = torch.mul(grads, self.input[:, :, :, None], out=scratch).sum(-1)
        grad_input = torch.matmul(self.B[:, :, :, None], grads).flatten(2)
        exponents = grads.mul_(self.decays).mul_(self.states[:-1])
        grad_delta = torch.mul(exponents, self.room.rates, out=scratch).sum(3).flatten(2)
        grad_A += exponents.mul_(self._grouped(self.delta)[:, :, :, None]).sum((0, 1))
        grad_delta.addcmul_(grad_input, self.u)
        if self.call.delta_softplus:
            grad_delta.mul_(torch.sigmoid(self.raw))
        grad_u = grad_input.mul_(self.delta)
        if self.call.D is not None:
            grad_u.addcmul_(grad_out, self.call.D)
        return _Found(grad_u, grad_delta, grad_B, grad_C)

    def _grouped(self, x: Tensor) -> Tensor:
        return x.unflatten(2, self.room.rates.shape[::2])  # steps s g d/g


class _Output:
    """A map that is written chunk by chunk, like another in dtype and, unless ``dense``, in memory order."""

    def __init__(self, like: Tensor, call: ScanCall, *, dense: bool = False):
        self.call = call
        self.result = like.new_empty(like.shape) if dense else torch.empty_like(like)
        steps = _steps_first(self.result, call)
        self.steps = torch.empty_like(steps) if call.carry else steps  # to be copied: not always a view of the map

    def write(self, value: Tensor, block: _Block, first: int) -> None:
        part = _part(self.steps, self.call, block, first)
        part.copy_((value.flip(0) if self.call.reverse else value).view(part.shape))

    def map(self) -> Tensor:
        if self.call.carry:
            turned = self.result.transpose(1, 2) if self.call.axis == "h" else self.result
            turned.copy_(self.steps.movedim(0, 2).reshape(turned.shape))
        return self.result


def _length(call: ScanCall) -> int:
    _, h, w, _ = call.u.shape
    return h * w if call.carry else w if call.axis == "w" else h


def _steps_first(x: Tensor, call: ScanCall) -> Tensor:
    """``(b, h, w, ...)`` to ``(l, b, slices, ...)``, steps in the order of memory."""
    x = x.transpose(1, 2) if call.axis == "h" else x
    if call.carry:
        x = x.flatten(1, 2).unsqueeze(1)
    return x.movedim(2, 0)


def _part(steps: Tensor, call: ScanCall, block: _Block, first: int) -> Tensor:
    last = min(first + CHUNK, len(steps))
    along = slice(len(steps) - last, len(steps) - first) if call.reverse else slice(first, last)
    return steps[along, block.images, block.slices]


def _rates(call: ScanCall) -> Tensor:
    """``A`` as ``(g, n, d / g)``."""
    groups, (d, n) = call.B.shape[3], call.A.shape
    return call.A.view(groups, d // groups, n).transpose(1, 2).contiguous()


def _states_first(x: Tensor, call: ScanCall) -> Tensor:
    """``(b, slices, d, n)`` to ``(b, slices, g, n, d / g)``, contiguous."""
    groups, d = call.B.shape[3], x.shape[2]
    return x.unflatten(2, (groups, d // groups)).transpose(3, 4).contiguous()


def _states_last(x: Tensor, call: ScanCall) -> Tensor:
    """The inverse of :func:`_states_first`."""
    return x.transpose(3, 4).contiguous().view(state_shape(call))
