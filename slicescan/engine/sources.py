"""The pictures of a recipe: what a run learns from, and what it is measured on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from slicescan.engine.ahead import Source
from slicescan.engine.blur import SyntheticMotionBlur
from slicescan.engine.config import DataSection, Recipe
from slicescan.engine.data import choose, find_sets, frame_sets, pair_folders
from slicescan.engine.data.layouts import choose_held_out
from slicescan.engine.data.patches import PairPatches
from slicescan.engine.pictures import open_pictures, read_pictures
from slicescan.engine.quality import BlurredCrops, HeldOut, HeldOutPairs


def open_source(recipe: Recipe, device: torch.device) -> Source:
    """The batches of a recipe: patches of pairs, or of photographs blurred here.

    Raises:
        FileNotFoundError: A folder is missing.
        ValueError: The recipe names no pictures, they do not fit together, or one cannot be read.
    """
    data = recipe.data
    if data.pairs and data.frames:
        chosen = choose(frame_sets(data.pairs, data.frames, data.frame_gamma), data.split)
    elif data.pairs and data.sharp:
        chosen = choose([pair_folders(data.pairs, data.sharp)], data.split)
    elif data.pairs:
        chosen = choose(find_sets(data.pairs), data.split, data.variant)
    elif data.photos:
        photos = open_pictures(data.photos, data.memory)
        return SyntheticMotionBlur(photos, data, recipe.blur, seed=recipe.seed, device=device)
    else:
        raise ValueError(
            "the recipe names no pictures: pass photos=, or --photos on the command line, a folder of photographs "
            "to blur; or pairs=, or --pairs, a data set of blurred and sharp pictures"
        )
    return PairPatches(chosen.pairs, data, seed=recipe.seed, device=device)


def open_held_out(data: DataSection) -> Sequence[HeldOut]:
    """What a network is measured on, blurred and sharp, read when it is needed; nothing without ``validation``."""
    if not data.validation:
        return ()
    if not data.pairs:
        return BlurredCrops(read_pictures(data.validation))
    pairs = choose_held_out(find_sets(data.validation), data.variant).pairs
    return HeldOutPairs(pairs[:: -(-len(pairs) // data.measured)] if data.measured else pairs)


def with_folders(
    data: DataSection, photos: str | Path | None, pairs: str | Path | None, validation: str | Path | None
) -> DataSection:
    """The data of a recipe with the folders that the caller names in place of its own."""
    if photos and pairs:
        raise ValueError("photos= and pairs= are two kinds of pictures to learn from: pass one of them")
    if photos:
        data = replace(data, photos=str(photos), pairs="", sharp="", frames=0)
    if pairs:
        data = replace(data, pairs=str(pairs), photos="", sharp="")
    return replace(data, validation=str(validation)) if validation else data
