"""Exported files against PyTorch, at sizes that the export did not see."""

import copy
import sys

import onnx
import onnxruntime
import pytest
import torch

from slicescan.checkpoint import write_checkpoint
from slicescan.engine.export import export, export_program, write_onnx
from slicescan.layers import AFF, KLFF, SS2D, BiasFreeNorm2d, IntraVSSM
from slicescan.ops import slice_scan
from slicescan.registry import model_entry
from tests.command_line import Caller, one_error
from tests.models.test_contract import COVERING, FIRST, small
from tests.models.weights import far_from_default
from tests.strategies import Scan

EXPORTED = [name for name in FIRST if "onnx" in model_entry(name).supports]
CASES = [(name, COVERING[model_entry(name).family][0]) for name in EXPORTED]
CASES.append(("mambair_denoise", COVERING["MambaIR"][1]))
"""One model of each family, and super-resolution; tracing takes long. The layers below are what these leave out."""
NAFNET = {"width": 4, "enc_blocks": (1,), "middle_blocks": 1, "dec_blocks": (1,)}


@pytest.fixture
def call(capsys):
    return Caller(capsys, None)


def run(path, x):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


def uniform(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def assert_agrees(use, module, x):
    with torch.no_grad():
        expected, found = module(x), use(x)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_the_families_of_the_contract_promise_onnx():
    assert {model_entry(name).family for name in EXPORTED} == {"XYScanNet", "NAFNet", "MIMOUNet", "MambaIR"}


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_programs_and_onnx_agree_with_pytorch_at_sizes_that_the_export_did_not_see(name, arguments, tmp_path):
    model = small(name, **arguments)
    program, path = export_program(model), tmp_path / "model.onnx"
    write_onnx(program, path)
    for b, rows, columns in ((1, 7, 5), (3, 2, 9)):
        x = uniform(b, model.in_chans, rows * model.size_multiple, columns * model.size_multiple)
        assert_agrees(program.module(), model, x)
        assert_agrees(lambda x: run(path, x), model, x)


class Map(torch.nn.Module):
    """A layer on one map: those that fuse get it at three sizes."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.in_chans, self.size_multiple = layer, 8, 4

    def forward(self, x):
        levels = [x, x.flip(1)[:, :, ::2, ::2] * 60, x[:, :, ::4, ::4] * 60]
        if isinstance(self.layer, KLFF):
            return self.layer(x, levels[1:])
        return self.layer(levels) if isinstance(self.layer, AFF) else self.layer(x)


LAYERS = {
    "AFF": lambda: AFF((8, 8, 8), 8),
    "BiasFreeNorm2d": lambda: BiasFreeNorm2d(8),
    "KLFF": lambda: KLFF(8, (8, 8)),
    "KLFF by pixel": lambda: KLFF(8, (8, 8), gate="pixel"),
    "SS2D": lambda: SS2D(8, state=4),
}
"""What those models do not use, and KLFF on features far from 0, whose logarithms must stay finite."""


@pytest.mark.parametrize("name", LAYERS)
def test_layers_agree_as_onnx(name, tmp_path):
    module, path = Map(LAYERS[name]()).eval(), tmp_path / "layer.onnx"
    module.load_state_dict(far_from_default(module, seed=0))
    write_onnx(export_program(module), path)
    for shape in ((1, 8, 28, 20), (3, 8, 8, 36)):
        assert_agrees(lambda x: run(path, x), module, 4 * uniform(*shape) - 2)


def test_a_scan_is_one_node_whatever_its_length(tmp_path):
    kinds = []
    for h, w in ((8, 8), (64, 48)):
        path = tmp_path / f"{h}.onnx"
        write_onnx(export_program(Map(IntraVSSM(8, state=4)), size=(h, w)), path)
        kinds.append(sorted(node.op_type for node in onnx.load(path).graph.node))
    assert kinds[0] == kinds[1] and kinds[0].count("Scan") == 2  # rows, columns


class Operator(torch.nn.Module):
    """A scan as a module, for what no model asks of it."""

    def __init__(self, arguments, settings):
        super().__init__()
        self.names, self.settings = [name for name in arguments if name != "u"], settings
        for name in self.names:
            self.register_buffer(name, arguments[name])

    def forward(self, u):
        given = {name: getattr(self, name) for name in self.names}
        y, last = slice_scan(u, **given, **self.settings, return_last_state=True)
        return y * last.sum()


@pytest.mark.parametrize("axis", ["w", "h"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("without", [(), ("D", "z", "delta_bias", "initial_state")])
def test_every_form_of_the_scan_is_written(axis, reverse, carry, without, tmp_path):
    scan = Scan(b=2, h=3, w=5, d=8, n=4, groups=2, axis=axis, reverse=reverse, carry=carry, without=without)
    arguments = {key: value for key, value in scan.arguments().items() if value is not None}
    tensors = {key: value for key, value in arguments.items() if isinstance(value, torch.Tensor)}
    settings = {key: value for key, value in arguments.items() if key not in tensors}
    module, path = Operator(tensors, settings), tmp_path / "scan.onnx"
    write_onnx(torch.export.export(module, (tensors["u"],)), path)
    assert_agrees(lambda u: run(path, u), module, tensors["u"])


@pytest.fixture(scope="module")
def nafnet():
    return small("nafnet_w32", **NAFNET)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_the_command_writes_a_file_that_says_what_it_takes(call, nafnet, suffix, tmp_path):
    weights, path = tmp_path / "weights.pth", tmp_path / f"model{suffix}"
    write_checkpoint(weights, nafnet)
    code, out, err = call("export", weights, "-o", path, "--size", "32x16")
    assert (code, err) == (0, "") and "nafnet_w32" in out and f"sizes of {nafnet.size_multiple} n" in out
    x = uniform(2, 3, 48, 64)
    if suffix == ".onnx":
        about = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert_agrees(lambda x: run(path, x), nafnet, x)
    else:
        about = dict.fromkeys(("architecture", "size_multiple", "scale"), "")
        program = torch.export.load(path, extra_files=about).module()
        assert_agrees(program, nafnet, x)
    expected = {"architecture": "nafnet_w32", "size_multiple": str(nafnet.size_multiple), "scale": "1"}
    assert expected.items() <= about.items()
    assert {file.name for file in tmp_path.iterdir()} == {"weights.pth", path.name}


def test_a_name_without_the_suffix_is_refused_before_the_work(call, tmp_path):
    for name, suffix in (("model.pb", ".pb"), ("model", "nothing")):
        code, _, err = call("export", "xyscannet_tiny", "-o", tmp_path / name)
        assert code == 1
        one_error(err, "ends in .onnx or .pt2", suffix)
    assert not any(tmp_path.iterdir())


def test_an_example_of_a_wrong_size_is_refused(nafnet, tmp_path):
    with pytest.raises(ValueError, match=f"multiples of {nafnet.size_multiple}, got 16 x 9"):
        export(nafnet, tmp_path / "model.pt2", size=(16, 9))


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_windows_that_a_file_cannot_follow_are_refused(suffix, tmp_path):
    with pytest.raises(ValueError, match="averages over windows of 6 .*tlc=False"):
        export(small("nafnet_w32", **NAFNET, tlc=True, tlc_crop=4), tmp_path / f"model{suffix}")
    assert not any(tmp_path.iterdir())


def test_the_mode_of_the_model_is_the_callers(nafnet, tmp_path):
    model = copy.deepcopy(nafnet).train()
    export(model, tmp_path / "model.pt2")
    assert model.training


def test_without_the_extra_it_is_named(nafnet, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.delitem(sys.modules, "slicescan.engine.onnx_scan", raising=False)
    monkeypatch.delattr("slicescan.engine.onnx_scan", raising=False)
    with pytest.raises(ImportError, match=r"onnxscript: pip install 'slicescan\[onnx\]'"):
        export(nafnet, tmp_path / "model.onnx")
    assert not any(tmp_path.iterdir())
