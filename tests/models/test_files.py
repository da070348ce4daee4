"""Files without a description: architecture and arguments come from names and shapes, damage is named."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slicescan import create_model, load
from slicescan.checkpoint import CheckpointError, write_checkpoint
from slicescan.models.base import Restorer
from slicescan.models.mambair import MambaIR, MambaIRUNet
from slicescan.models.mimo_unet import MIMOUNet
from slicescan.models.nafnet import NAFNet
from slicescan.models.restormer import Restormer
from slicescan.models.xyscannet import XYScanNet
from tests.models.weights import error, far_from_default

few = st.integers(1, 3)


@st.composite
def nafnets(draw: st.DrawFn) -> NAFNet:
    levels = draw(st.integers(1, 3))
    stages = st.lists(few, min_size=levels, max_size=levels)
    return NAFNet(
        draw(st.integers(1, 5)),
        enc_blocks=draw(stages),
        middle_blocks=draw(few),
        dec_blocks=draw(stages),
        tlc=draw(st.booleans()),
        tlc_crop=draw(st.sampled_from([4, 256])),
        in_chans=draw(st.sampled_from([1, 3])),
    )


@st.composite
def restormers(draw: st.DrawFn) -> Restormer:
    return Restormer(
        2 * draw(st.integers(1, 3)),
        blocks=draw(st.lists(st.integers(1, 2), min_size=4, max_size=4)),
        refinement=draw(few),
        heads=[draw(st.sampled_from([1, 2])) for _ in range(3)] + [draw(st.sampled_from([1, 4]))],
        ffn_expand=draw(st.sampled_from([1.0, 2.66])),
        bias=draw(st.booleans()),
        norm=draw(st.sampled_from(["layer", "bias_free"])),
        in_chans=draw(st.sampled_from([1, 3])),
    )


@st.composite
def mimo_unets(draw: st.DrawFn) -> MIMOUNet:
    return MIMOUNet(
        draw(st.integers(2, 5)),
        num_res=draw(few),
        dropout=draw(st.sampled_from([0.0, 0.1])),
        in_chans=draw(st.sampled_from([1, 3])),
    )


@st.composite
def xyscannets(draw: st.DrawFn) -> XYScanNet:
    return XYScanNet(
        2 * draw(st.integers(2, 4)),
        blocks=draw(st.permutations([1, 1, 2])),
        state=draw(st.sampled_from([1, 4])),
        bias=draw(st.booleans()),
        norm=draw(st.sampled_from(["layer", "bias_free"])),
        scanners=draw(st.lists(st.sampled_from(["intra", "inter", "ss2d"]), min_size=2, max_size=2)),
        fusion=draw(st.sampled_from(["klff", "aff", "skip"])),
        in_chans=draw(st.sampled_from([1, 3])),
    )


@st.composite
def mambairs(draw: st.DrawFn) -> MambaIR:
    dim, expand = draw(st.sampled_from([(4, 1.0), (5, 2.0), (8, 1.5), (10, 1.2)]))
    heads = [("none", 1), *(("pixelshuffle", s) for s in (2, 3, 4)), *(("pixelshuffledirect", s) for s in (1, 2, 3, 4))]
    upsampler, scale = draw(st.sampled_from(heads))
    return MambaIR(
        dim,
        depths=draw(st.lists(st.integers(2, 3), min_size=2, max_size=3)),
        state=draw(few),
        expand=expand,
        upsampler=upsampler,
        scale=scale,
        convs=draw(st.sampled_from(["1conv", "3conv"])),
        drop_path=draw(st.sampled_from([0.0, 0.1])),
        in_chans=draw(st.sampled_from([1, 3])),
    )


@st.composite
def mambair_unets(draw: st.DrawFn) -> MambaIRUNet:
    dual_pixel = draw(st.booleans())
    return MambaIRUNet(
        2 * draw(few),
        blocks=draw(st.sampled_from([[1, 1, 1, 1], [2, 1, 1, 2]])),
        refinement=draw(few),
        state=draw(few),
        expand=draw(st.sampled_from([1.0, 1.5, 2.0])),
        dual_pixel=dual_pixel,
        in_chans=draw(st.sampled_from([2, 6] if dual_pixel else [1, 3])),
    )


NETWORKS = {
    "XYScanNet": xyscannets(),
    "NAFNet": nafnets(),
    "Restormer": restormers(),
    "MIMOUNet": mimo_unets(),
    "MambaIR": mambairs(),
    "MambaIRUNet": mambair_unets(),
}
OPEN = {
    "XYScanNet": {"scanners", "fusion_gate"},
    "NAFNet": {"tlc", "tlc_crop"},
    "Restormer": set(),
    "MIMOUNet": {"dropout"},
    "MambaIR": {"drop_path"},
    "MambaIRUNet": set(),
}
"""Arguments that leave no trace in the weights."""

every_family = pytest.mark.parametrize("family", NETWORKS)
some = settings(deadline=None, derandomize=True, max_examples=5)


def same(found: dict, expected: dict) -> bool:
    """Whether arguments agree; of widths given as factors, any number that makes the same layers will do."""
    return all(found[name] == value for name, value in expected.items() if not name.endswith("expand"))


def filled(model: Restorer) -> Restorer:
    model.load_state_dict(far_from_default(model, seed=0))
    return model.eval()


@every_family
@some
@given(data=st.data())
@torch.no_grad()
def test_names_and_shapes_rebuild_a_network_bit_by_bit(family, data):
    model = filled(data.draw(NETWORKS[family]))
    chosen = {name: model.arguments[name] for name in OPEN[family]}
    x = torch.rand(1, model.in_chans, 9, 6, generator=torch.Generator().manual_seed(0))
    expected = model(x)
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".safetensors", ".pth"):
            write_checkpoint(Path(folder) / f"bare{suffix}", model, published=True)
            write_checkpoint(Path(folder) / f"own{suffix}", model)
        model.save_pretrained(Path(folder) / "hub")
        for name in ("bare.safetensors", "bare.pth", "own.safetensors", "own.pth", "hub"):
            found = load(Path(folder) / name, **(chosen if name.startswith("bare") else {}))
            assert type(found) is type(model) and same(found.arguments, model.arguments), name
            assert torch.equal(found(x), expected), name


@every_family
@settings(some, max_examples=16)
@given(data=st.data())
def test_damage_is_named(family, data):
    """One weight that is gone, of another shape, or too many, wherever it is."""
    model = data.draw(NETWORKS[family])
    state = dict(model.state_dict())
    key = data.draw(st.sampled_from(sorted(state)))
    fault = data.draw(st.sampled_from(["missing", "unexpected", "of another shape", "of another rank"]))
    named = key
    if fault == "missing":
        del state[key]
    elif fault == "unexpected":
        named = f"{key}_too_many"
        state[named] = torch.ones(1)
    elif fault == "of another shape":
        state[key] = torch.zeros(*state[key].shape[:-1], state[key].shape[-1] + 1)
    else:
        state[key] = torch.zeros(1, *state[key].shape)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / "net.pth")
        with pytest.raises(CheckpointError) as caught:
            load(Path(folder) / "net.pth")
    assert named in str(caught.value) and "net.pth" in str(caught.value) and "\n" not in str(caught.value)


GREY = {
    "nafnet_w32": {"width": 8, "enc_blocks": (1, 1), "middle_blocks": 1, "dec_blocks": (1, 1)},
    "restormer": {"dim": 8, "blocks": (1, 1, 1, 1), "refinement": 1},
    "mimo_unet": {"dim": 8, "num_res": 1},
}


@pytest.mark.parametrize("name", GREY)
@torch.no_grad()
def test_colour_weights_become_those_of_the_same_network_on_grey_images(name):
    colour = filled(create_model(name, **GREY[name])).double()
    config = {"state_dict": colour.state_dict()}
    grey = create_model(name, pretrained=True, pretrained_cfg=config, in_chans=1, **GREY[name]).eval()
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert error(grey(x), colour(x.double().expand(1, 3, 8, 8)).mean(1, keepdim=True)) < 1e-5
