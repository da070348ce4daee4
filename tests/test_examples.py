"""The examples that need other packages run; those that live inside other programs meet a stand-in for these."""

import re
import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import segmentation_models_pytorch as smp
import spandrel
import torch

from slicescan.registry import FAMILIES

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_a_timm_encoder_feeds_a_scanning_decoder(capsys):
    runpy.run_path(str(EXAMPLES / "timm_encoder.py"))["main"]("resnet10t")
    assert "(1, 3, 61, 94) -> (1, 3, 61, 94)" in capsys.readouterr().out


def test_a_scanning_decoder_learns_on_an_encoder_of_segmentation_models(capsys):
    module = runpy.run_path(str(EXAMPLES / "smp_encoder.py"))
    module["main"]("mobilenet_v2", steps=4)
    before, after = map(
        float, re.search(r"\(1, 3, 61, 94\): mean error (\S+), then (\S+)", capsys.readouterr().out).groups()
    )
    assert after < before
    for name in ("resnet18", "efficientnet-b0"):  # the second pads in a way of its own
        model = module["ScanUNet"](smp.encoders.get_encoder(name, depth=2, weights=None))
        y = model(torch.rand(2, 3, 13, 18))
        assert y.shape == (2, 3, 13, 18)
        y.square().mean().backward()
        assert all(p.grad is not None for key, p in model.named_parameters() if not key.startswith("encoder."))
        assert any(p.grad is not None for p in model.encoder.parameters())


def test_the_comfyui_node_lets_spandrel_find_the_networks(monkeypatch):
    registry = spandrel.MAIN_REGISTRY.copy()
    monkeypatch.setattr("slicescan.integrations.spandrel.install.__defaults__", (registry,))
    for _ in range(2):
        assert runpy.run_path(str(EXAMPLES / "comfyui_node" / "__init__.py"))["NODE_CLASS_MAPPINGS"] == {}
    assert "slicescan-XYScanNet" in {str(support.architecture.id) for support in registry}


class Registry(dict):
    """BasicSR's, which refuses a name that is there already."""

    def register(self, entry):
        assert entry.__name__ not in self
        self[entry.__name__] = entry


def basicsr(monkeypatch, **registry):
    for name in ("basicsr", "basicsr.utils", "basicsr.utils.registry"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    vars(sys.modules["basicsr.utils.registry"]).update(registry)


@pytest.mark.parametrize("there", [{}, {"NAFNet": object}])
def test_basicsr_gets_the_networks_that_it_lacks(there, monkeypatch):
    registry = Registry(there)
    basicsr(monkeypatch, ARCH_REGISTRY=registry)
    for _ in range(2):
        runpy.run_path(str(EXAMPLES / "basicsr_arch.py"))
    assert registry == {family.__name__: family for family in FAMILIES} | there


@pytest.mark.parametrize("registry", [{}, {"ARCH_REGISTRY": Registry()}], ids=["a fork", "BasicSR"])
def test_networks_of_files_beside_ours_stay_and_a_fork_finds_the_others_in_our_file(registry, monkeypatch, tmp_path):
    basicsr(monkeypatch, **registry)
    (tmp_path / "zz_NAFNet_arch.py").write_text("class NAFNet(nn.Module):\n    ...\n")
    found = runpy.run_path(shutil.copy(EXAMPLES / "basicsr_arch.py", tmp_path / "slicescan_arch.py"))
    assert "NAFNet" not in found and all("NAFNet" not in names for names in registry.values())
    network = found["XYScanNet"](dim=8, blocks=(1, 1, 1))
    assert isinstance(network, FAMILIES[0]) and all(found[f.__name__] is f for f in FAMILIES if f.__name__ != "NAFNet")
