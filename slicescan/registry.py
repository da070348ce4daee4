"""Model names: which class and arguments each stands for, how to build it, and how to open a file of weights."""

import difflib
import fnmatch
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from slicescan.checkpoint import Checkpoint, CheckpointError, load_weights, read_checkpoint
from slicescan.detection import detect
from slicescan.models.base import ModelRecord, Restorer, WeightSource
from slicescan.models.mambair import MambaIR, MambaIRUNet
from slicescan.models.mimo_unet import MIMOUNet
from slicescan.models.nafnet import NAFNet
from slicescan.models.restormer import Restormer
from slicescan.models.xyscannet import XYScanNet

FAMILIES: tuple[type[Restorer], ...] = (XYScanNet, NAFNet, Restormer, MIMOUNet, MambaIR, MambaIRUNet)
"""Classes of this package; the names of their models are data, in ``variants``."""

WEIGHTS = Path(__file__).parent / "weights"
"""Weights that ship with the package, ``<name>.safetensors``."""

Entry = TypeVar("Entry", bound=Callable[..., nn.Module])

_outside: dict[str, Callable[..., nn.Module]] = {}
_log = logging.getLogger("slicescan")


def create_model(
    model_name: str,
    pretrained: bool = False,
    pretrained_cfg: Mapping[str, Any] | None = None,
    checkpoint_path: str | Path = "",
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a model by name.

    Args:
        model_name: One of :func:`list_models`.
        pretrained: Load trained weights: those that ship with the package, else the published file from ``cache_dir``.
            Nothing is downloaded. With ``in_chans=1``, colour weights become those of the same network on grey images.
        pretrained_cfg: Where to take the weights from instead: ``{"file": path}`` or ``{"state_dict": weights}``.
        checkpoint_path: File of weights that must fit exactly; it takes the place of ``pretrained``.
        cache_dir: Folder with published files; by default the ``checkpoints`` folder of :func:`torch.hub.get_dir`.
        **kwargs: Constructor arguments that replace those of the name; None leaves the default.

    Returns:
        The model, in training mode.

    Raises:
        ValueError: There is no model of that name; the message has the nearest ones.
        TypeError: The model has no such argument.
        FileNotFoundError: The weights are not there; the message says where to get them.
        CheckpointError: The file cannot be used, or belongs to another model.

    Example:
        >>> create_model("xyscannet_tiny", blocks=(1, 1, 1))(torch.rand(1, 3, 5, 9)).shape
        torch.Size([1, 3, 5, 9])
    """
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    build = _find(model_name)
    if model_name in _outside and not isinstance(build, type):
        passed = {"pretrained_cfg": pretrained_cfg, "cache_dir": cache_dir}
        passed = {name: value for name, value in passed.items() if value is not None}
        model = build(pretrained=pretrained and not checkpoint_path, **passed, **kwargs)
    else:
        model = build(**{**_variants(build).get(model_name, {}), **kwargs})
        if pretrained and not checkpoint_path:
            found = _pretrained(model_name, pretrained_cfg, cache_dir)
            _fill(model, model_name, found, kwargs, adapt="in_chans" in kwargs)
    if checkpoint_path:
        _fill(model, model_name, read_checkpoint(checkpoint_path), kwargs)
    return model


def load(path: str | Path, **kwargs: Any) -> nn.Module:
    """Open a file of weights: the architecture and its arguments come from the file.

    Files written by this package say what they hold. For others the names and shapes of the weights tell; arguments
    that these leave open take their defaults, and one line of the log ``slicescan`` names them.

    Args:
        path: safetensors, a PyTorch file, or a folder written by ``save_pretrained``.
        **kwargs: Constructor arguments that replace those found.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file cannot be used, or fits no model.
        TypeError: The model has no such argument.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     create_model("xyscannet_tiny", dim=8, blocks=(1, 1, 1)).save_pretrained(folder)
        ...     load(folder).arguments["dim"]
        8
    """
    found = read_checkpoint(path)
    if found.stripped:
        _log.info("%s: weights found inside %s", path, " ".join(found.stripped))
    if found.architecture is not None and found.arguments is not None:
        if not is_model(found.architecture):
            raise CheckpointError(f"{path}: {_unknown(found.architecture)}")
        build, arguments = _find(found.architecture), dict(found.arguments)
    else:
        build, (arguments, assumed) = detect(found, FAMILIES, _outside.values())
        left_open = [name for name in assumed if name not in kwargs]
        if left_open:
            _log.warning("%s: %s; the file leaves open %s: default taken", path, build.__name__, ", ".join(left_open))
    try:
        model = build(**{**arguments, **kwargs})
    except (TypeError, ValueError) as error:
        if kwargs:
            raise
        raise CheckpointError(f"{path}: {error}") from error
    load_weights(model, found.state_dict, path)
    return model.eval()


def list_models(
    filter: str | Iterable[str] = "",
    *,
    pretrained: bool = False,
    exclude_filters: str | Iterable[str] = "",
    supports: str | Iterable[str] = (),
    task: str | None = None,
) -> list[str]:
    """Names of models, in natural order.

    Args:
        filter: Patterns with ``*`` and ``?``; a name that fits any is listed.
        pretrained: Only those whose weights ship with the package.
        exclude_filters: Patterns of names to leave out.
        supports: Only those that can do all of these, see :class:`~slicescan.models.base.ModelRecord`.
        task: Only those that restore this.

    Example:
        >>> list_models("xyscannet_small_*", exclude_filters="*_skip")
        ['xyscannet_small_aff', 'xyscannet_small_inter', 'xyscannet_small_intra', 'xyscannet_small_mambair']
    """
    include, exclude = _patterns(filter), _patterns(exclude_filters)
    wanted = {supports} if isinstance(supports, str) else set(supports)
    chosen = []
    for name in _builders():
        record = model_entry(name)
        if (
            (not include or any(fnmatch.fnmatchcase(name, pattern) for pattern in include))
            and not any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude)
            and (not pretrained or _packaged(name).is_file())
            and wanted <= record.supports
            and (task is None or task == record.task)
        ):
            chosen.append(name)
    return sorted(chosen, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def list_pretrained() -> list[str]:
    """Names of models whose trained weights ship with the package.

    Example:
        >>> "xyscannet_tiny" in list_pretrained()
        True
    """
    return list_models(pretrained=True)


def is_model(model_name: str) -> bool:
    """Whether there is a model of that name.

    Example:
        >>> is_model("restormer"), is_model("restormers")
        (True, False)
    """
    return model_name in _builders()


def model_entry(model_name: str) -> ModelRecord:
    """What a model can do and costs.

    Raises:
        ValueError: There is no model of that name.

    Example:
        >>> model_entry("xyscannet_plus").params
        63514368
    """
    build = _find(model_name)
    if not (isinstance(build, type) and issubclass(build, Restorer)):
        return ModelRecord(name=model_name, family=build.__name__)
    weights = [build.published[model_name]] if model_name in build.published else []
    if _packaged(model_name).is_file():
        weights.insert(0, WeightSource(_packaged(model_name).name, None, "Apache-2.0"))
    arguments = dict(build.variants.get(model_name, {}))
    params, macs = build.costs.get(model_name, (None, None))
    streams = {"stream"} if build.why_not_stream(arguments) is None else set()
    return replace(
        build.record,
        **{
            "name": model_name,
            "family": build.__name__,
            "arguments": arguments,
            "supports": build.record.supports | streams,
            "scale": arguments.get("scale", build.scale),
            "size_multiple": build.size_multiple,
            "params": params,
            "macs_256": macs,
            "license": weights[0].license if weights else None,
            "weights": tuple(weights),
            **build.details.get(model_name, {}),
        },
    )


def register_model(entry: Entry) -> Entry:
    """Give a model from outside the package a name here; usable as a decorator.

    Args:
        entry: A function ``(pretrained=False, **kwargs)`` that returns a module, whose name becomes the model's; or a
            model class, which brings its ``variants`` or, without any, its own name.

    Returns:
        The entry. Registering it again, or its reloaded self, changes nothing.

    Raises:
        ValueError: The name is taken by something else.

    Example:
        >>> @register_model
        ... def doubler(pretrained=False, **kwargs):
        ...     return nn.Upsample(scale_factor=2)
        >>> is_model("doubler"), create_model("doubler")(torch.rand(1, 3, 4, 4)).shape
        (True, torch.Size([1, 3, 8, 8]))
        >>> unregister_model("doubler")
    """
    names = list(_variants(entry)) or [entry.__name__]
    for name in names:
        taken = _builders().get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (entry.__module__, entry.__qualname__):
            raise ValueError(f"the name {name!r} is taken by {taken.__module__}.{taken.__qualname__}")
    if entry not in FAMILIES:
        _outside.update(dict.fromkeys(names, entry))
    return entry


def unregister_model(name: str) -> None:
    """Forget a name that :func:`register_model` added; any other name changes nothing.

    Example:
        >>> @register_model
        ... def doubler(pretrained=False, **kwargs):
        ...     return nn.Upsample(scale_factor=2)
        >>> unregister_model("doubler")
        >>> is_model("doubler")
        False
    """
    _outside.pop(name, None)


def _builders() -> dict[str, Callable[..., nn.Module]]:
    return {name: family for family in FAMILIES for name in family.variants} | _outside


def _find(model_name: str) -> Callable[..., nn.Module]:
    builders = _builders()
    if model_name not in builders:
        raise ValueError(_unknown(model_name))
    return builders[model_name]


def _unknown(model_name: str) -> str:
    if any(sign in model_name for sign in "/\\:"):
        return f"{model_name!r} is not the name of a model; open a file or folder with slicescan.load(path)"
    nearest = difflib.get_close_matches(model_name, list(_builders()), n=3, cutoff=0.4)
    hint = f"nearest: {', '.join(nearest)}; " if nearest else ""
    return f"unknown model {model_name!r}; {hint}list_models() names all {len(_builders())}"


def _variants(build: Callable[..., nn.Module]) -> Mapping[str, Mapping[str, Any]]:
    return getattr(build, "variants", {}) if isinstance(build, type) else {}


def _patterns(given: str | Iterable[str]) -> list[str]:
    return [pattern for pattern in ([given] if isinstance(given, str) else given) if pattern]


def _packaged(model_name: str) -> Path:
    return WEIGHTS / f"{model_name}.safetensors"


def _pretrained(model_name: str, config: Mapping[str, Any] | None, cache_dir: str | Path | None) -> Checkpoint:
    """The weights that ``pretrained=True`` means."""
    if config is not None:
        if set(config) == {"state_dict"}:
            return Checkpoint(Path("pretrained_cfg"), dict(config["state_dict"]))
        if set(config) == {"file"}:
            return read_checkpoint(config["file"])
        raise ValueError(
            f"pretrained_cfg is {{'file': path}} or {{'state_dict': weights}}, got the keys {sorted(config)}"
        )
    if _packaged(model_name).is_file():
        return read_checkpoint(_packaged(model_name))
    folder = Path(cache_dir) if cache_dir else Path(torch.hub.get_dir()) / "checkpoints"
    sources = model_entry(model_name).weights
    for source in sources:
        if (folder / source.file).is_file():
            return read_checkpoint(folder / source.file)
    if not sources:
        ready = ", ".join(list_pretrained()) or "none"
        raise FileNotFoundError(
            f"there are no trained weights for {model_name}; models with weights in the package: {ready}"
        )
    source = sources[0]
    raise FileNotFoundError(
        f"the weights of {model_name} are not part of this package: get {source.file} from {source.page} (license: "
        f"{source.license}), then pass checkpoint_path=<the file>, or put it into {folder}"
    )


def _fill(model: nn.Module, name: str, found: Checkpoint, chosen: Mapping[str, Any], *, adapt: bool = False) -> None:
    """Load a file into a model made by name, unless the file says that it is another model's.

    Arguments that leave no trace in the weights must agree too, but for those that the caller chose.
    """
    if found.architecture is not None and is_model(found.architecture):
        build = _find(found.architecture)
        if build is not _find(name):
            raise CheckpointError(f"{found.path}: holds a {build.__name__}, {name} is a {_find(name).__name__}")
    if differing := _differing(found.arguments or {}, model, chosen):
        raise CheckpointError(f"{found.path}: {differing} in {name}; slicescan.load(path) follows the file")
    try:
        load_weights(model, _grey(model, found.state_dict) if adapt else found.state_dict, found.path)
    except CheckpointError as error:
        hint = ""
        with suppress(CheckpointError):
            family, detected = detect(found, FAMILIES, _outside.values())
            hint = f"; it seems to hold a {family.__name__}"
            if family is _find(name) and (differing := _differing(detected.arguments, model, chosen)):
                hint += f", {differing} in {name}"
        raise CheckpointError(f"{error}{hint}") from error


def _differing(arguments: Mapping[str, Any], model: nn.Module, chosen: Iterable[str]) -> str:
    """Which of a file's arguments disagree with the model's own; None on either side agrees with anything."""
    own = getattr(model, "arguments", {})
    return ", ".join(
        f"{key}={value!r} instead of {own[key]!r}"
        for key, value in arguments.items()
        if key not in chosen and value is not None and own.get(key) not in (None, value)
    )


def _grey(model: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a one-channel model that does to a grey image what the colour model does, averaged over its output."""
    state = dict(state_dict)
    if isinstance(model, Restorer) and model.in_chans == 1:
        for key in state:
            if key.rpartition(".")[0] in model.output_layers:
                state[key] = state[key].mean(0, keepdim=True)
            elif key in {f"{layer}.weight" for layer in model.input_layers}:
                colours = state[key].shape[1] - model.get_parameter(key).shape[1] + 1  # the rest are features
                state[key] = torch.cat([state[key][:, :colours].sum(1, keepdim=True), state[key][:, colours:]], 1)
    return state
