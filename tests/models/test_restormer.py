"""Restormer against its published counts, names and fingerprints."""

import pytest
import torch

from slicescan import create_model, load, model_entry
from slicescan.models.restormer import Restormer
from tests.fingerprint import fill, picture, summary

SMALL = {"blocks": (1, 1, 1, 1), "refinement": 1}


@pytest.mark.parametrize(("norm", "params"), [("layer", 26_126_644), ("bias_free", 26_111_668)])
def test_parameter_counts_are_the_published_ones(norm, params):
    with torch.device("meta"):
        model = create_model("restormer", norm=norm)
    assert sum(parameter.numel() for parameter in model.parameters()) == params


def test_the_cost_is_the_published_one():
    """Of the record, which tests/models/test_cost.py holds to the network itself."""
    record = model_entry("restormer")
    assert record.params == 26_126_644 and record.macs_256 / 1e9 == pytest.approx(154.88, rel=0.005)
    assert "non-commercial" in record.license and record.weights[0].file == "motion_deblurring.pth"


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("layer", [1.143996, 7.655753, 1.950767, 6.362026, 0.440250]),
        ("bias_free", [1.615875, 12.115590, 2.734410, 10.796361, 2.181548]),
    ],
)
@torch.no_grad()
def test_the_network_has_the_public_fingerprint(norm, expected):
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 3e-6)):
        model = Restormer(8, **SMALL, norm=norm).to(dtype)
        fill(model)
        assert summary(model(picture(3, 16, 24, dtype=dtype))) == pytest.approx(expected, rel=tolerance)


def published_shapes(d: int, blocks: tuple[int, ...], refinement: int, biased_norm: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published file, in its order."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, c: int) -> None:
        for kind in ("weight", "bias")[: 1 + biased_norm]:
            shapes[f"{name}.body.{kind}"] = (c,)

    def stage(name: str, c: int, heads: int, count: int) -> None:
        hidden = int(2.66 * c)
        for i in range(count):
            block = f"{name}.{i}"
            norm(f"{block}.norm1", c)
            shapes[f"{block}.attn.temperature"] = (heads, 1, 1)
            shapes[f"{block}.attn.qkv.weight"] = (3 * c, c, 1, 1)
            shapes[f"{block}.attn.qkv_dwconv.weight"] = (3 * c, 1, 3, 3)
            shapes[f"{block}.attn.project_out.weight"] = (c, c, 1, 1)
            norm(f"{block}.norm2", c)
            shapes[f"{block}.ffn.project_in.weight"] = (2 * hidden, c, 1, 1)
            shapes[f"{block}.ffn.dwconv.weight"] = (2 * hidden, 1, 3, 3)
            shapes[f"{block}.ffn.project_out.weight"] = (c, hidden, 1, 1)

    shapes["patch_embed.proj.weight"] = (d, 3, 3, 3)
    for level in (1, 2, 3):
        c = d * 2 ** (level - 1)
        stage(f"encoder_level{level}", c, 2 ** (level - 1), blocks[level - 1])
        shapes[f"down{level}_{level + 1}.body.0.weight"] = (c // 2, c, 3, 3)
    stage("latent", 8 * d, 8, blocks[3])
    for level in (3, 2):
        c = d * 2 ** (level - 1)
        shapes[f"up{level + 1}_{level}.body.0.weight"] = (4 * c, 2 * c, 3, 3)
        shapes[f"reduce_chan_level{level}.weight"] = (c, 2 * c, 1, 1)
        stage(f"decoder_level{level}", c, 2 ** (level - 1), blocks[level - 1])
    shapes["up2_1.body.0.weight"] = (4 * d, 2 * d, 3, 3)
    stage("decoder_level1", 2 * d, 1, blocks[0])
    stage("refinement", 2 * d, 1, refinement)
    shapes["output.weight"] = (3, 2 * d, 3, 3)
    return shapes


@pytest.mark.parametrize("norm", ["layer", "bias_free"])
def test_names_shapes_and_order_are_those_of_the_published_file(norm):
    with torch.device("meta"):
        model = create_model("restormer", norm=norm)
    found = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert list(found.items()) == list(published_shapes(48, (4, 6, 6, 8), 4, norm == "layer").items())


def test_a_published_file_loads_strictly_by_name_and_by_detection(tmp_path, caplog):
    shapes = published_shapes(8, (1, 1, 1, 2), 1, True)
    weights = fill({key: torch.zeros(shape) for key, shape in shapes.items()})
    torch.save({"params": weights}, tmp_path / "motion_deblurring.pth")
    reduced = {"dim": 8, "blocks": (1, 1, 1, 2), "refinement": 1}
    named = create_model("restormer", **reduced, checkpoint_path=tmp_path / "motion_deblurring.pth")
    found = load(tmp_path / "motion_deblurring.pth")
    assert found.arguments == named.arguments and found.architecture == "restormer" and not caplog.records
    for state in (found.state_dict(), named.state_dict()):
        assert all(torch.equal(state[key], value) for key, value in weights.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 7}, "dim must be even, got 7"),
        ({"blocks": (1, 1, 1)}, "blocks has one positive number for each of four levels"),
        ({"heads": (1, 2, 4, 0)}, "heads has one positive number for each of four levels"),
        ({"heads": (1, 2, 4, 7)}, "dim must be a multiple of heads, got 64 and 7"),
        ({"refinement": 0}, "refinement must be positive, got 0"),
        ({"norm": "BiasFree"}, "norm is one of 'layer', 'bias_free', got 'BiasFree'"),
    ],
)
def test_an_impossible_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Restormer(**{"dim": 8, **SMALL, **arguments})
