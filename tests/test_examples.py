"""The examples that need other packages run; those that live inside other programs meet a stand-in for these."""

import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import spandrel

from slicescan.registry import FAMILIES

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_a_timm_encoder_feeds_a_scanning_decoder(capsys):
    runpy.run_path(str(EXAMPLES / "timm_encoder.py"))["main"]("resnet10t")
    assert "(1, 3, 61, 94) -> (1, 3, 61, 94)" in capsys.readouterr().out


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


@pytest.mark.parametrize("there", [{}, {"NAFNet": object}])
def test_basicsr_gets_the_networks_that_it_lacks(there, monkeypatch):
    for name in ("basicsr", "basicsr.utils", "basicsr.utils.registry"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    registry = sys.modules["basicsr.utils.registry"].ARCH_REGISTRY = Registry(there)
    for _ in range(2):
        runpy.run_path(str(EXAMPLES / "basicsr_arch.py"))
    assert registry == {family.__name__: family for family in FAMILIES} | there
