"""MIMO-UNet against its published counts, names and fingerprints."""

import pytest
import torch
import torch.nn.functional as F

from slicescan import create_model, load, model_entry
from slicescan.models.mimo_unet import MIMOUNet
from tests.fingerprint import fill, picture, summary
from tests.models.weights import error, far_from_default

COSTS = {"mimo_unet": (6_807_171, 63.73), "mimo_unet_plus": (16_107_651, 150.71)}


@pytest.mark.parametrize("name", COSTS)
def test_the_cost_is_the_published_one(name):
    """Of the record, which tests/models/test_cost.py holds to the network itself."""
    record = model_entry(name)
    params, giga = COSTS[name]
    assert record.params == params and record.macs_256 / 1e9 == pytest.approx(giga, rel=0.005)
    assert record.weights[0].file.endswith(".pkl") and "no licence" in record.license


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (2, [-4.964041, 60.077956, 4.548804, 2.169558, -6.434733]),
        (0, [-21.815428, 530.382885, 7.989708, 93.977348, 242.056198]),
    ],
    ids=["quarter", "full"],
)
@torch.no_grad()
def test_the_network_has_the_public_fingerprint(output, expected):
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-5)):
        model = MIMOUNet(num_res=1).to(dtype)
        fill(model)
        found = model.forward_outputs(picture(3, 16, 24, dtype=dtype))["outputs"][output]
        assert summary(found) == pytest.approx(expected, rel=tolerance)


def published_shapes(c: int, num_res: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published file, in its order."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, inside: int, size: int) -> None:
        shapes[f"{name}.main.0.weight"], shapes[f"{name}.main.0.bias"] = (out, inside, size, size), (out,)

    def coder(name: str, widths: tuple[int, ...]) -> None:
        for i, width in enumerate(widths):
            for r in range(num_res):
                for k in (0, 1):
                    conv(f"{name}.{i}.layers.{r}.main.{k}", width, width, 3)

    coder("Encoder", (c, 2 * c, 4 * c))
    conv("feat_extract.0", c, 3, 3)
    conv("feat_extract.1", 2 * c, c, 3)
    conv("feat_extract.2", 4 * c, 2 * c, 3)
    for i, wide in ((3, 4 * c), (4, 2 * c)):
        shapes[f"feat_extract.{i}.main.0.weight"] = (wide, wide // 2, 4, 4)
        shapes[f"feat_extract.{i}.main.0.bias"] = (wide // 2,)
    conv("feat_extract.5", 3, c, 3)
    coder("Decoder", (4 * c, 2 * c, c))
    conv("Convs.0", 2 * c, 4 * c, 1)
    conv("Convs.1", c, 2 * c, 1)
    conv("ConvsOut.0", 3, 4 * c, 3)
    conv("ConvsOut.1", 3, 2 * c, 3)
    for i, width in ((0, c), (1, 2 * c)):
        conv(f"AFFs.{i}.conv.0", width, 7 * c, 1)
        conv(f"AFFs.{i}.conv.1", width, width, 3)
    for i, p in ((1, 4 * c), (2, 2 * c)):
        conv(f"FAM{i}.merge", p, p, 3)
        conv(f"SCM{i}.main.0", p // 4, 3, 3)
        conv(f"SCM{i}.main.1", p // 2, p // 4, 1)
        conv(f"SCM{i}.main.2", p // 2, p // 2, 3)
        conv(f"SCM{i}.main.3", p - 3, p // 2, 1)
        conv(f"SCM{i}.conv", p, p, 1)
    return shapes


@pytest.mark.parametrize("name", COSTS)
def test_names_shapes_and_order_are_those_of_the_published_file(name):
    with torch.device("meta"):
        model = create_model(name)
    found = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert list(found.items()) == list(published_shapes(32, model.arguments["num_res"]).items())


@pytest.mark.parametrize(("name", "num_res", "dropout"), [("mimo_unet", 8, 0.0), ("mimo_unet_plus", 20, 0.1)])
def test_a_published_file_loads_strictly_by_name_and_by_detection(tmp_path, caplog, name, num_res, dropout):
    weights = fill({key: torch.zeros(shape) for key, shape in published_shapes(4, num_res).items()})
    torch.save({"model": weights}, tmp_path / "MIMO-UNet.pkl")
    named = create_model(name, dim=4, checkpoint_path=tmp_path / "MIMO-UNet.pkl")
    found = load(tmp_path / "MIMO-UNet.pkl")
    assert found.arguments == named.arguments and found.arguments["dropout"] == dropout
    assert "MIMOUNet; the file leaves open dropout: default taken" in caplog.text
    for state in (found.state_dict(), named.state_dict()):
        assert all(torch.equal(state[key], value) for key, value in weights.items())


def test_each_smaller_output_starts_from_the_image_thinned_by_nearest_neighbour():
    model, x = MIMOUNet(4, num_res=1).double().eval(), picture(3, 8, 12, dtype=torch.float64)
    with torch.no_grad():
        for layer in (model.feat_extract[5], *model.ConvsOut):
            for parameter in layer.parameters():
                parameter.zero_()
        found = model.forward_outputs(x)["outputs"]
    half = F.interpolate(x, scale_factor=0.5)
    for output, expected in zip(found, (x, half, F.interpolate(half, scale_factor=0.5)), strict=True):
        assert torch.equal(output, expected)


def reach(num_res: int) -> int:
    """How far the result at a pixel looks: the longest of the sixteen ways in which it may lie in a square."""
    model = MIMOUNet(4, num_res=num_res).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()  # so that nothing cancels
    x = torch.ones(1, 3, 4, 256, dtype=torch.float64, requires_grad=True)
    y, far = model(x), 0
    for column in range(128, 132):
        (gradient,) = torch.autograd.grad(y[0, 0, 0, column], x, retain_graph=True)
        seen = gradient.abs().sum((0, 1, 2)).nonzero()
        far = max(far, column - int(seen.min()), int(seen.max()) - column)
    return far


def test_a_pixel_looks_as_far_as_the_record_says():
    assert (reach(1), reach(2)) == (17 + 28, 17 + 2 * 28)
    for name, num_res in (("mimo_unet", 8), ("mimo_unet_plus", 20)):
        assert model_entry(name).arguments["num_res"] == num_res
        assert str(17 + 28 * num_res) in model_entry(name).tiling_reason


def test_dropout_takes_whole_channels_of_the_fused_maps_in_training_only():
    model, x = MIMOUNet(4, num_res=1, dropout=0.5), picture(3, 8, 8)
    model.load_state_dict(far_from_default(model, seed=0))
    plain = MIMOUNet(4, num_res=1)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model.eval()(x), plain(x))
        first, second = (model.train()(x) for _ in range(2))
    assert error(first, second) > 1e-3
    quarter = [net.train().forward_outputs(x)["outputs"][2] for net in (model, plain)]
    assert torch.equal(*quarter)  # made before any fused map is used


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"dim": 1}, "dim must be at least 2, got 1"), ({"num_res": 0}, "num_res must be at least 1, got 0")],
)
def test_an_impossible_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MIMOUNet(**{"dim": 8, "num_res": 1, **arguments})
