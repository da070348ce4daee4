"""Pairs of blurred and sharp pictures: data sets as published and re-packed, averaged frames, random patches."""

from slicescan.engine.data.frames import average, frame_sets
from slicescan.engine.data.layouts import PairSet, choose, find_sets, pair_folders
from slicescan.engine.data.patches import PairPatches
from slicescan.engine.data.pictures import DataError, File, Pair

__all__ = [
    "DataError",
    "File",
    "Pair",
    "PairPatches",
    "PairSet",
    "average",
    "choose",
    "find_sets",
    "frame_sets",
    "pair_folders",
]
