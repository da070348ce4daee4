"""Files of weights: safe reading, unwrapping, renaming, strict matching, atomic writing."""

from slicescan.checkpoint.error import CheckpointError
from slicescan.checkpoint.match import load_weights, rename
from slicescan.checkpoint.read import Checkpoint, read_checkpoint
from slicescan.checkpoint.shapes import Shapes
from slicescan.checkpoint.write import write_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Shapes",
    "load_weights",
    "read_checkpoint",
    "rename",
    "write_checkpoint",
]
