"""What networks are set beside in the quality check, and the files that it writes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import convolve

import slicescan
from benchmarks import deconvolution, quality, tables
from slicescan.checkpoint import write_checkpoint
from slicescan.engine.blur import GAMMA, expose
from slicescan.engine.metrics import psnr
from slicescan.engine.quality import SIDE, camera

SMALL = {"dim": 4, "blocks": (1, 1, 1), "state": 2}


def photo(h, w):
    coarse = torch.rand(1, 3, h // 6, w // 6, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (h, w))[0]


@pytest.mark.parametrize("seed", range(3))
def test_the_kernel_of_a_path_makes_the_blur_of_the_check(seed):
    path = camera(seed)[0]
    psf = deconvolution.kernel(path[0])
    light = torch.rand(1, 1, 50, 61, generator=torch.Generator().manual_seed(seed))
    expected = convolve(light[0, 0].double().numpy(), psf, mode="nearest")
    found = expose(light, path, torch.zeros(1, 25))[0, 0].double().numpy()
    inside = (slice(15, -15), slice(15, -15))
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-5)
    assert psf.sum() == pytest.approx(1) and psf.shape[0] % 2 == 1


@pytest.mark.parametrize(
    "method", [lambda psf: deconvolution.wiener(psf, 1e-3), lambda psf: deconvolution.richardson_lucy(psf, 10)]
)
def test_deconvolution_with_the_kernel_sharpens_and_with_another_does_not(method):
    path, _, _ = camera(1)
    sharp = photo(96, 102)
    light = expose(sharp[None].pow(GAMMA), path, torch.zeros(1, 25))[0]
    blurred, sharp = (image.mul(255).round().to(torch.uint8) for image in (light.clamp(0, 1).pow(1 / GAMMA), sharp))
    psf = deconvolution.kernel(path[0])
    inside = (..., slice(20, -20), slice(20, -20))
    before, right, wrong = (
        psnr(image[inside], sharp[inside]) for image in (blurred, method(psf)(blurred), method(psf[::-1])(blurred))
    )
    assert right > before + 3 and right > wrong + 3


def test_the_balance_is_the_best_for_the_cases(monkeypatch):
    sharp, blurred = torch.full((3, 4, 4), 9, dtype=torch.uint8), torch.zeros(3, 4, 4, dtype=torch.uint8)
    monkeypatch.setattr(deconvolution, "wiener", lambda psf, balance: lambda image: image + round(1000 * balance))
    assert deconvolution.best_balance([(np.ones((1, 1)), blurred, sharp)]) == 1e-2


def test_networks_and_deconvolution_stand_in_one_table(tmp_path, monkeypatch):
    monkeypatch.setenv("SLICESCAN_BACKEND", "torch")
    monkeypatch.setattr(quality, "richardson_lucy", lambda psf: lambda image: image)
    monkeypatch.setattr(deconvolution, "BALANCES", (1e-2,))
    monkeypatch.setattr(quality, "find", lambda folder: None)
    (tmp_path / "photos").mkdir()
    pixels = photo(SIDE, SIDE).mul(255).to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(tmp_path / "photos" / "1.png")
    model, other = (
        slicescan.create_model("xyscannet_tiny", **SMALL),
        slicescan.create_model("nafnet_w32", width=4, enc_blocks=(1,), dec_blocks=(1,)),
    )
    monkeypatch.setattr(quality.slicescan, "create_model", lambda *_, **__: model)
    write_checkpoint(tmp_path / "first.safetensors", model), write_checkpoint(tmp_path / "rival.safetensors", other)
    command = ["--photos", str(tmp_path / "photos"), "--checkpoint", str(tmp_path / "first.safetensors")]
    command += ["--beside", str(tmp_path / "rival.safetensors"), "--device", "cpu"]
    assert quality.main([*command, "--uniform", "--json", str(tmp_path / "uniform_xyscannet_tiny.json")]) == 0
    found = json.loads((tmp_path / "uniform_xyscannet_tiny.json").read_text())
    assert found["motion"] == "without rotation"
    names = ["rival", "Wiener, kernel known (balance 0.01)", "Richardson-Lucy, kernel known (30 iterations)"]
    assert list(found["beside"]) == names
    assert found["beside"][names[2]]["mean"]["gain"] == 0 and found["beside"][names[1]]["sharp_psnr"] is None
    assert found["beside"][names[1]]["mean"]["gain"] > 0.5
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    rows = tables.uniform().splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [
        "| the blurred crop itself",
        "| `xyscannet_tiny`",
        *(f"| {n}" for n in names),
    ]
    (tmp_path / "uniform_xyscannet_tiny.json").rename(tmp_path / "quality_xyscannet_tiny.json")
    assert [row.split(" | ")[0] for row in tables.quality().splitlines()[2:4]] == ["| `xyscannet_tiny`", "| rival"]
