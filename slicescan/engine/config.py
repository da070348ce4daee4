"""Recipes of training runs: frozen dataclasses read from TOML files, one file for each run."""

import dataclasses
import difflib
import os
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class ModelSection:
    """Which network.

    Attributes:
        name: A registered name.
        arguments: Constructor arguments that replace those of the name.
        weights: File to start from, or ``pretrained`` for those of the package; empty for random weights.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""


@dataclass(frozen=True)
class Stage:
    """Patches from one step on, for training that begins with small ones."""

    step: int
    patch: int
    batch: int


@dataclass(frozen=True)
class DataSection:
    """Pictures, and what is cut from them: sharp photographs that are blurred here, or pairs.

    Attributes:
        photos: Folder of sharp photographs to learn from, searched with its subfolders.
        validation: Folder of photographs, or of pairs, to measure on; empty for none.
        patch: Side of a training patch, in pixels.
        batch: Patches in a batch.
        progressive: Other patches and batches, each from a step on, in the order of steps.
        shrink: Photographs: a patch is cut from one shrunk by a factor between 1 and this.
        words: Photographs: share of patches on which a word is drawn.
        pairs: Data set of pairs to learn from instead of photographs, see :func:`slicescan.engine.data.find_sets`.
        sharp: Pairs: folder of the sharp pictures, if ``pairs`` holds only the blurred ones.
        split: Pairs: which part of the data set, where names tell.
        variant: Pairs: which of GoPro's blurred pictures, where both are there.
        frames: Pairs: average this odd number of video frames to one blurred picture; 0 if they are blurred already.
        frame_gamma: Pairs: power of display under which frames are averaged; 1 for none.
        channels: Pairs: order of the colours that the network sees.
        flips: Pairs: mirror half of the patches left to right, and half top to bottom.
        quarter_turns: Pairs: share of patches turned by 90 degrees.
        short_last: Pairs: the last batch of an epoch holds what is left, instead of beginning the next epoch.
        memory: GiB of pictures kept in memory; more are read again when they are needed. Of up to 1000 photographs that
            fit, each is drawn in proportion to its pixels; of more, each as often as another.
        measured: Pairs of ``validation`` that are measured, evenly spread; 0 for all.
        workers: Threads of a process that read pictures; 0 for one a core, of several processes on a
            host each its share, but at most 16.
    """

    photos: str = ""
    validation: str = ""
    patch: int = 192
    batch: int = 16
    progressive: tuple[Stage, ...] = ()
    shrink: float = 2.0
    words: float = 0.1
    pairs: str = ""
    sharp: str = ""
    split: str = "train"
    variant: Literal["blur", "blur_gamma"] = "blur"
    frames: int = 0
    frame_gamma: float = 2.2
    channels: Literal["rgb", "bgr"] = "rgb"
    flips: bool = True
    quarter_turns: float = 0.5
    short_last: bool = False
    memory: float = 4.0
    measured: int = 50
    workers: int = 0

    def __post_init__(self) -> None:
        if self.photos and self.pairs:
            raise ValueError("photos and pairs are two kinds of pictures to learn from: name one of them")
        if self.sharp and self.frames:
            raise ValueError("sharp and frames do not go together: of averaged frames the middle one is sharp")
        steps = [stage.step for stage in self.progressive]
        if steps != sorted(set(steps)) or min(steps, default=1) < 1:
            raise ValueError(f"progressive: steps must grow from 1 on, got {steps}")
        if self.progressive and self.short_last:
            raise ValueError("progressive and short_last do not go together: epochs would change their length")

    def threads(self) -> int:
        """How many threads read pictures."""
        cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return self.workers or min(16, max(1, cores))

    def size_at(self, step: int) -> tuple[int, int]:
        """Side of the patches, and patches in the batch, of a step.

        Example:
            >>> data = DataSection(patch=128, batch=8, progressive=(Stage(10, 192, 4),))
            >>> data.size_at(9), data.size_at(10), data.items_before(12)
            ((128, 8), (192, 4), 88)
        """
        begun = [stage for stage in self.progressive if stage.step <= step]
        return (begun[-1].patch, begun[-1].batch) if begun else (self.patch, self.batch)

    def items_before(self, step: int) -> int:
        """How many patches the steps before this one saw."""
        stages = [Stage(0, self.patch, self.batch), *self.progressive]
        ends = [*(stage.step for stage in self.progressive), step]
        return sum(stage.batch * max(0, min(end, step) - stage.step) for stage, end in zip(stages, ends, strict=True))


@dataclass(frozen=True)
class BlurSection:
    """Synthetic motion blur, see :class:`slicescan.engine.blur.SyntheticMotionBlur`.

    Attributes:
        positions: Camera positions averaged into one exposure.
        extent: Smallest and largest extent of the path, in pixels.
        rotation: Largest rotation to either side during the exposure, in radians.
        still: Share of patches with an extent below one pixel, so that sharp photographs stay as they are.
        straight: Share of straight paths.
        uniform: Share of patches without rotation.
        turning: Share of patches whose motion is a rotation about one of their points, and nothing else.
        noise: Largest standard deviation of the noise, in units of [0, 1].
        highlights: Share of patches whose brightest parts are made brighter than white before the exposure.
        jpeg: Share of patches compressed with a JPEG quality drawn from ``jpeg_quality``.
        jpeg_quality: Smallest and largest quality.
    """

    positions: int = 25
    extent: tuple[float, float] = (1.0, 16.0)
    rotation: float = 0.006
    still: float = 0.1
    straight: float = 0.2
    uniform: float = 0.3
    turning: float = 0.0
    noise: float = 0.01
    highlights: float = 0.15
    jpeg: float = 0.15
    jpeg_quality: tuple[float, float] = (60.0, 95.0)


@dataclass(frozen=True)
class LossSection:
    """Weights of the terms of the loss, see :mod:`slicescan.engine.losses`.

    Attributes:
        charbonnier: Of the smooth L1 distance.
        edge: Of the distance of Laplacian details.
        frequency: Of the L1 distance of Fourier transforms.
        psnr: Of the negative PSNR.
        contrast: Of the contrastive term in VGG-19's features; left out, with a line that says so, without its weights.
        vgg: File with the weights of VGG-19; empty for torchvision's cache.
        every_output: Compare every output of a network of several scales, not only the finest.
    """

    charbonnier: float = 1.0
    edge: float = 0.05
    frequency: float = 0.0
    psnr: float = 0.0
    contrast: float = 0.0
    vgg: str = ""
    every_output: bool = False

    def __post_init__(self) -> None:
        if self.contrast and self.every_output:
            raise ValueError("contrast and every_output do not go together: the contrastive term has one scale")


@dataclass(frozen=True)
class OptimizerSection:
    """AdamW with linear warm-up and a cosine to ``final_rate``.

    Attributes:
        rate: Learning rate after warm-up.
        final_rate: Learning rate at the last step.
        warmup: Steps of warm-up.
        hold: Steps for which a rate is held: those of an epoch, for a schedule by epochs.
        betas: Decays of the two moments.
        weight_decay: Applied to all but the parameters that the model spares.
        clip: Largest norm of the gradient; 0 for no limit.
        ema_decay: Decay of the exponential moving average of the weights, ``params_ema``, which is what is measured and
            shipped; 0 for the weights themselves.
    """

    rate: float = 1e-3
    final_rate: float = 1e-6
    warmup: int = 500
    hold: int = 1
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema_decay: float = 0.999


@dataclass(frozen=True)
class Recipe:
    """A training run.

    Attributes:
        model: The network.
        data: The pictures.
        blur: What makes them blurred.
        loss: What is minimised.
        optimizer: How.
        iterations: Steps of the whole run.
        seed: Draws of weights and data.
        accumulate: Pieces into which a batch, of several processes the share of each, is cut, one after the other on
            the device, to save memory. The loss is the mean over pieces and processes; what a network or a loss takes
            over a batch, it takes over a piece.
        amp: Precision of the forward pass; weights, loss and gradients stay float32. With ``fp16`` the loss is scaled,
            by a factor that falls with every skipped step and grows slowly.
        cuda_graph: Capture a step once and replay it, on a GPU; of several processes if their shares are equal.
        recompute: On a GPU, let the gradients of large maps compute anew what is cheap: it saves half of the memory and
            takes a little time. Layers that have such a switch are set to this.
        deterministic: Choose algorithms whose results do not change from run to run.
        log_every: Steps between lines of the log.
        validate_every: Steps between measurements.
        save_every: Steps between checkpoints.
        samples: Held-out pictures on the sheet that every measurement draws: input, output, sharp; 0 for no sheet.
        tensorboard: Write the log for TensorBoard too, if it is installed.
    """

    model: ModelSection
    data: DataSection = DataSection()
    blur: BlurSection = BlurSection()
    loss: LossSection = LossSection()
    optimizer: OptimizerSection = OptimizerSection()
    iterations: int = 100_000
    seed: int = 0
    accumulate: int = 1
    amp: Literal["none", "bf16", "fp16"] = "none"
    cuda_graph: bool = False
    recompute: bool = True
    deterministic: bool = False
    log_every: int = 100
    validate_every: int = 2000
    save_every: int = 2000
    samples: int = 4
    tensorboard: bool = True

    def __post_init__(self) -> None:
        if self.cuda_graph and self.data.short_last:
            raise ValueError("cuda_graph needs batches of one size, without data.short_last")
        if not 1 <= self.accumulate <= self.data.batch:
            raise ValueError(f"accumulate: expected 1 to data.batch = {self.data.batch}, got {self.accumulate}")


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no TOML, or has a key or value that a recipe does not know; the message has the nearest.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such recipe")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a TOML file ({error})") from error
    return _section(Recipe, table, f"{path}: ")


RECIPES = Path(__file__).parent.parent / "recipes"
"""Recipes that ship with the package."""


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or the name of one of the package's.

    Raises:
        FileNotFoundError: It is neither; the message names the package's recipes.

    Example:
        >>> find_recipe("xyscannet_tiny").name
        'xyscannet_tiny.toml'
    """
    shipped = sorted(file.stem for file in RECIPES.glob("*.toml"))
    if name in shipped:
        return RECIPES / f"{name}.toml"
    if not Path(name).is_file():
        raise FileNotFoundError(f"{name}: no such recipe; in the package: {', '.join(shipped)}")
    return Path(name)


def _section(kind: type, table: Mapping[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    for key in table:
        if key not in hints:
            nearest = difflib.get_close_matches(key, hints, n=1, cutoff=0.4)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(hints)}"
            raise ValueError(f"{where}unknown key {key!r}; {hint}")
    missing = [
        entry.name
        for entry in dataclasses.fields(kind)
        if entry.default is dataclasses.MISSING
        and entry.default_factory is dataclasses.MISSING
        and entry.name not in table
    ]
    if missing:
        raise ValueError(f"{where}the key {missing[0]!r} is missing")
    values = {key: _value(hints[key], value, f"{where}{key}") for key, value in table.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: expected a table, got {value!r}")
        return _section(hint, value, f"{where}.")  # type: ignore[arg-type]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where}: expected one of {', '.join(map(repr, arguments))}, got {value!r}")
        return value
    if origin is tuple and arguments[-1] is Ellipsis:
        if not isinstance(value, list):
            raise ValueError(f"{where}: expected a list, got {value!r}")
        return tuple(_value(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is tuple:
        if not isinstance(value, list) or len(value) != len(arguments):
            raise ValueError(f"{where}: expected {len(arguments)} values, got {value!r}")
        return tuple(_value(kind, item, where) for kind, item in zip(arguments, value, strict=True))
    kind = Mapping if origin is not None and not isinstance(origin, types.GenericAlias) else hint
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where}: expected {getattr(kind, '__name__', str(kind)).lower()}, got {value!r}")
    return value
