"""XYScanNet against public figures, against a second statement of the network, and against its published file."""

import math

import pytest
import torch

from slicescan import create_model, load, model_entry
from slicescan.checkpoint import write_checkpoint
from slicescan.models.xyscannet import XYScanNet
from tests.fingerprint import fill, picture, summary
from tests.models import restatement
from tests.models.weights import error, far_from_default

PARAMETERS = {
    "xyscannet_tiny": 1_917_504,
    "xyscannet_small": 7_301_952,
    "xyscannet": 16_155_072,
    "xyscannet_plus": 63_514_368,
    "xyscannet_small_intra": 7_301_952,
    "xyscannet_small_inter": 7_301_952,
    "xyscannet_small_mambair": 7_406_496,
    "xyscannet_small_aff": 7_382_880,
    "xyscannet_small_skip": 7_230_528,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_papers(name):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert not list(model.buffers())


MULTIPLY_ADDS = {"xyscannet_tiny": 15.6, "xyscannet_small": 58.8, "xyscannet": 129.6, "xyscannet_plus": 507.4}


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_multiply_adds_are_the_papers(name):
    """Of the record, which tests/models/test_cost.py holds to what the profiler counts."""
    assert round(model_entry(name).macs_256 / 1e9, 1) == MULTIPLY_ADDS[name]


@pytest.mark.parametrize(
    ("name", "params", "giga"), [("xyscannet_small", 71_424, 2.189), ("xyscannet_small_aff", 152_352, 4.303)]
)
def test_fusion_costs_what_the_paper_says(name, params, giga):
    fused, plain = model_entry(name), model_entry("xyscannet_small_skip")
    assert fused.params - plain.params == params
    assert round((fused.macs_256 - plain.macs_256) / 1e9, 3) == giga


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ((3, 3, 6), [-0.97680115, 4.08627490, -1.56647158, 2.56413661, -0.95840403]),
        ((1, 1, 2), [-1.02941738, 4.65525913, -0.64765697, 1.20063402, -1.71637998]),
    ],
)
@torch.no_grad()
def test_the_residual_has_the_public_fingerprint(blocks, expected):
    model = XYScanNet(24, blocks=blocks).double()
    fill(model)
    residual = model.forward_outputs(picture(3, 16, 24, dtype=torch.float64))["residual"]
    assert summary(residual) == pytest.approx(expected, rel=1e-5)


def test_a_seed_gives_the_published_initialisation():
    torch.manual_seed(7)
    model = create_model("xyscannet_tiny")
    total = sum(parameter.double().sum().item() for parameter in model.parameters())
    assert total == pytest.approx(47565.94945084, abs=1e-6)
    assert model.output.weight.flatten()[-1].item() == -0.04288589581847191


def published_shapes(d: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published file, in its order, for blocks 3, 3, 6."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norms(prefix: str, kind: str, c: int) -> None:
        for k in (1, 2):
            shapes[f"{prefix}norm{k}_{kind}.body.weight"] = shapes[f"{prefix}norm{k}_{kind}.body.bias"] = (c,)

    def feed_forward(prefix: str, c: int) -> None:
        norms(prefix, "ffn", c)
        for k in (1, 2):
            shapes[f"{prefix}ffn{k}.project_in.weight"] = (2 * c, c, 1, 1)
            shapes[f"{prefix}ffn{k}.dwconv.weight"] = (2 * c, 1, 3, 3)
            shapes[f"{prefix}ffn{k}.project_out.weight"] = (c, c, 1, 1)

    def scanner(prefix: str, c: int) -> None:
        r = math.ceil(c / 32)
        shapes[f"{prefix}proj_in.weight"] = (2 * c, c, 1, 1)
        shapes[f"{prefix}dwconv.weight"] = (2 * c, 1, 3, 3)
        for name in ("proj_out", "conv_input", "fuse_out"):
            shapes[f"{prefix}{name}.weight"] = (c, c, 1, 1)
        inner = {"A_log": (c, 16), "D": (c,), "in_proj.weight": (2 * c, c // 2), "conv1d.weight": (c, 1, 4)}
        inner |= {"conv1d.bias": (c,), "x_proj.weight": (r + 32, c), "dt_proj.weight": (c, r), "dt_proj.bias": (c,)}
        inner |= {"out_proj.weight": (c // 2, c)}
        shapes.update({f"{prefix}mamba.{name}": shape for name, shape in inner.items()})

    def stage(name: str, c: int, blocks: int, scans: bool) -> None:
        for i in range(blocks):
            if scans:
                norms(f"{name}.{i}.", "ssm", c)
                scanner(f"{name}.{i}.intra.", c)
                scanner(f"{name}.{i}.inter.", c)
            feed_forward(f"{name}.{i}.", c)

    def fusion(name: str, c: int, n1: int, n2: int) -> None:
        for conv, width in (("conv", c), ("conv_n1", n1), ("conv_n2", n2), ("fuse_out1", 2 * c)):
            shapes[f"{name}.{conv}.weight"] = (c, width, 1, 1)

    shapes["patch_embed.proj.weight"] = (d, 3, 3, 3)
    stage("encoder_level1", d, 3, False)
    shapes["down1_2.body.1.weight"] = (2 * d, d, 3, 3)
    stage("encoder_level2", 2 * d, 3, False)
    shapes["down2_3.body.1.weight"] = (4 * d, 2 * d, 3, 3)
    stage("encoder_level3", 4 * d, 6, False)
    stage("decoder_level3", 4 * d, 6, True)
    shapes["up3_2.body.1.weight"] = (2 * d, 4 * d, 3, 3)
    fusion("clff_level2", 2 * d, d, 4 * d)
    shapes["reduce_chan_level2.weight"] = (2 * d, 4 * d, 1, 1)
    stage("decoder_level2", 2 * d, 3, True)
    shapes["up2_1.body.1.weight"] = (d, 2 * d, 3, 3)
    fusion("clff_level1", d, 2 * d, 4 * d)
    shapes["reduce_chan_level1.weight"] = (d, 2 * d, 1, 1)
    stage("decoder_level1", d, 3, True)
    shapes["output.weight"] = (3, d, 3, 3)
    return shapes


@pytest.mark.parametrize("name", ["xyscannet_tiny", "xyscannet", "xyscannet_plus"])
def test_names_shapes_and_order_are_those_of_the_published_file(name):
    with torch.device("meta"):
        model = create_model(name)
    found = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert len(found) == 640
    assert list(found.items()) == list(published_shapes(XYScanNet.variants[name]["dim"]).items())


def test_a_published_file_loads_strictly_and_is_written_back_as_it_was(tmp_path):
    """With the `module.` of the authors' trainer, bare (best_*.pth) and among a trainer's other states (last_*.pth)."""
    weights = {f"module.{key}": torch.zeros(shape) for key, shape in published_shapes(24).items()}
    fill(weights)
    torch.save(weights, tmp_path / "best.pth")
    torch.save({"epoch": 3999, "model_state": weights, "scheduler_state": {"last_epoch": 3999}}, tmp_path / "last.pth")
    for file in ("best.pth", "last.pth"):
        for model in (load(tmp_path / file), create_model("xyscannet_tiny", checkpoint_path=tmp_path / file)):
            assert model.architecture == "xyscannet_tiny"
            write_checkpoint(tmp_path / "back.pth", model, published=True)
            back = torch.load(tmp_path / "back.pth", weights_only=True)
            assert [f"module.{key}" for key in back] == list(weights)
            assert all(torch.equal(back[key.removeprefix("module.")], value) for key, value in weights.items())


SHAPES = [(1, 3, 8, 8), (1, 3, 8, 12), (1, 3, 4, 4), (2, 3, 12, 8)]


@pytest.mark.parametrize("gate", ["sample", "tensor"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_equal_a_second_statement_of_the_network(shape, gate):
    blocks = (1, 1, 2)
    model = XYScanNet(8, blocks=blocks, fusion_gate=gate).double()
    model.load_state_dict(far_from_default(model, seed=1))
    draw = torch.Generator().manual_seed(2)
    x = torch.rand(shape, generator=draw, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(shape, generator=draw, dtype=torch.float64)
    parameters = dict(model.named_parameters())
    tensors = [x, *parameters.values()]

    found, expected = model(x), restatement.restore(parameters, x, blocks, gate)
    assert error(found, expected) <= 1e-9
    found_gradients = torch.autograd.grad(found, tensors, direction)
    expected_gradients = torch.autograd.grad(expected, tensors, direction)
    for name, a, b in zip(["x", *parameters], found_gradients, expected_gradients, strict=True):
        assert error(a, b) <= 1e-9, name


@torch.no_grad()
def test_only_the_tensor_gate_lets_images_of_a_batch_mix():
    draw = torch.Generator().manual_seed(3)
    x = torch.rand(2, 3, 8, 8, generator=draw, dtype=torch.float64)
    for gate, mixes in (("sample", False), ("pixel", False), ("tensor", True)):
        model = XYScanNet(8, blocks=(1, 1, 1), fusion_gate=gate).double()
        model.load_state_dict(far_from_default(model, seed=4))
        apart = torch.cat([model(x[:1]), model(x[1:])])
        assert (error(model(x), apart) > 1e-5) is mixes, gate


def test_names_of_scanner_slots_do_not_depend_on_what_they_hold():
    models = [XYScanNet(8, blocks=(1, 1, 1), scanners=pair) for pair in (("intra", "inter"), ("inter", "intra"))]
    assert list(models[0].state_dict()) == list(models[1].state_dict())
    assert type(models[0].decoder_level1[0].intra) is type(models[1].decoder_level1[0].inter)
    mixed = XYScanNet(8, blocks=(1, 1, 1), scanners=("ss2d", "inter"))
    assert "decoder_level1.0.intra.A_logs" in mixed.state_dict()


VARIED = [
    {"dim": 8, "blocks": [1, 2, 3]},
    {"dim": 10, "blocks": [2, 1, 1], "vssm_expand": 1.4, "ffn_expand": 2.66, "state": 4},
    {"dim": 8, "blocks": [1, 1, 1], "bias": True, "norm": "bias_free", "fusion": "aff"},
    {"dim": 8, "blocks": [1, 1, 1], "scanners": ["ss2d", "ss2d"], "state": 3, "fusion": "skip"},
    {"dim": 8, "blocks": [1, 1, 1], "in_chans": 1, "vssm_expand": 0.75},
]


@pytest.mark.parametrize("arguments", VARIED, ids=str)
def test_arguments_are_read_off_names_and_shapes(arguments):
    model = XYScanNet(**arguments)
    detected = XYScanNet.detect(model.state_dict())
    assert detected is not None
    for key in arguments.keys() - {"vssm_expand", "ffn_expand"}:  # of these, any number with the same widths will do
        assert detected.arguments[key] == arguments[key], key
    XYScanNet(**detected.arguments).load_state_dict(model.state_dict())
    own_scanners = arguments.get("scanners") != ["ss2d", "ss2d"]
    assert ("scanners" in detected.assumed) == own_scanners
    assert ("fusion_gate" in detected.assumed) == (arguments.get("fusion", "klff") == "klff")


def test_weights_of_another_network_are_not_detected():
    assert XYScanNet.detect({"conv.weight": torch.ones(3, 3, 3, 3)}) is None
    state = XYScanNet(8, blocks=(1, 1, 1)).state_dict()
    assert XYScanNet.detect({key: value for key, value in state.items() if "inter" not in key}) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 7}, "dim must be even, got 7"),
        ({"blocks": (1, 1)}, "blocks has one positive number for each of three levels"),
        ({"scanners": ("intra",)}, "scanners has two entries"),
        ({"scanners": ("intra", "both")}, "scanners is one of 'intra', 'inter', 'ss2d', got 'both'"),
        ({"fusion": "sum"}, "fusion is one of 'klff', 'aff', 'skip', got 'sum'"),
        ({"fusion_gate": "batch"}, "gate is one of 'sample', 'tensor', 'pixel'; got 'batch'"),
        ({"norm": "batch"}, "norm is one of 'layer', 'bias_free', got 'batch'"),
        ({"out_chans": 1}, "out_chans must equal in_chans"),
    ],
)
def test_an_impossible_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        XYScanNet(**{"dim": 8, "blocks": (1, 1, 1), **arguments})
