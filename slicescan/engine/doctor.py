"""What this machine can run, and what is missing for the rest."""

import platform
from importlib import metadata, util

import torch

import slicescan
from slicescan.ops.dispatch import report
from slicescan.registry import list_pretrained

EXTRAS = {
    "io": ("cv2",),
    "train": ("accelerate", "tensorboard", "lmdb"),
    "metrics": ("lpips", "torch_fidelity", "skimage", "cv2"),
    "hub": ("huggingface_hub",),
    "timm": ("timm",),
    "spandrel": ("spandrel",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "mamba": ("mamba_ssm",),
}
"""Modules that the optional extras bring."""


def diagnosis() -> str:
    """Versions, devices, scan backends with the reasons of those that cannot run, extras and weights, as text."""
    lines = [
        f"slicescan {slicescan.__version__}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"{platform.system()} {platform.machine()}",
        f"CPU: {torch.get_num_threads()} threads",
    ]
    gpus = range(torch.cuda.device_count())
    lines += [f"GPU {i}: {torch.cuda.get_device_name(i)}" for i in gpus] or ["GPU: none that torch can use"]
    for device in ("cpu", *(["cuda"] if gpus else [])):
        lines += ["", f"Scan backends for {device} tensors, fastest first:"]
        taken = False
        for name, reason in report(device):
            mark = "-" if reason else ("*" if not taken else "+")
            taken = taken or reason is None
            lines.append(f"  {mark} {name}: {reason or 'can run'}")
    lines += ["  (* is taken when none is named)", "", "Extras, pip install 'slicescan[NAME]':"]
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if util.find_spec(module) is None]
        lines.append(
            f"  {'-' if missing else '+'} {extra}: {'lacks ' + ', '.join(missing) if missing else 'installed'}"
        )
    lines += ["", f"Weights in this package: {', '.join(list_pretrained()) or 'none'}"]
    for package in ("numpy", "safetensors", "pillow", "einops", "numba"):
        try:
            lines.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{package} is missing: pip install {package}")
    return "\n".join(lines)
