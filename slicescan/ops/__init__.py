"""Functions of tensors, without parameters: the selective scan of rows, columns and sequences, convolutions, norms."""

from slicescan.ops.causal_conv import causal_conv
from slicescan.ops.depthwise_conv import depthwise_conv
from slicescan.ops.dispatch import BackendError, register_backend, unregister_backend
from slicescan.ops.layer_norm import add_layer_norm, layer_norm
from slicescan.ops.selective_scan import selective_scan
from slicescan.ops.slice_scan import slice_scan

__all__ = [
    "BackendError",
    "add_layer_norm",
    "causal_conv",
    "depthwise_conv",
    "layer_norm",
    "register_backend",
    "selective_scan",
    "slice_scan",
    "unregister_backend",
]
