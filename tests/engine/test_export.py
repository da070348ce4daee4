"""Exported files against PyTorch, at sizes that the export did not see."""

import itertools
import sys

import onnx
import onnxruntime
import pytest
import torch

from slicescan.checkpoint import write_checkpoint
from slicescan.engine.export import export, export_program, write_onnx
from slicescan.layers import AFF, CAB, KLFF, SS2D, BiasFreeNorm2d
from slicescan.ops import slice_scan
from slicescan.registry import model_entry
from tests.command_line import Caller, one_error
from tests.models.test_contract import COVERING, FIRST, small
from tests.models.weights import far_from_default
from tests.strategies import Scan

EXPORTED = [name for name in FIRST if "onnx" in model_entry(name).supports]
NAFNET = {"width": 4, "enc_blocks": (1,), "middle_blocks": 1, "dec_blocks": (1,)}
SUPER_RESOLUTION = COVERING["MambaIR"][1]
CASES = [("xyscannet", {}), ("nafnet_w32", NAFNET), ("mimo_unet", {}), ("mambair_denoise", SUPER_RESOLUTION)]
"""One model of each family; tracing takes long. The layers below are what these leave out."""


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


def test_the_families_of_the_contract_promise_onnx_and_are_tried():
    families = [{model_entry(name).family for name in names} for names in (EXPORTED, dict(CASES))]
    assert families[0] == families[1] == {"XYScanNet", "NAFNet", "MIMOUNet", "MambaIR"}


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_programs_and_onnx_agree_with_pytorch_at_sizes_that_the_export_did_not_see(name, arguments, tmp_path):
    model = small(name, **arguments)
    program, path = export_program(model), tmp_path / "model.onnx"
    write_onnx(program, path)
    assert scans(path) == sum(node.target is SCAN for node in program.graph.nodes)
    for b, rows, columns in ((1, 7, 5), (3, 2, 9)):
        x = uniform(b, model.in_chans, rows * model.size_multiple, columns * model.size_multiple)
        assert_agrees(program.module(), model, x)
        assert_agrees(lambda x: run(path, x), model, x)


SCAN = torch.ops.slicescan.slice_scan.default


def scans(path) -> int:
    """``Scan`` nodes of a file: one for each scan of the network, as a file for any size cannot unroll any."""
    return sum(node.op_type == "Scan" for node in onnx.load(path).graph.node)


class Layers(torch.nn.Module):
    """Layers on one map: those that fuse get it at three sizes."""

    in_chans, size_multiple = 8, 4

    def __init__(self, layers):
        super().__init__()
        self.layers = torch.nn.ModuleDict(layers)

    def forward(self, x):
        levels = [x, x.flip(1)[:, :, ::2, ::2] * 60, x[:, :, ::4, ::4] * 60]
        made = []
        for layer in self.layers.values():
            if isinstance(layer, KLFF):
                made.append(layer(x, levels[1:]))
            else:
                made.append(layer(levels) if isinstance(layer, AFF) else layer(x))
        return torch.stack(made)


def test_layers_that_no_model_above_has_agree_as_onnx(tmp_path):
    """And KLFF on features far from 0, whose logarithms must stay finite. All in one file: tracing takes long."""
    layers = {
        "CAB": CAB(8),
        "AFF": AFF((8, 8, 8), 8),
        "BiasFreeNorm2d": BiasFreeNorm2d(8),
        "KLFF": KLFF(8, (8, 8)),
        "KLFF by pixel": KLFF(8, (8, 8), gate="pixel"),
        "SS2D": SS2D(8, state=4),
    }
    module, path = Layers(layers).eval(), tmp_path / "layers.onnx"
    module.load_state_dict(far_from_default(module, seed=0))
    write_onnx(export_program(module), path)
    for shape in ((1, 8, 28, 20), (3, 8, 8, 36)):
        x = 4 * uniform(*shape) - 2
        with torch.no_grad():
            for name, expected, found in zip(layers, module(x), run(path, x), strict=True):
                assert (found - expected).abs().max() <= 1e-4 * expected.abs().max(), name


class Scans(torch.nn.Module):
    """Scans as a module, for what no model asks of them."""

    def __init__(self, forms):
        super().__init__()
        self.forms = forms
        for i, (_, tensors, _) in enumerate(forms):
            for name, x in tensors.items():
                self.register_buffer(f"{name}{i}", x)

    def forward(self, u):
        made = []
        for i, (_, tensors, settings) in enumerate(self.forms):
            given = {name: getattr(self, f"{name}{i}") for name in tensors}
            y, last = slice_scan(u, **given, **settings, return_last_state=True)
            made.append(y * last.sum())
        return torch.stack(made)


def test_every_form_of_the_scan_is_written_as_one_node(tmp_path):
    forms = []
    optional = ((), ("D", "z", "delta_bias", "initial_state"))
    for axis, reverse, carry, without in itertools.product("wh", (False, True), (False, True), optional):
        rank = None if without else 3
        scan = Scan(
            b=2, h=3, w=5, d=8, n=4, groups=2, rank=rank, axis=axis, reverse=reverse, carry=carry, without=without
        )
        arguments = {key: value for key, value in scan.arguments().items() if value is not None}
        tensors = {key: value for key, value in arguments.items() if isinstance(value, torch.Tensor)}
        settings = {key: value for key, value in arguments.items() if key not in tensors}
        u = tensors.pop("u")
        forms.append((scan, tensors, settings))
    module, path = Scans(forms), tmp_path / "scans.onnx"
    write_onnx(torch.export.export(module, (u,)), path)
    assert scans(path) == len(forms) == 16
    for (scan, *_), expected, found in zip(forms, module(u), run(path, u), strict=True):
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max(), scan


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


def test_a_model_is_traced_for_evaluation_and_its_mode_stays_the_callers(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.Dropout()).train()
    path, x = export(model, tmp_path / "model.pt2"), uniform(1, 3, 5, 4)
    assert model.training
    assert torch.equal(torch.export.load(path).module()(x), model.eval()(x))


def test_without_the_extra_it_is_named(nafnet, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.delitem(sys.modules, "slicescan.engine.onnx_scan", raising=False)
    monkeypatch.delattr("slicescan.engine.onnx_scan", raising=False)
    with pytest.raises(ImportError, match=r"onnxscript: pip install 'slicescan\[onnx\]'"):
        export(nafnet, tmp_path / "model.onnx")
    assert not any(tmp_path.iterdir())
