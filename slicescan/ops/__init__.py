"""Functions on tensors without parameters: the selective scan along rows, columns and sequences, and convolutions."""

from slicescan.ops.causal_conv import causal_conv
from slicescan.ops.depthwise_conv import depthwise_conv
from slicescan.ops.dispatch import BackendError, register_backend, unregister_backend
from slicescan.ops.selective_scan import selective_scan
from slicescan.ops.slice_scan import slice_scan

__all__ = [
    "BackendError",
    "causal_conv",
    "depthwise_conv",
    "register_backend",
    "selective_scan",
    "slice_scan",
    "unregister_backend",
]
