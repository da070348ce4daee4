"""What the libraries are given, and what is said when they or their weights are not there."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from slicescan.engine.metrics.distribution import _Images, measure_sets
from slicescan.engine.metrics.perceptual import MetricUnavailable, open_distance
from tests.engine.metrics.pictures import texture


class Spy(torch.nn.Module):
    """Stands where a library's network would: keeps what it is given, and where weights lie when it is built."""

    def __init__(self, **arguments):
        super().__init__()
        self.alpha, self.beta = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        Spy.arguments, Spy.found = arguments, {file.name: file.read_bytes() for file in folder.glob("*")}
        Spy.built = self

    def forward(self, x, y):
        Spy.given = x, y
        return (x - y).abs().mean().view(1, 1, 1, 1)


def stand_in(monkeypatch, module, attribute):
    library = types.ModuleType(module)
    setattr(library, attribute, Spy)
    library.__file__ = __file__
    monkeypatch.setitem(sys.modules, module.partition(".")[0], library)
    monkeypatch.setitem(sys.modules, module, library)
    return library


CASES = [
    ("lpips", "lpips", "LPIPS", -1, "alexnet-owt-7be5be79.pth", {"net": "alex", "version": "0.1"}),
    ("stlpips", "stlpips_pytorch.stlpips", "LPIPS", -1, None, {"net": "alex", "variant": "shift_tolerant"}),
    ("dists", "DISTS_pytorch", "DISTS", 0, "vgg16-397923af.pth", {"load_weights": False}),
]


@pytest.mark.parametrize(("name", "module", "attribute", "low", "file", "arguments"), CASES)
def test_images_go_to_the_library_whole_and_in_its_range(
    monkeypatch, tmp_path, name, module, attribute, low, file, arguments
):
    library = stand_in(monkeypatch, module, attribute)
    library.__file__ = str(tmp_path / "__init__.py")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "nowhere"))
    torch.save({"alpha": torch.ones(2), "beta": torch.full((2,), 3.0)}, tmp_path / "weights.pt")
    if file:
        (tmp_path / file).write_bytes(b"backbone")
    hub = torch.hub.get_dir()
    distance = open_distance(name, weights=tmp_path)
    assert torch.hub.get_dir() == hub
    assert Spy.arguments.items() >= arguments.items()
    assert not file or Spy.found == {file: b"backbone"}
    assert name != "dists" or (Spy.built.alpha.tolist(), Spy.built.beta.tolist()) == ([1, 1], [3, 3])
    white, black = torch.full((3, 5, 7), 255, dtype=torch.uint8), torch.zeros(3, 5, 7, dtype=torch.uint8)
    assert distance(white, black) == 1 - low
    x, y = Spy.given
    assert x.shape == (1, 3, 5, 7) and x.unique().tolist() == [1] and y.unique().tolist() == [low]


@pytest.mark.parametrize(("name", "module", "packages"), [(c[0], c[1].partition(".")[0], c[0]) for c in CASES])
def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch, name, module, packages):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MetricUnavailable, match=rf"(?i)^{name} needs a library .*pip install {name}"):
        open_distance(name)


def test_missing_weights_are_named_with_their_address_and_place(monkeypatch, tmp_path):
    stand_in(monkeypatch, "lpips", "LPIPS")
    with pytest.raises(MetricUnavailable, match=r"lpips needs the weights https://.*alexnet-owt-7be5be79.pth: put"):
        open_distance("lpips", weights=tmp_path)
    stand_in(monkeypatch, "torch_fidelity", "calculate_metrics")
    with pytest.raises(MetricUnavailable, match="fid and kid needs? the weights https://github.com/toshas"):
        measure_sets([], [], weights=tmp_path)


class Memory:
    def __init__(self, image):
        self.image = image

    def read(self):
        return self.image.permute(1, 2, 0).numpy()

    def size(self):
        return self.image.shape[1:]


def test_patches_tile_the_image_without_overlap_and_leave_rests_out():
    images = [texture(50, 70, seed) for seed in (1, 2)]
    found = _Images([Memory(image) for image in images], (20, 30))
    assert len(found) == 2 * 2 * 2
    assert torch.equal(found[3], images[0][:, 20:40, 30:60])
    assert torch.equal(found[4], images[1][:, :20, :30])
    assert torch.equal(_Images([Memory(images[0])], None)[0], images[0])


def test_sets_are_measured_by_the_library_in_one_call(monkeypatch, tmp_path):
    def calculate_metrics(**given):
        given["images"] = [given["input1"][i] for i in range(len(given["input1"]))]
        calls.append(given)
        return {"frechet_inception_distance": np.float64(12.5), "kernel_inception_distance_mean": 0.25}

    calls = []
    library = types.ModuleType("torch_fidelity")
    library.calculate_metrics = calculate_metrics
    monkeypatch.setitem(sys.modules, "torch_fidelity", library)
    file = tmp_path / "weights-inception-2015-12-05-6726825d.pth"
    file.write_bytes(b"x")
    images = [texture(30, 40, seed) for seed in range(3)]
    pictures = [Memory(image) for image in images]
    assert measure_sets(pictures, pictures[::-1], weights=tmp_path) == {"fid": 12.5, "kid": 0.25}
    (call,) = calls
    assert (call["fid"], call["kid"], call["kid_subset_size"], call["cuda"]) == (True, True, 3, False)
    assert call["feature_extractor_weights_path"] == str(file) and not call["cache"]
    assert all(map(torch.equal, call["images"], images))
    assert measure_sets(pictures, pictures, ["kid"], weights=tmp_path, patch=(15, 20)) == {"kid": 0.25}
    assert not calls[1]["fid"] and calls[1]["kid_subset_size"] == 12
    with pytest.raises(ValueError, match="two images or patches in each set, got 1"):
        measure_sets(pictures, pictures[:1], weights=tmp_path)
