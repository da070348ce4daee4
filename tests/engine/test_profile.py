"""What the profiler counts, against sums done by hand."""

import os

import torch
from torch import nn

from slicescan import create_model, profile
from slicescan.layers import InterScan, Mamba, SliceScan2D
from slicescan.ops.backends import ALL


def test_scan_updates_are_images_times_positions_times_channels_times_states():
    found = profile(SliceScan2D(8, state=5), (8, 6, 10))
    assert found.scan_updates == 2 * 6 * 10 * 8 * 5  # rows and columns, 8 inner channels each
    assert profile(InterScan(8, state=5), (8, 6, 10)).scan_updates == (6 + 10) * 8 * 5
    assert profile(nn.Conv2d(8, 8, 1), (8, 6, 10)).scan_updates == 0


def test_the_step_projection_inside_a_scan_is_counted_as_the_linear_layer_it_is():
    layer = Mamba(8, state=5, dt_rank=3)
    inner, maps = layer.D.numel(), sum(x.weight.numel() for x in (layer.in_proj, layer.x_proj, layer.out_proj))
    found = profile(layer, (6, 8))
    assert found.macs == 6 * (maps + layer.dt_proj.weight.numel()) + (6 + 3) * 4 * inner  # the convolution is padded
    assert found.scan_updates == 6 * inner * 5


def test_the_backend_of_the_scans_is_named():
    assert profile(SliceScan2D(8), (8, 4, 4)).backend in ALL
    assert profile(nn.Conv2d(8, 8, 1), (8, 4, 4)).backend is None


def test_the_reference_is_counted_through_an_operator(monkeypatch):
    expected = profile(SliceScan2D(8), (8, 4, 4))
    monkeypatch.setenv("SLICESCAN_BACKEND", "reference")
    found = profile(SliceScan2D(8), (8, 4, 4))
    assert found.scan_updates == expected.scan_updates > 0 and found.backend == "torch"
    assert os.environ["SLICESCAN_BACKEND"] == "reference"


def test_multiply_adds_of_single_layers_are_exact():
    assert profile(nn.Conv2d(3, 8, 3, padding=1), (3, 10, 12)).macs == 3 * 8 * 9 * 120
    assert profile(nn.Conv2d(8, 8, 3, padding=1, groups=8, stride=2), (8, 10, 12)).macs == 8 * 9 * 30
    assert profile(nn.Linear(12, 5), (3, 10, 12)).macs == 3 * 10 * 12 * 5
    assert profile(nn.Sequential(nn.GELU(), nn.Upsample(scale_factor=2)), (3, 10, 12)).macs == 0


def test_parameters_are_counted_once_even_if_shared():
    conv = nn.Conv2d(3, 3, 1)
    assert profile(nn.Sequential(conv, conv), (3, 4, 4)).params == 12


class Wide(nn.Module):
    """Makes three copies, sums two of them away, and returns."""

    def forward(self, x):
        a = x + 1
        b = x + 2
        c = a + b  # x, a, b, c alive: the peak
        del a, b
        return c + 1  # x, c and this


def test_activation_bytes_is_the_most_that_is_alive_at_once():
    image = 3 * 4 * 5 * 4
    assert profile(Wide(), (3, 4, 5)).activation_bytes == 4 * image
    assert profile(nn.Identity(), (3, 4, 5)).activation_bytes == image
    assert profile(nn.Sequential(nn.Sigmoid(), nn.Sigmoid(), nn.Sigmoid()), (3, 4, 5)).activation_bytes == 3 * image
    assert profile(nn.Flatten(), (3, 4, 5)).activation_bytes == image  # a view needs no memory
    assert profile(nn.Conv2d(3, 6, 1).half(), (3, 4, 5)).activation_bytes == image // 2 + image


def test_profiling_neither_reads_nor_changes_the_model():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    grads = [parameter.grad for parameter in model.parameters()]
    profile(model, (3, 8, 8))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training and grads == [parameter.grad for parameter in model.parameters()]


def test_a_model_without_memory_is_profiled_like_one_with_it():
    full = create_model("xyscannet_tiny", dim=8, blocks=(1, 1, 1))
    with torch.device("meta"):
        light = create_model("xyscannet_tiny", dim=8, blocks=(1, 1, 1))
    assert profile(light, (3, 16, 16)) == profile(full, (3, 16, 16))


class Halves(nn.Module):
    """Uses its weight by parts."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1000, 4))

    def forward(self, x):
        return x * self.weight[:1].sum() + self.weight[1:2].sum()


def test_views_of_weights_are_no_activations():
    assert profile(Halves(), (3, 4, 4)).activation_bytes <= 3 * 3 * 16 * 4 + 16
