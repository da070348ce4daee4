"""Backends of the scan, one module each. ``ALL`` lists them, fastest first; :mod:`slicescan.ops.dispatch` reaches them.

A module says ``why_not(call) -> str | None``: None if it can run the call, else a sentence for the user. It has

- ``forward(call, *, save) -> (y, last_state, saved)``: ``y`` like ``u``, the states after the last step, and, with
  ``save``, what its backward pass wants to find, in one tensor;
- ``saved_spec(call) -> (shape, dtype)`` of that tensor, from shapes alone;
- ``backward(call, saved, grad_y, grad_last) -> Gradients``;
- perhaps ``fuses_steps(call, direction) -> bool``: whether a pass takes a call with ``delta_weight`` as it is.
  Otherwise :mod:`slicescan.ops.low_rank` projects the steps first, so that a pass meets one step a channel;
- perhaps ``backward_into(call, saved, grad_y, grad_last, into) -> Gradients``: what ``backward`` returns, but that it
  writes the gradients named in ``into`` to their place there. Otherwise they are copied.
"""

ALL = ("cuda", "triton", "mamba_ssm", "cpu", "torch", "reference")
