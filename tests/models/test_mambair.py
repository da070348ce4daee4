"""MambaIR and its U-Net against their published counts, names, fingerprints and descriptions."""

import fnmatch
import math

import pytest
import torch
import torch.nn.functional as F

from slicescan import create_model, load, model_entry, profile
from slicescan.checkpoint import write_checkpoint
from slicescan.models.mambair import MambaIR, MambaIRUNet
from tests.fingerprint import fill, picture, summary
from tests.models.weights import error, far_from_default

PARAMETERS = {
    "mambair_denoise": 15_777_507,
    "mambair_car": 15_771_025,
    "mambair_sr_x2": 20_421_863,
    "mambair_sr_x3": 20_606_503,
    "mambair_sr_x4": 20_569_575,
    "mambair_light_sr_x2": 905_016,
    "mambair_light_sr_x3": 913_131,
    "mambair_light_sr_x4": 924_492,
    "mambair_unet": 26_779_480,
}


MULTIPLY_ADDS = {
    "mambair_denoise": 987.0,
    "mambair_car": 986.6,
    "mambair_unet": 145.96,
    "mambair_sr_x2": 16 * 79.14,  # published for 64 x 64 pixels
    "mambair_light_sr_x2": 16 * 3.26,
}


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_multiply_adds_are_the_published_ones(name):
    """Of the record, which tests/models/test_cost.py holds to what the profiler counts."""
    assert model_entry(name).macs_256 / 1e9 == pytest.approx(MULTIPLY_ADDS[name], rel=0.005)


@pytest.mark.parametrize(
    ("name", "blocks", "side", "giga"),
    [("mambair_sr_x2", 36, 64, 3.40), ("mambair_light_sr_x2", 24, 64, 0.28), ("mambair_denoise", 36, 256, 32.6)],
)
def test_scan_updates_are_counted_beside_the_multiply_adds(name, blocks, side, giga):
    with torch.device("meta"):
        one = create_model(name, depths=(1,))
    found = profile(one, (3, side, side))
    assert f"{blocks * found.scan_updates / 1e9:.2f}".startswith(f"{giga:.2f}"[:4])
    assert found.macs < 100 * found.scan_updates  # of the convolutions beside one block


def test_scan_updates_of_the_u_net_are_the_published_ones():
    with torch.device("meta"):
        small = MambaIRUNet(48, blocks=(1, 1, 1, 1), refinement=1)
    for model, blocks, giga in ((small, (1, 1, 1, 1, 1), None), (None, (4, 6, 6, 8, 4), 9.06)):
        first, second, third, latent, refinement = blocks
        wide = [first * 48 + (first + refinement) * 96, 2 * second * 96, 2 * third * 192, latent * 384]  # by level
        updates = sum(4 * 16 * width * 3 // 2 * (256 // 2**level) ** 2 for level, width in enumerate(wide))
        if model is None:
            assert round(updates / 1e9, 2) == giga
        else:
            assert profile(model, (3, 256, 256)).scan_updates == updates


@pytest.mark.parametrize(
    ("model", "size", "expected"),
    [
        (
            lambda: MambaIR(32, depths=(2, 1), state=4, expand=1.5),
            (12, 16),
            [14.641994, 74.003384, -26.291128, -26.635834, -47.943432],
        ),
        (
            lambda: MambaIRUNet(32, blocks=(1, 1, 1, 1), refinement=1),
            (16, 24),
            [0.381943, 1.818148, 0.477658, -0.750279, 2.338328],
        ),
    ],
    ids=["MambaIR", "MambaIRUNet"],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-5)], ids=str)
@torch.no_grad()
def test_the_network_has_the_public_fingerprint(model, size, expected, dtype, tolerance):
    model = model().to(dtype).eval()
    fill(model)
    assert summary(model(picture(3, *size, dtype=dtype))) == pytest.approx(expected, rel=tolerance)


def test_each_name_tells_its_task_scale_and_where_its_weights_are():
    for name in PARAMETERS:
        record = model_entry(name)
        assert record.scale == (int(name[-1]) if "_sr_x" in name else 1)
        task = "super-resolution" if "_sr_" in name else "JPEG artefact removal" if "car" in name else "denoising"
        assert record.task == task and record.license == "Apache-2.0" and record.tiling == "approximate"
        assert record.weights[0].page == "https://github.com/csguoh/MambaIR"
        assert record.size_multiple == (8 if name == "mambair_unet" else 1)


Shapes = dict[str, tuple[int, ...]]


def conv(shapes: Shapes, name: str, out: int, inside: int, size: int) -> None:
    shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, inside, size, size), (out,)


def norm(shapes: Shapes, name: str, c: int) -> None:
    shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (c,)


def block(shapes: Shapes, name: str, c: int, d: int, n: int, light: bool = False) -> None:
    r = math.ceil(c / 16)
    shapes[f"{name}.skip_scale"] = shapes[f"{name}.skip_scale2"] = (c,)
    norm(shapes, f"{name}.ln_1", c)
    scan = f"{name}.self_attention"
    shapes[f"{scan}.x_proj_weight"] = (4, r + 2 * n, d)
    shapes[f"{scan}.dt_projs_weight"], shapes[f"{scan}.dt_projs_bias"] = (4, d, r), (4, d)
    shapes[f"{scan}.A_logs"], shapes[f"{scan}.Ds"] = (4 * d, n), (4 * d,)
    shapes[f"{scan}.in_proj.weight"] = (2 * d, c)
    conv(shapes, f"{scan}.conv2d", d, 1, 3)
    norm(shapes, f"{scan}.out_norm", d)
    shapes[f"{scan}.out_proj.weight"] = (c, d)
    cab = f"{name}.conv_blk.cab"
    if light:
        conv(shapes, f"{cab}.0", c // 2, c, 1)
        conv(shapes, f"{cab}.1", c // 2, 1, 3)
        conv(shapes, f"{cab}.3", c, c // 2, 1)
        conv(shapes, f"{cab}.4", c, 1, 3)
    else:
        conv(shapes, f"{cab}.0", c // 3, c, 3)
        conv(shapes, f"{cab}.2", c, c // 3, 3)
    last = f"{cab}.{5 if light else 3}.attention"
    conv(shapes, f"{last}.1", c // 30, c, 1)
    conv(shapes, f"{last}.3", c, c // 30, 1)
    norm(shapes, f"{name}.ln_2", c)


def published_shapes(c: int, depths: tuple[int, ...], n: int, expand: float, head: str, scale: int, ins: int) -> Shapes:
    """Names and shapes of a published file of MambaIR, in its order."""
    shapes: Shapes = {}
    conv(shapes, "conv_first", c, ins, 3)
    norm(shapes, "patch_embed.norm", c)
    for i, depth in enumerate(depths):
        for j in range(depth):
            light = head == "pixelshuffledirect"
            block(shapes, f"layers.{i}.residual_group.blocks.{j}", c, round(c * expand), n, light)
        conv(shapes, f"layers.{i}.conv", c, c, 3)
    norm(shapes, "norm", c)
    conv(shapes, "conv_after_body", c, c, 3)
    if head == "pixelshuffle":
        conv(shapes, "conv_before_upsample.0", 64, c, 3)
        for i in range(2 if scale == 4 else 1):
            conv(shapes, f"upsample.{2 * i}", 64 * (9 if scale == 3 else 4), 64, 3)
        conv(shapes, "conv_last", ins, 64, 3)
    elif head == "pixelshuffledirect":
        conv(shapes, "upsample.0", ins * scale**2, c, 3)
    else:
        conv(shapes, "conv_last", ins, c, 3)
    return shapes


def published_unet_shapes(c: int, blocks: tuple[int, ...], refinement: int, dual_pixel: bool = False) -> Shapes:
    """Names and shapes of the published file of the U-Net, in its order."""
    shapes: Shapes = {}
    ins = 6 if dual_pixel else 3

    def stage(name: str, width: int, depth: int) -> None:
        for i in range(depth):
            block(shapes, f"{name}.{i}", width, width * 3 // 2, 16)

    shapes["patch_embed.proj.weight"] = (c, ins, 3, 3)
    for level in range(3):
        width = c * 2**level
        stage(f"encoder_level{level + 1}", width, blocks[level])
        shapes[f"down{level + 1}_{level + 2}.body.0.weight"] = (width // 2, width, 3, 3)
    stage("latent", 8 * c, blocks[3])
    for level in (3, 2, 1):
        width = c * 2**level
        shapes[f"up{level + 1}_{level}.body.0.weight"] = (2 * width, width, 3, 3)
        if level > 1:
            shapes[f"reduce_chan_level{level}.weight"] = (width // 2, width, 1, 1)
        stage(f"decoder_level{level}", width // 2 if level > 1 else width, blocks[level - 1])
    stage("refinement", 2 * c, refinement)
    if dual_pixel:
        shapes["skip_conv.weight"] = (2 * c, c, 1, 1)
    shapes["output.weight"] = (3, 2 * c, 3, 3)
    return shapes


SIX, FOUR = (6,) * 6, (6,) * 4
PUBLISHED = {
    "mambair_denoise": published_shapes(180, SIX, 16, 1.2, "", 1, 3),
    "mambair_car": published_shapes(180, SIX, 16, 1.2, "", 1, 1),
    **{f"mambair_sr_x{s}": published_shapes(180, SIX, 16, 2, "pixelshuffle", s, 3) for s in (2, 3, 4)},
    **{f"mambair_light_sr_x{s}": published_shapes(60, FOUR, 10, 1.2, "pixelshuffledirect", s, 3) for s in (2, 3, 4)},
    "mambair_unet": published_unet_shapes(48, (4, 6, 6, 8), 4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_names_shapes_and_order_are_those_of_the_published_file_which_tells_the_arguments(name):
    with torch.device("meta"):
        model = create_model(name)
    found = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert list(found.items()) == list(PUBLISHED[name].items())
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    detected = type(model).detect(model.state_dict())
    assert model.arguments == detected.arguments | {key: model.arguments[key] for key in detected.assumed}


@pytest.mark.parametrize(
    ("name", "shapes", "arguments"),
    [
        ("mambair_sr_x4", published_shapes(32, (1, 2), 3, 1.5, "pixelshuffle", 4, 3), {"depths": (1, 2)}),
        ("mambair_light_sr_x3", published_shapes(32, (3,), 3, 1.5, "pixelshuffledirect", 3, 3), {"depths": (3,)}),
        ("mambair_unet", published_unet_shapes(32, (1, 1, 1, 1), 1), {"blocks": (1, 1, 1, 1), "refinement": 1}),
        (
            "mambair_unet",
            published_unet_shapes(32, (1, 1, 1, 1), 1, True),
            {"blocks": (1, 1, 1, 1), "refinement": 1, "dual_pixel": True, "in_chans": 6},
        ),
    ],
    ids=["pixelshuffle", "pixelshuffledirect", "U-Net", "dual pixel"],
)
def test_a_published_file_loads_strictly_by_name_and_by_detection_and_is_written_back(
    name, shapes, arguments, tmp_path
):
    weights = fill({key: torch.zeros(shape) for key, shape in shapes.items()})
    torch.save({"params": weights}, tmp_path / "net_g.pth")
    state = {} if name == "mambair_unet" else {"state": 3, "expand": 1.5}
    named = create_model(name, dim=32, **state, **arguments, checkpoint_path=tmp_path / "net_g.pth")
    found = load(tmp_path / "net_g.pth")
    assert found.arguments == named.arguments
    write_checkpoint(tmp_path / "back.pth", found, published=True)
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert list(back) == list(weights) and all(torch.equal(back[key], weights[key]) for key in weights)


MEAN = torch.tensor([0.4488, 0.4371, 0.4040], dtype=torch.float64)[:, None, None]


@pytest.mark.parametrize("scale", [2, 3, 4])
@torch.no_grad()
def test_the_enlarging_heads_restate_their_description(scale):
    x = picture(3, 4, 5, dtype=torch.float64)
    for upsampler in ("pixelshuffle", "pixelshuffledirect"):
        model = MambaIR(4, depths=(1,), state=2, upsampler=upsampler, scale=scale).double().eval()
        state = far_from_default(model, seed=1)
        model.load_state_dict(state)

        def convolve(name, x, state=state):
            return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

        def shuffle(x, by):
            b, c, h, w = x.shape
            return x.view(b, c // by**2, by, by, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // by**2, h * by, w * by)

        y = model.forward_features(x)
        if upsampler == "pixelshuffle":
            y = convolve("conv_before_upsample.0", y)
            y = torch.where(y > 0, y, 0.01 * y)
            for i in range(2 if scale == 4 else 1):
                y = shuffle(convolve(f"upsample.{2 * i}", y), 3 if scale == 3 else 2)
            y = convolve("conv_last", y)
        else:
            y = shuffle(convolve("upsample.0", y), scale)
        assert error(model(x), y + MEAN) < 1e-6  # the mean is a float32 buffer


@torch.no_grad()
def test_the_body_restates_its_description():
    model = MambaIR(4, depths=(1, 2), state=2, convs="3conv").double().eval()
    model.load_state_dict(far_from_default(model, seed=1))
    x = picture(3, 4, 5, dtype=torch.float64)
    first = model.conv_first(x - model.mean)
    y = model.patch_embed.norm(first)
    for group in model.layers:
        z = y
        for part in group.residual_group.blocks:
            z = part(z)
        y = y + group.conv(z)
    y = model.conv_after_body(model.norm(y)) + first
    assert error(model.forward_features(x), y) < 1e-12
    assert error(model(x), x + model.conv_last(y)) < 1e-12


def test_the_mean_of_the_colours_is_no_weight_and_grey_images_have_none():
    colour, grey = MambaIR(4, depths=(1,)), MambaIR(4, depths=(1,), in_chans=1)
    assert "mean" not in colour.state_dict() and colour.mean.flatten().tolist() == pytest.approx(
        MEAN.flatten().tolist()
    )
    assert grey.mean.flatten().tolist() == [0.0]


@torch.no_grad()
def test_dual_pixel_images_are_not_part_of_the_result():
    model = MambaIRUNet(4, blocks=(1, 1, 1, 1), refinement=1, state=2, dual_pixel=True, in_chans=6).double().eval()
    model.load_state_dict(far_from_default(model, seed=1))
    x = picture(6, 5, 9, dtype=torch.float64)
    assert model(x).shape == (1, 3, 5, 9) and model.forward_outputs(x)["residual"] is None
    model.output.weight.zero_()
    assert not model(x).any()
    padded = picture(6, 8, 8, dtype=torch.float64)
    model.load_state_dict(far_from_default(model, seed=1))
    features, embedded = model.forward_features(padded), F.conv2d(padded, model.patch_embed.proj.weight, padding=1)
    want = model.output(features + torch.einsum("oc,bchw->bohw", model.skip_conv.weight[:, :, 0, 0], embedded))
    assert error(model(padded), want) < 1e-12


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3)], ids=str)
@torch.no_grad()
def test_a_grey_image_of_any_size_comes_back(size):
    model = create_model("mambair_car", dim=8, depths=(1,), state=2).eval()
    assert model(picture(1, *size)).shape == (1, 1, *size)


def test_scans_are_left_out_ever_more_often_with_depth():
    model = MambaIR(4, depths=(1, 3), state=2)
    rates = [block.drop_path.rate for group in model.layers for block in group.residual_group.blocks]
    assert rates == pytest.approx([0.0, 0.1 / 3, 0.2 / 3, 0.1])
    assert model.train()(picture(3, 2, 2)).isfinite().all()


def test_linear_layers_start_small_and_nothing_else_is_drawn_anew():
    torch.manual_seed(0)
    model = MambaIR(64, depths=(2,))
    for name, parameter in model.named_parameters():
        if fnmatch.fnmatchcase(name, "*.???_proj.weight") or name.endswith("in_proj.weight"):
            assert abs(parameter.std().item() - 0.02) < 1e-3, name
        elif name.endswith("x_proj_weight"):
            assert parameter.std() > 0.04
        elif "skip_scale" in name or name.endswith("Ds"):
            assert bool((parameter == 1).all()), name


@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        (MambaIR, {"depths": ()}, r"depths has a positive number for each group, got \(\)"),
        (MambaIR, {"upsampler": "nearest"}, "upsampler is one of 'none', 'pixelshuffle', .*, got 'nearest'"),
        (MambaIR, {"scale": 2}, "scale must be 1 without an upsampler, got 2"),
        (MambaIR, {"upsampler": "pixelshuffle", "scale": 6}, "scale must be a power of 2, or 3, .*, got 6"),
        (MambaIR, {"convs": "2conv"}, "convs is '1conv' or '3conv', got '2conv'"),
        (MambaIRUNet, {"dim": 5}, "dim must be even, got 5"),
        (MambaIRUNet, {"blocks": (1, 1, 1)}, "blocks has one positive number for each of four levels"),
        (MambaIRUNet, {"dual_pixel": True}, "in_chans must be even with dual_pixel, half for each view, got 3"),
    ],
)
def test_an_impossible_argument_is_named(family, arguments, message):
    with pytest.raises(ValueError, match=message):
        family(**{"dim": 4, **arguments})
