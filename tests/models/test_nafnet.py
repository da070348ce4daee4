"""NAFNet against its published counts, names, fingerprints and padding."""

import pytest
import torch

from slicescan import create_model, load, model_entry
from slicescan.models.nafnet import NAFNet
from tests.fingerprint import fill, picture, summary
from tests.models.weights import error, far_from_default

SMALL = {"enc_blocks": (1, 2), "middle_blocks": 1, "dec_blocks": (1, 1)}
COSTS = {
    "nafnet_w32": (17_111_907, 15.96),
    "nafnet_w64": (67_888_835, 63.06),
    "nafnet_sidd_w32": (29_159_715, 16.05),
    "nafnet_sidd_w64": (115_982_915, 63.24),
}


@pytest.mark.parametrize("name", COSTS)
def test_the_cost_is_the_published_one(name):
    """Of the record, which tests/models/test_cost.py holds to the network itself."""
    record = model_entry(name)
    params, giga = COSTS[name]
    assert record.params == params and record.macs_256 / 1e9 == pytest.approx(giga, rel=0.005)


def test_each_name_tells_its_task_and_where_its_weights_are():
    for name in COSTS:
        record = model_entry(name)
        assert record.task == ("denoising" if "sidd" in name else "motion deblurring")
        assert record.license == "MIT"
        assert record.weights[0].file == f"NAFNet-{'SIDD' if 'sidd' in name else 'GoPro'}-width{name[-2:]}.pth"


@pytest.mark.parametrize(
    ("size", "tlc", "expected"),
    [
        ((18, 23), False, [5.486546, 24.847961, -2.353445, 2.551151, -21.986536]),
        ((40, 52), False, [0.916921, 19.067900, -0.204382, 0.401960, 0.515635]),
        ((40, 52), True, [1.222005, 17.945005, -0.497094, -0.169482, -4.112861]),
    ],
)
@torch.no_grad()
def test_the_network_has_the_public_fingerprint(size, tlc, expected):
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 3e-5)):  # the published figures are float32 ones
        model = NAFNet(8, **SMALL, tlc=tlc, tlc_crop=16).to(dtype)
        fill(model)
        assert summary(model(picture(3, *size, dtype=dtype))) == pytest.approx(expected, rel=tolerance)


def test_windows_are_one_and_a_half_crops_at_every_level():
    def windows(model: NAFNet) -> list[int]:
        stages = [*model.encoders, model.middle_blks, *model.decoders]
        return [stage[0].sca[0].window for stage in stages]

    assert windows(create_model("nafnet_w32", width=2, tlc=True)) == [384, 192, 96, 48, 24, 48, 96, 192, 384]
    assert windows(NAFNet(8, **SMALL, tlc=True, tlc_crop=16)) == [24, 12, 6, 12, 24]
    assert windows(NAFNet(8, **SMALL)) == [None] * 5


@torch.no_grad()
def test_windows_change_nothing_up_to_their_size_and_something_beyond():
    plain, local = (NAFNet(8, **SMALL, tlc=tlc, tlc_crop=16).double() for tlc in (False, True))
    for model in (plain, local):
        model.load_state_dict(far_from_default(model, seed=0))
    for side, same in ((16, True), (24, True), (28, False)):
        x = picture(3, side, side, dtype=torch.float64)
        assert torch.equal(plain(x), local(x)) is same


def published_shapes(width: int, enc: tuple[int, ...], middle: int, dec: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published file, in its order."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, inside: int, size: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, inside, size, size), (out,)

    def blocks(stage: str, c: int, count: int) -> None:
        for j in range(count):
            block = f"{stage}.{j}"
            shapes[f"{block}.beta"] = shapes[f"{block}.gamma"] = (1, c, 1, 1)
            conv(f"{block}.conv1", 2 * c, c, 1)
            conv(f"{block}.conv2", 2 * c, 1, 3)
            conv(f"{block}.conv3", c, c, 1)
            conv(f"{block}.sca.1", c, c, 1)
            conv(f"{block}.conv4", 2 * c, c, 1)
            conv(f"{block}.conv5", c, c, 1)
            for norm in ("norm1", "norm2"):
                shapes[f"{block}.{norm}.weight"] = shapes[f"{block}.{norm}.bias"] = (c,)

    levels = len(enc)
    conv("intro", width, 3, 3)
    conv("ending", 3, width, 3)
    for i in range(levels):
        blocks(f"encoders.{i}", width * 2**i, enc[i])
    for i in range(levels):
        blocks(f"decoders.{i}", width * 2 ** (levels - 1 - i), dec[i])
    blocks("middle_blks", width * 2**levels, middle)
    for i in range(levels):
        c = width * 2 ** (levels - i)
        shapes[f"ups.{i}.0.weight"] = (2 * c, c, 1, 1)
    for i in range(levels):
        conv(f"downs.{i}", width * 2 ** (i + 1), width * 2**i, 2)
    return shapes


PUBLISHED = {
    "nafnet_w32": (32, (1, 1, 1, 28), 1, (1, 1, 1, 1)),
    "nafnet_w64": (64, (1, 1, 1, 28), 1, (1, 1, 1, 1)),
    "nafnet_sidd_w32": (32, (2, 2, 4, 8), 12, (2, 2, 2, 2)),
    "nafnet_sidd_w64": (64, (2, 2, 4, 8), 12, (2, 2, 2, 2)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_shapes_and_order_are_those_of_the_published_file(name):
    with torch.device("meta"):
        model = create_model(name)
    assert list({key: tuple(value.shape) for key, value in model.state_dict().items()}.items()) == list(
        published_shapes(*PUBLISHED[name]).items()
    )


def test_a_published_file_loads_strictly_by_name_and_by_detection(tmp_path, caplog):
    sizes = (4, (1, 1, 1, 2), 1, (1, 1, 1, 1))
    weights = fill({f"module.{key}": torch.zeros(shape) for key, shape in published_shapes(*sizes).items()})
    torch.save({"params": weights}, tmp_path / "NAFNet.pth")
    reduced = {"width": 4, "enc_blocks": (1, 1, 1, 2)}
    named = create_model("nafnet_w32", **reduced, tlc=True, checkpoint_path=tmp_path / "NAFNet.pth")
    found = load(tmp_path / "NAFNet.pth", tlc=True)
    assert found.arguments == named.arguments
    for state in (found.state_dict(), named.state_dict()):
        assert all(torch.equal(value, weights[f"module.{key}"]) for key, value in state.items())
    assert not caplog.records
    assert load(tmp_path / "NAFNet.pth").arguments["tlc"] is False
    assert "NAFNet; the file leaves open tlc: default taken" in caplog.text


@torch.no_grad()
def test_a_fresh_network_is_its_stem_and_its_ending():
    model, x = NAFNet(8, **SMALL).double(), picture(3, 8, 12, dtype=torch.float64)
    e1 = model.intro(x)
    e2 = model.downs[0](e1)
    d2 = model.ups[0](model.downs[1](e2)) + e2
    assert error(model(x), x + model.ending(model.ups[1](d2) + e1)) < 1e-12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width must be positive, got 0"),
        ({"enc_blocks": (1, 0)}, "enc_blocks must be positive, got 0"),
        ({"middle_blocks": 0}, "middle_blocks must be positive"),
        ({"tlc_crop": 0}, "tlc_crop must be positive"),
        ({"dec_blocks": (1,)}, r"one number for each level, got \(1, 2\) and \(1,\)"),
        ({"enc_blocks": (), "dec_blocks": ()}, "one number for each level"),
    ],
)
def test_an_impossible_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        NAFNet(**{"width": 8, **SMALL, **arguments})
