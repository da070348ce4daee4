import pytest
import spandrel
import torch

from slicescan.checkpoint import write_checkpoint
from slicescan.integrations.spandrel import architectures, install
from slicescan.registry import FAMILIES, model_entry
from tests.models.test_contract import NAMES, small


@pytest.fixture
def loader():
    registry = spandrel.MAIN_REGISTRY.copy()
    install(registry)
    return spandrel.ModelLoader(registry=registry)


LACKING = {str(support.architecture.id).removeprefix("slicescan-") for support in architectures()}
OPEN = {"xyscannet_small_intra", "xyscannet_small_inter"}
"""Which scanner a slot holds leaves no trace in the weights."""
CASES = [name for name in NAMES if model_entry(name).family in LACKING and name not in OPEN]


def test_families_that_spandrel_has_are_left_to_it():
    theirs = {str(support.architecture.id) for support in spandrel.MAIN_REGISTRY}
    assert {family.__name__ for family in FAMILIES} == LACKING | {f.__name__ for f in FAMILIES if f.__name__ in theirs}
    assert "XYScanNet" in LACKING


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_spandrel_opens_our_files_and_published_ones(loader, tmp_path, name, suffix):
    model, path = small(name), tmp_path / f"model{suffix}"
    x = torch.rand(1, 3, 13, 18)
    with torch.no_grad():
        expected = model(x).clamp(0, 1)
    for published in (False, True):
        write_checkpoint(path, model, published=published)
        found = loader.load_from_file(path)
        assert str(found.architecture.id) == f"slicescan-{type(model).__name__}"
        assert found.scale == model.scale and found.input_channels == 3
        assert torch.equal(found(x), expected)


@pytest.mark.parametrize("name", sorted(OPEN))
def test_arguments_that_weights_leave_open_are_named(loader, name, caplog):
    found = loader.load_from_state_dict(small(name).state_dict()).model
    assert found.arguments["scanners"] == ["intra", "inter"] and found.arguments["state"] == 4
    assert "XYScanNet: the weights leave open scanners, fusion_gate" in caplog.text


def test_other_networks_stay_with_spandrel(loader):
    with pytest.raises(spandrel.UnsupportedModelError):
        loader.load_from_state_dict({"weight": torch.zeros(3, 3, 3, 3)})


def test_installing_twice_changes_nothing():
    registry = spandrel.MAIN_REGISTRY.copy()
    assert install(registry) and install(registry) == []
