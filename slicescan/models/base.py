"""What every model promises: any image size in, one image of that size out, and a description that can be stored."""

import difflib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from slicescan.checkpoint import CheckpointError, load_weights, read_checkpoint, write_checkpoint
from slicescan.layers.block import one_by_one
from slicescan.layers.memory_order import ordered_like


@dataclass(frozen=True)
class WeightSource:
    """Where trained weights are.

    Attributes:
        file: File name.
        page: Page of the project that offers the file; None if it ships with this package.
        license: Terms of the weights.
    """

    file: str
    page: str | None
    license: str


@dataclass(frozen=True)
class ModelRecord:
    """What a registered model can do and costs.

    Attributes:
        name: Registered name.
        family: Name of the class or function that builds it.
        arguments: Constructor arguments that the name stands for; the class's defaults hold for the rest.
        task: What it restores.
        scale: Output size over input size.
        size_multiple: Sizes are padded to a multiple of this inside the model.
        min_size: Smallest height and width, in pixels.
        input_range: Values of a valid input.
        supports: Which of fp16, bf16, channels_last, compile, export, onnx and stream work.
        tiling: Whether restoring tiles gives the result of the whole image.
        tiling_reason: Why.
        params: Number of parameters.
        macs_256: Multiply-adds of convolutions and matrix products for one 256 x 256 image; scans are not counted.
        license: Terms of the weights that can be had; None if there are none.
        paper: Where the network was published.
        weights: Where trained weights are, those of this package first.
    """

    name: str = ""
    family: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    task: str | None = None
    scale: int = 1
    size_multiple: int = 1
    min_size: int = 1
    input_range: tuple[float, float] = (0.0, 1.0)
    supports: frozenset[str] = frozenset()
    tiling: Literal["exact", "approximate", "discouraged"] | None = None
    tiling_reason: str = ""
    params: int | None = None
    macs_256: int | None = None
    license: str | None = None
    paper: str | None = None
    weights: tuple[WeightSource, ...] = ()


class Detected(NamedTuple):
    """Constructor arguments found in a state dict, and the names of those that it leaves open."""

    arguments: dict[str, Any]
    assumed: tuple[str, ...]


class Reconstruction(NamedTuple):
    """What a network makes of its last maps: images, finest first, and the residual if it has one."""

    outputs: list[Tensor]
    residual: Tensor | None = None


class Restorer(nn.Module):
    """Base of all models: offsets, padding, cropping, checks, and reading and writing of folders.

    A subclass sets the class attributes and defines :meth:`levels` and :meth:`reconstruct`; both see an image that is
    already shifted and padded. Its constructor takes JSON-able values only; they are remembered in ``arguments``.

    Attributes:
        variants: Registered names and the constructor arguments that they stand for.
        record: What all variants have in common.
        details: Fields of the record in which a variant differs, by variant.
        costs: Parameters and multiply-adds at 256 x 256 of each variant.
        published: Files of weights that the authors offer, by variant.
        renames: Our names and the published ones, see :func:`slicescan.checkpoint.rename`.
        size_multiple: Sizes are padded to a multiple of this.
        scale: Output size over input size.
        offset: Added to the input and taken off the output.
        undecayed: Parameters that weight decay must spare, as patterns of full names.
        input_layers: Convolutions that see the image, by name; those in ``output_layers`` make it.
    """

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    record: ClassVar[ModelRecord] = ModelRecord()
    details: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    costs: ClassVar[Mapping[str, tuple[int, int]]] = {}
    published: ClassVar[Mapping[str, WeightSource]] = {}
    renames: ClassVar[Sequence[tuple[str, str]]] = ()
    offset: ClassVar[float] = 0.0
    undecayed: ClassVar[frozenset[str]] = frozenset()
    input_layers: ClassVar[Sequence[str]] = ()
    output_layers: ClassVar[Sequence[str]] = ()

    size_multiple: int = 1
    scale: int = 1
    in_chans: int = 3
    arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remember the constructor's arguments, and name those it does not know."""
        model = super().__new__(cls)
        object.__setattr__(model, "arguments", _bind(cls, args, kwargs))
        return model

    def __init__(self) -> None:
        super().__init__()
        self.grad_checkpointing = False

    # What a subclass defines

    def levels(self, x: Tensor) -> list[Tensor]:
        """The decoder's map at every level, finest first, of a shifted and padded image."""
        raise NotImplementedError(f"{type(self).__name__} does not define levels")

    def needed_levels(self, x: Tensor) -> list[Tensor]:
        """Those of ``levels``, finest first, that the finest output is made of; others need not be kept for it."""
        return self.levels(x)

    def reconstruct(self, levels: list[Tensor], x: Tensor) -> Reconstruction:
        """Images from the decoder's maps and the shifted and padded image."""
        raise NotImplementedError(f"{type(self).__name__} does not define reconstruct")

    @classmethod
    def detect(cls, state_dict: Mapping[str, Tensor]) -> Detected | None:
        """Read constructor arguments off published names and shapes; None if they are not this network's."""
        return None

    @classmethod
    def why_not_stream(cls, arguments: Mapping[str, Any]) -> str | None:
        """Why networks with these constructor arguments cannot be streamed, in words; None if they can."""
        return "it has no streamed form"

    @property
    def stream_channels(self) -> float:
        """Channels of all maps that a stream keeps whole at once, if each had the size of the image."""
        raise NotImplementedError(f"{type(self).__name__} does not define stream_channels")

    def stream_output(self, x: Tensor, rows: int) -> Tensor:
        """The finest output for a shifted and padded image, computed in strips of ``rows`` rows."""
        raise NotImplementedError(f"{type(self).__name__} does not define stream_output")

    # What a caller uses

    def forward(self, x: Tensor) -> Tensor:
        """Restore images.

        Args:
            x: ``(b, in_chans, h, w)``, RGB in [0, 1], any ``h, w >= 1``, in the precision of the weights.

        Returns:
            ``(b, out_chans, h * scale, w * scale)``, not clamped.

        Raises:
            ValueError: Rank, number of channels or dtype is wrong.
        """
        padded = self._prepare(x)
        output = self.reconstruct(self.needed_levels(padded), padded).outputs[0]
        return self._unshift(_crop(output, x, padded))

    @torch.no_grad()
    def stream(self, x: Tensor, rows: int = 64) -> Tensor:
        """Restore images as :meth:`forward` does, equal to rounding, in less memory and without gradients.

        The network passes over the image layer by layer, and each layer strip by strip: what scans and means carry
        goes from strip to strip. Only the maps between layers are kept whole.

        Args:
            x: As for :meth:`forward`.
            rows: Rows of a strip; fewer take less memory and more time.

        Returns:
            What :meth:`forward` returns.

        Raises:
            ValueError: The network cannot be streamed, or ``x`` is wrong as for :meth:`forward`.
        """
        reason = self.why_not_stream(self.arguments)
        if reason is not None:
            raise ValueError(f"this {type(self).__name__} cannot stream: {reason}; restore it whole or in tiles")
        padded = self._prepare(x)
        return self._unshift(_crop(self.stream_output(padded, rows), x, padded))

    def forward_features(self, x: Tensor) -> Tensor:
        """The decoder's last map, at the size of ``x``."""
        return self.forward_intermediates(x)[0]

    def forward_intermediates(self, x: Tensor) -> list[Tensor]:
        """The decoder's map at every level, finest first; a level of 1/2 has ``ceil(h / 2)`` rows."""
        padded = self._prepare(x)
        return [_crop(level, x, padded) for level in self.levels(padded)]

    def forward_outputs(self, x: Tensor) -> dict[str, Any]:
        """Everything a training loss may need.

        Returns:
            ``output``, as from :meth:`forward`; ``outputs``, a list, finest first; ``residual``, what the network added
            to its input, or None if it has no such thing.
        """
        padded = self._prepare(x)
        made = self.reconstruct(self.levels(padded), padded)
        outputs = [self._unshift(_crop(output, x, padded)) for output in made.outputs]
        residual = None if made.residual is None else _crop(made.residual, x, padded)
        return {"output": outputs[0], "outputs": outputs, "residual": residual}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the blocks a second time in the backward pass instead of keeping what is inside them."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Patterns (:mod:`fnmatch`) of full names of parameters that weight decay must spare."""
        return set(self.undecayed)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Regular expressions that sort parameters by depth, for rates that differ from layer to layer.

        Args:
            coarse: One group for each stage instead of one for each block.
        """
        return {
            name: rf"^{name}\." + (r"(\d+)" if "0" in dict(child.named_children()) and not coarse else "")
            for name, child in self.named_children()
            if next(child.parameters(), None) is not None
        }

    @property
    def architecture(self) -> str:
        """Registered name which, with ``arguments``, rebuilds this model."""
        for name, given in self.variants.items():
            if self.arguments == _bind(type(self), (), given):
                return name
        return next(iter(self.variants), type(self).__name__)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``config.json`` (architecture and arguments) to a folder, made if need be."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"library_name": "slicescan", "architecture": self.architecture, "arguments": self.arguments}
        write_checkpoint(folder / "model.safetensors", self)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, revision: str | None = None) -> Self:
        """Rebuild a model from a folder written by :meth:`save_pretrained`, or from a repository of the hub.

        Args:
            name_or_path: A folder; or ``owner/name``, for which the package ``huggingface_hub`` is needed.
            revision: Branch, tag or commit of the repository.

        Returns:
            The model, in evaluation mode.

        Raises:
            FileNotFoundError: There is no such folder, and it cannot be the name of a repository.
            CheckpointError: The folder holds another model.
            ImportError: A repository is named, but the ``hub`` extra is not installed.
        """
        folder = Path(name_or_path)
        if not folder.is_dir():
            folder = _fetch(str(name_or_path), revision)
        found = read_checkpoint(folder)
        if found.architecture not in (*cls.variants, cls.__name__):
            raise CheckpointError(f"{folder}: holds {found.architecture or 'no named model'}, not a {cls.__name__}")
        model = cls(**(found.arguments or {}))
        load_weights(model, found.state_dict, folder)
        return model.eval()

    # Helpers of subclasses

    def run_blocks(self, blocks: nn.Module, x: Tensor | list[Tensor]) -> Tensor:
        """Run a stage; with gradient checkpointing, keep only what passes from block to block.

        ``x`` may be a list of one map, which is emptied: the map is then freed as early as may be.
        """
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            return one_by_one(blocks, x)
        refined = x.pop() if isinstance(x, list) else x
        for block in blocks.children():
            refined = checkpoint(block, refined, use_reentrant=False)
        return refined

    def pad(self, x: Tensor) -> Tensor:
        """Extend right and bottom to ``size_multiple``: reflect, or repeat the edge where the image is too small."""
        h, w = x.shape[2:]
        right, bottom = -w % self.size_multiple, -h % self.size_multiple
        if right:
            x = F.pad(x, (0, right, 0, 0), mode="reflect" if right < w else "replicate")
        if bottom:
            x = F.pad(x, (0, 0, 0, bottom), mode="reflect" if bottom < h else "replicate")
        return x

    def _prepare(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.in_chans or 0 in x.shape[2:]:
            raise ValueError(self._refusal("", "", x))
        weight = next(self.parameters(), None)
        fits = x.is_floating_point() and (weight is None or x.dtype == weight.dtype)
        if not fits and not (x.is_floating_point() and torch.is_autocast_enabled(x.device.type)):
            wanted = "floating point" if weight is None else weight.dtype
            raise ValueError(self._refusal(f"{wanted} ", f"{x.dtype} ", x))
        return self.pad(x + self.offset if self.offset else x)

    def _refusal(self, wanted: str, received: str, x: Tensor) -> str:
        expected = f"{type(self).__name__} expects {wanted}(b, {self.in_chans}, h, w) with h, w >= 1"
        return f"{expected}, got {received}{tuple(x.shape)}"

    def _unshift(self, y: Tensor) -> Tensor:
        return y - self.offset if self.offset else y


def _crop(y: Tensor, x: Tensor, padded: Tensor) -> Tensor:
    """The part of ``y``, made from ``padded``, that belongs to ``x``, partial pixels included, in its memory order."""
    h, w = (
        -(-size * made // whole) for size, made, whole in zip(x.shape[2:], y.shape[2:], padded.shape[2:], strict=True)
    )
    return ordered_like(y[:, :, :h, :w], x)


def _bind(cls: type, args: Iterable[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All constructor arguments, defaults included, as JSON gives them back."""
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    known = [name for name in signature.parameters if name != "self"]
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        for name in kwargs:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"it takes {', '.join(known)}"
                raise TypeError(f"{cls.__name__} has no argument {name!r}; {hint}")
    bound = signature.bind_partial(None, *args, **kwargs)
    bound.apply_defaults()
    values = {name: value for name, value in bound.arguments.items() if name != "self"}
    for name, value in values.items():
        try:
            values[name] = json.loads(json.dumps(value))
        except TypeError as error:
            raise TypeError(f"{cls.__name__}: {name} must be a JSON value, got {type(value).__name__}") from error
    return values


def _fetch(name: str, revision: str | None) -> Path:
    """Download a repository of the hub; only for names that can be one."""
    if name.count("/") != 1 or "\\" in name or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise FileNotFoundError(f"{name}: no such folder")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f"{name}: no such folder; to fetch it from the hub, install the 'hub' extra: pip install 'slicescan[hub]'"
        ) from error
    return Path(snapshot_download(name, revision=revision, allow_patterns=["model.safetensors", "config.json"]))
