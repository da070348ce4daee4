"""Measure a network, or images that were restored elsewhere, on a data set by a named protocol."""

import hashlib
import importlib.metadata
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicescan import __version__
from slicescan.engine.data import File, Pair, find_sets
from slicescan.engine.data.layouts import PairSet, choose
from slicescan.engine.data.pictures import DataError
from slicescan.engine.journal import Journal
from slicescan.engine.measure import FAILURES, as_bytes, measure, open_distances, reason
from slicescan.engine.metrics import Protocol, find_protocol, quantize
from slicescan.engine.metrics.catalogue import METRICS
from slicescan.engine.metrics.distribution import measure_sets
from slicescan.engine.metrics.perceptual import MetricUnavailable
from slicescan.engine.photos import Photo, write_photo
from slicescan.engine.restore import restore
from slicescan.engine.restored import find_restored, saved_name
from slicescan.engine.results import Results, Row, merge, write_results
from slicescan.ops import dispatch

Restore = Callable[[Pair], tuple[Tensor, float | None]]
"""A pair to its restored image, uint8 ``(3, h, w)``, and the seconds that took."""

IMAGES = "images"
"""Folder of restored images beside the results."""

PACKAGES = (
    "numpy",
    "pillow",
    "opencv-python-headless",
    "lpips",
    "stlpips-pytorch",
    "DISTS-pytorch",
    "torch-fidelity",
)
"""Packages whose versions are recorded."""


def evaluate(
    restorer: nn.Module | str | Path,
    data: str | Path,
    protocol: str = "plain",
    *,
    out: str | Path,
    metrics: Sequence[str] | None = None,
    split: str = "test",
    variant: str = "blur",
    mode: Literal["auto", "whole", "stream", "tile"] = "whole",
    tile: int | None = None,
    overlap: int | None = None,
    ensemble: bool = False,
    amp: Literal["bf16", "fp16"] | None = None,
    save: bool = False,
    shard: tuple[int, int] = (0, 1),
    patch: tuple[int, int] | None = None,
    weights: str | Path | None = None,
    facts: Mapping[str, Any] | None = None,
    progress: Callable[[Row], None] | None = None,
) -> Results:
    """Measure a network or a folder of restored images, and write the figures of every image and their means.

    Every image is restored whole unless told otherwise, rounded to 8 bits as it is saved, and measured by the protocol.
    An image or a metric that fails is recorded with its reason and does not stop the others. An evaluation that was
    stopped goes on where it was when it is called again with the same ``out``.

    Args:
        restorer: A network on its device; or a folder of restored images that carry the names of the blurred ones.
        data: A data set: GoPro, HIDE, RealBlur, RWBI, or any folder of pairs.
        protocol: ``"gopro"``, ``"hide"``, ``"realblur"``, ``"rwbi"`` or ``"plain"``.
        out: Folder for ``images.csv`` and ``summary.json``.
        metrics: ``psnr``, ``ssim``, ``niqe``, ``lpips``, ``stlpips``, ``dists``, ``fid``, ``kid``; by default those of
            the protocol.
        split: ``"test"``, ``"train"`` or ``"val"``, where the data set has several.
        variant: ``"blur"`` or ``"blur_gamma"``, where it has both.
        mode: How a network restores, with ``tile``, ``overlap``, ``ensemble`` and ``amp``, see
            :func:`slicescan.restore`.
        tile: Side of a tile.
        overlap: Pixels that tiles share.
        ensemble: Mean over rotations and reflections.
        amp: Precision.
        save: Keep the images that a network restores, as PNG below ``out/images``. FID and KID need them.
        shard: ``(i, n)``: only every n-th pair from the i-th, 0-based. The shard that ends last joins all of them.
        patch: Height and width of patches for FID and KID.
        weights: Folder with weights of perceptual metrics; by default PyTorch's cache.
        facts: What to record beside, such as the file of the weights.
        progress: Called with every row.

    Returns:
        All images; of a shard while others are missing, its own.

    Raises:
        ValueError: The protocol, a metric or the data do not fit together.
        FileNotFoundError: Data or restored images are not there.
    """
    rules = find_protocol(protocol)
    names = check_metrics(metrics, rules)
    pairs = find_pairs(data, rules, split, variant)
    by_sets = [name for name in names if METRICS[name].kind == "set"]
    out = Path(out)
    if isinstance(restorer, nn.Module):
        options = {"mode": mode, "tile": tile, "overlap": overlap, "ensemble": ensemble, "amp": amp}
        keep = out / IMAGES if save or by_sets else None
        run, device = _by_network(restorer, rules, options, keep), next(restorer.parameters()).device
        facts = {**_describe(restorer), "settings": options, "restored": IMAGES if keep else None, **(facts or {})}
    else:
        run, device = _by_folder(Path(restorer), pairs.pairs), torch.device("cpu")
        facts = {"restored": str(Path(restorer).resolve()), **(facts or {})}
    distances, unavailable = open_distances(names, device, weights)
    about: dict[str, Any] = {
        "protocol": rules.name,
        "measured": rules.about,
        "metrics": names,
        **facts,
        "data": str(Path(data).resolve()),
        "layout": pairs.layout,
        "split": pairs.split,
        "variant": pairs.variant,
        "pairs": len(pairs.pairs),
        "names": hashlib.sha256("\n".join(pair.name for pair in pairs.pairs).encode()).hexdigest(),
        "patch": list(patch) if patch else None,
        "versions": _versions(),
        "device": _device_name(device),
        "unavailable": unavailable,
    }
    if shard[1] > 1:
        about["shard"] = f"{shard[0]}/{shard[1]}"
    start = time.monotonic()
    workers = min(4, os.cpu_count() or 1) if device.type != "cpu" or not isinstance(restorer, nn.Module) else 0
    with dispatch.watching() as backends, Journal(out, about) as journal:
        todo = [index for index in range(shard[0], len(pairs.pairs), shard[1]) if index not in journal.rows]

        def finish(index: int, restored: Tensor, seconds: float | None) -> Row:
            return measure(index, pairs.pairs[index], restored, seconds, rules, names, distances)

        for row in _rows(todo, pairs.pairs, run, finish, workers):
            journal.add(row)
            if progress is not None:
                progress(row)
        rows = [journal.rows[index] for index in sorted(journal.rows)]
    about |= {"backend": ", ".join(sorted(backends)) or None, "seconds": round(time.monotonic() - start, 3)}
    results = Results(about, tuple(rows))
    if shard[1] > 1:
        write_results(out, results)
        joined = merge(out, shard[1])
        if joined is None:
            return results
        results = joined
    if by_sets:
        _measure_sets(results, pairs.pairs, by_sets, out, patch, device, weights)
    write_results(out, results)
    return results


def check_metrics(metrics: Sequence[str] | None, rules: Protocol) -> list[str]:
    """The metrics to measure, in the order of tables.

    Raises:
        ValueError: One is unknown, or needs references that the protocol has not.
    """
    asked = list(metrics) if metrics is not None else list(rules.metrics)
    for name in asked:
        if name not in METRICS:
            raise ValueError(f"there is no metric {name!r}; there are {', '.join(METRICS)}")
        if rules.compare is None and METRICS[name].kind != "single":
            raise ValueError(f"{name} needs sharp references, and the protocol {rules.name} has none")
    return [name for name in METRICS if name in asked]


def find_pairs(data: str | Path, rules: Protocol, split: str = "test", variant: str = "blur") -> PairSet:
    """The pairs of a data set that a protocol is about.

    Raises:
        DataError: There are none, or a picture has no partner though the protocol needs one.
        FileNotFoundError: There is no such folder.
    """
    sets = find_sets(data)
    if rules.compare is not None:
        return choose(sets, split, variant)
    fitting = [one for one in sets if one.split in (split, "") and one.variant in (variant, "")]
    if not fitting:
        raise DataError(f"no {split!r} pictures ({variant}); found: {', '.join(one.title for one in sets)}")
    return max(fitting, key=lambda one: one.split == split)


def _rows(
    indices: Sequence[int], pairs: Sequence[Pair], run: Restore, finish: Callable[..., Row], workers: int
) -> Iterator[Row]:
    """Restore one image after the other; threads measure them meanwhile, where the restoring leaves the CPU free."""
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        waiting: deque[Future[Row] | Row] = deque()
        for index in indices:
            try:
                restored, seconds = run(pairs[index])
            except FAILURES as error:
                waiting.append(Row(index, pairs[index].name, {}, None, reason(error)))
            else:
                arguments = (index, restored, seconds)
                waiting.append(pool.submit(finish, *arguments) if workers else finish(*arguments))
            while len(waiting) > workers:
                yield _got(waiting.popleft())
        while waiting:
            yield _got(waiting.popleft())


def _got(row: "Future[Row] | Row") -> Row:
    return row.result() if isinstance(row, Future) else row


def _by_network(model: nn.Module, rules: Protocol, options: dict[str, Any], keep: Path | None) -> Restore:
    def run(pair: Pair) -> tuple[Tensor, float]:
        x = as_bytes(pair.blurred.read(), str(pair.blurred)).float() / 255
        h, w = x.shape[1:]
        down, right = -h % rules.multiple, -w % rules.multiple
        fill = "reflect" if down < h and right < w else "replicate"
        start = time.monotonic()
        y = restore(model, F.pad(x[None], (0, right, 0, down), mode=fill)[0], **options)
        seconds = time.monotonic() - start
        restored = quantize(y[:, :h, :w])
        if keep is not None:
            photo = Photo(restored.permute(1, 2, 0).numpy())
            write_photo(keep / saved_name(pair.name), photo, photo.pixels)
        return restored, seconds

    return run


def _by_folder(folder: Path, pairs: Sequence[Pair]) -> Restore:
    files = find_restored(folder, [pair.name for pair in pairs])

    def run(pair: Pair) -> tuple[Tensor, None]:
        return as_bytes(File(files[pair.name]).read(), str(files[pair.name])), None

    return run


def _measure_sets(
    results: Results,
    pairs: Sequence[Pair],
    names: Sequence[str],
    out: Path,
    patch: tuple[int, int] | None,
    device: torch.device,
    weights: str | Path | None,
) -> None:
    """Add FID and KID to the results, or why they cannot be had."""
    try:
        files = find_restored(out / results.about["restored"], [pair.name for pair in pairs])
        sharp = [pair.sharp for pair in pairs if pair.sharp is not None]
        restored = [File(files[pair.name]) for pair in pairs]
        settings: dict[str, Any] = {"patch": patch, "device": device, "weights": weights}
        results.about["sets"] = measure_sets(restored, sharp, names, **settings)
    except (MetricUnavailable, ValueError, OSError) as error:
        results.about["unavailable"] |= dict.fromkeys(names, " ".join(str(error).split()))


def _describe(model: nn.Module) -> dict[str, Any]:
    """Name, arguments and a hash of the weights of a network."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return {
        "model": getattr(model, "architecture", None) or type(model).__name__,
        "arguments": getattr(model, "arguments", {}),
        "weights_sha256": digest.hexdigest(),
    }


def _versions() -> dict[str, str]:
    found = {"slicescan": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}: {platform.processor() or platform.machine()}"
