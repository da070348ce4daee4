"""What every model of the package promises, checked at reduced size for every registered name."""

import copy
import fnmatch
import json
import re
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from slicescan import create_model, list_models, load, model_entry
from slicescan.checkpoint import CheckpointError, write_checkpoint
from slicescan.models.base import Reconstruction, Restorer
from slicescan.registry import FAMILIES
from tests.models.weights import error, far_from_default

REDUCED = {
    "XYScanNet": {"dim": 8, "blocks": (1, 1, 1), "state": 4},
    "NAFNet": {"width": 8, "enc_blocks": (1, 2), "middle_blocks": 1, "dec_blocks": (1, 1)},
    "Restormer": {"dim": 8, "blocks": (1, 1, 1, 1), "refinement": 1, "heads": (1, 2, 2, 4)},
    "MIMOUNet": {"dim": 8, "num_res": 1},
    "MambaIR": {"dim": 8, "depths": (1, 1), "state": 4, "expand": 1.5, "in_chans": 3},
    "MambaIRUNet": {"dim": 8, "blocks": (1, 1, 1, 1), "refinement": 1, "state": 4},
}
"""Arguments that make a small model of each family; a new family adds its own here."""

EVERY = list_models()
FIRST = [next(iter(family.variants)) for family in FAMILIES]


def reduced(name: str, **arguments) -> dict:
    """Constructor arguments of the named model at reduced size."""
    record = model_entry(name)
    return {**record.arguments, **REDUCED[record.family], **arguments}


NAMES = list({str((model_entry(name).family, reduced(name))): name for name in EVERY}.values())
"""One name for each small model that differs from the others: sizes of a family reduce to the same."""


def small(name: str, **arguments) -> Restorer:
    """The named model at reduced size, with weights that matter."""
    model = create_model(name, **{**REDUCED[model_entry(name).family], **arguments}).eval()
    model.load_state_dict(far_from_default(model, seed=0))
    return model


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture(scope="module", params=NAMES)
def model(request) -> Restorer:
    return small(request.param)


@settings(deadline=None, derandomize=True, max_examples=6)
@given(b=st.integers(1, 2), h=st.integers(1, 9), w=st.integers(1, 9))
@torch.no_grad()
def test_any_size_comes_back_as_it_went_in(model, b, h, w):
    y = model(images(b, 3, h, w))
    assert y.shape == (b, 3, h * model.scale, w * model.scale) and y.dtype == torch.float32 and y.is_contiguous()
    assert y.isfinite().all()


@torch.no_grad()
def test_a_strip_one_pixel_wide_is_an_ordinary_image(model):
    for shape in ((1, 3, 1, 70), (1, 3, 70, 1), (1, 3, 1, 1)):
        assert model(images(*shape)).shape == (1, 3, shape[2] * model.scale, shape[3] * model.scale)


@torch.no_grad()
def test_one_images_result_does_not_depend_on_its_batch(model):
    model, x = copy.deepcopy(model).double(), images(3, 3, 6, 9, dtype=torch.float64)
    for i in range(3):
        assert error(model(x)[i], model(x[i : i + 1])[0]) < 1e-12


@torch.no_grad()
def test_outputs_are_not_clamped(model):
    bright = model(images(1, 3, 8, 8) * 50)
    assert bright.max() > 1 and bright.min() < 0


@pytest.mark.parametrize(
    ("x", "expected", "received"),
    [
        (torch.rand(3, 8, 8), r"\(b, 3, h, w\)", r"\(3, 8, 8\)"),
        (torch.rand(1, 1, 8, 8), r"\(b, 3, h, w\)", r"\(1, 1, 8, 8\)"),
        (torch.rand(1, 8, 8, 3), r"\(b, 3, h, w\)", r"\(1, 8, 8, 3\)"),
        (torch.rand(1, 3, 0, 8), "h, w >= 1", r"\(1, 3, 0, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "float32", r"torch.uint8 \(1, 3, 8, 8\)"),
        (torch.rand(1, 3, 8, 8, dtype=torch.float64), "float32", r"torch.float64 \(1, 3, 8, 8\)"),
    ],
    ids=["rank", "channels", "channels at the end", "empty", "integers", "precision"],
)
def test_a_wrong_input_is_refused_with_what_was_expected_and_received(model, x, expected, received):
    for call in (model, model.forward_features, model.forward_intermediates, model.forward_outputs):
        with pytest.raises(ValueError, match=f"expects.*{expected}.*got.*{received}"):
            call(x)


@pytest.mark.parametrize("name", FIRST)
@torch.no_grad()
def test_autocast_may_change_the_precision_of_the_input(name):
    model, x = small(name), images(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert error(model(x.bfloat16()), model(x)) < 0.05


@torch.no_grad()
def test_features_intermediates_and_outputs_have_the_size_of_the_image(model):
    h, w = 5, 2 * model.size_multiple
    x = images(2, 3, h, w)
    levels, found = model.forward_intermediates(x), model.forward_outputs(x)
    assert torch.equal(levels[0], model.forward_features(x)) and levels[0].shape[2:] == (h, w)
    for level in levels:
        assert level.shape[2] == -(-h // (w // level.shape[3]))
    assert torch.equal(found["output"], model(x)) and torch.equal(found["output"], found["outputs"][0])
    if found["residual"] is not None:
        assert torch.allclose(found["output"], x + found["residual"], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_rebuilt_from_its_description_and_its_file(name, tmp_path):
    model, x = small(name), images(1, 3, 5, 6)
    assert json.loads(json.dumps(model.arguments)) == model.arguments
    with torch.no_grad():
        expected = model(x)
        model.save_pretrained(tmp_path / "folder")
        for suffix in (".safetensors", ".pth"):
            write_checkpoint(tmp_path / f"own{suffix}", model)
        for path in (tmp_path / "folder", tmp_path / "own.safetensors", tmp_path / "own.pth"):
            found = load(path)
            assert found.arguments == model.arguments and not found.training
            assert torch.equal(found(x), expected)
        assert torch.equal(type(model).from_pretrained(tmp_path / "folder")(x), expected)
        again = create_model(name, checkpoint_path=tmp_path / "own.pth", **REDUCED[type(model).__name__])
        assert torch.equal(again.eval()(x), expected)
        assert torch.equal(copy.deepcopy(model)(x), expected)


@pytest.mark.parametrize("name", FIRST)
def test_an_unknown_argument_is_named_with_its_nearest(name):
    with pytest.raises(
        TypeError, match=f"{model_entry(name).family} has no argument 'in_chan'; did you mean 'in_chans'"
    ):
        create_model(name, in_chan=1)


@pytest.mark.parametrize("name", FIRST)
def test_an_argument_that_json_cannot_hold_is_named(name):
    with pytest.raises(TypeError, match="in_chans must be a JSON value, got Tensor"):
        create_model(name, in_chans=torch.ones(1))


@pytest.mark.parametrize("name", FIRST)
@torch.no_grad()
def test_one_channel_is_enough(name):
    assert small(name, in_chans=1)(images(1, 1, 5, 6)).shape == (1, 1, 5, 6)
    with pytest.raises(ValueError, match=r"\(b, 1, h, w\).*\(1, 3, 5, 6\)"):
        small(name, in_chans=1)(images(1, 3, 5, 6))


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing_changes_no_gradient(name):
    model, x = small(name).double(), images(1, 3, 8, 8, dtype=torch.float64)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        loss = sum(output.square().mean() for output in model.forward_outputs(x)["outputs"])
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("name", FIRST)
def test_gradient_checkpointing_keeps_less(name):
    """Bytes saved for the backward pass besides weights and what passes from block to block."""
    model = small(name, **({"num_res": 8} if model_entry(name).family == "MIMOUNet" else {}))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        kept: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(partial(_note, kept), lambda x: x):
            y = model(images(1, 3, 16, 16))
        del y
        saved.append(sum(size for place, size in kept.items() if place not in weights))
    assert saved[1] < 0.7 * saved[0]


def _note(kept: dict[int, int], x: Tensor) -> Tensor:
    kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
    return x


def test_decay_spares_the_scans_own_parameters_and_nothing_else(model):
    patterns = model.no_weight_decay()
    spared = {name for name, _ in model.named_parameters() if any(fnmatch.fnmatchcase(name, p) for p in patterns)}
    assert spared == {
        name for name, _ in model.named_parameters() if name.split(".")[-1] in ("A_log", "D", "A_logs", "Ds")
    }


def in_order_of_depth(model: Restorer) -> list[str]:
    """Names of parameters: as the modules come, or as they are used if the family has its own idea of depth."""
    if type(model).group_matcher is Restorer.group_matcher:
        return [name for name, _ in model.named_parameters()]
    used: dict[str, None] = {}
    for name, module in model.named_modules():
        own = [f"{name}.{parameter}" for parameter, _ in module.named_parameters(recurse=False)]
        module.register_forward_pre_hook(lambda *_, own=own: used.update(dict.fromkeys(own)))
    model.forward_outputs(images(1, model.in_chans, 4, 4))
    for module in model.modules():
        module._forward_pre_hooks.clear()
    assert used.keys() == dict(model.named_parameters()).keys()
    return list(used)


@pytest.mark.parametrize("coarse", [False, True])
def test_every_parameter_belongs_to_one_group_in_the_order_of_depth(model, coarse):
    groups = model.group_matcher(coarse=coarse)
    seen = []
    for name in in_order_of_depth(model):
        matches = [(i, *m.groups()) for i, pattern in enumerate(groups.values()) if (m := re.match(pattern, name))]
        assert len(matches) == 1, name
        seen.append(tuple(int(part) for part in matches[0]))
    assert seen == sorted(seen) and {group[0] for group in seen} == set(range(len(groups)))


def compiles(model: Restorer, x: Tensor) -> Tensor:
    """As one graph; what follows the capture is tried on every layer, with gradients, and by the export."""
    torch.compiler.reset()  # else compilations of other tests count towards the limit of this one's
    return torch.compile(model, fullgraph=True, backend="eager")(x)


def exports(model: Restorer, x: Tensor) -> Tensor:
    return torch.export.export(model, (x,)).module()(x)


def in_channels_last(model: Restorer, x: Tensor) -> Tensor:
    y = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    return y


CAPABILITIES = {
    "fp16": (lambda model, x: model.half()(x.half()), 0.02),
    "bf16": (lambda model, x: model.bfloat16()(x.bfloat16()), 0.1),
    "channels_last": (in_channels_last, 1e-4),
    "compile": (compiles, 1e-5),
    "export": (exports, 1e-5),
    "stream": (lambda model, x: model.stream(x, rows=4), 1e-5),
}


COVERING = {
    "XYScanNet": [{}, {"scanners": ("ss2d", "inter"), "fusion": "aff"}],
    "NAFNet": [{}, {"tlc": True, "tlc_crop": 4}],
    "Restormer": [{}],
    "MIMOUNet": [{}],
    "MambaIR": [{"depths": (1,)}, {"depths": (1,), "upsampler": "pixelshuffledirect", "scale": 2}],
    "MambaIRUNet": [{}],
}
"""Arguments which together use every part of a family; tracing takes long, so only these are traced."""


def claims() -> list[tuple[str, str, dict]]:
    """Every capability in every record, with the arguments it is tried on.

    What is written as ONNX is exported in tests/engine/test_export.py, for all sizes; not so the image that must be
    padded, for which the quickest of these families stands here.
    """
    claimed = []
    for name in NAMES:
        for capability in sorted(model_entry(name).supports):
            if capability not in ("compile", "export", "onnx"):
                claimed.append((name, capability, {}))
    for name in FIRST:
        record = model_entry(name)
        for arguments in COVERING[record.family]:
            claimed.append((name, "compile", arguments))
            if "onnx" not in record.supports or record.family == "MIMOUNet" or "tlc" in arguments:
                claimed.append((name, "export", arguments))
    return claimed


def test_every_family_can_be_compiled_and_exported():
    assert all({"compile", "export"} <= model_entry(name).supports for name in EVERY)


@pytest.mark.parametrize(("name", "capability", "arguments"), claims())
@torch.no_grad()
def test_a_claimed_capability_is_there(name, capability, arguments):
    use, tolerance = CAPABILITIES[capability]
    model, x = small(name, **arguments), images(1, 3, 7, 9)
    expected = model(x)
    assert error(use(model, x), expected) < tolerance


PADDED_WITH_ZEROS = {"NAFNet"}
"""Families whose published network has a padding of its own."""


@pytest.mark.parametrize("name", FIRST)
@torch.no_grad()
def test_padding_is_at_the_right_and_the_bottom_and_reflects_unless_published_otherwise(name):
    model, x = small(name), images(1, 3, 6, 9)
    h, w = (-(-size // model.size_multiple) * model.size_multiple for size in (6, 9))
    mode = "constant" if type(model).__name__ in PADDED_WITH_ZEROS else "reflect"
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (0, h - 6), (0, w - 9)), mode=mode)
    assert torch.equal(model(x), model(torch.from_numpy(padded))[:, :, :6, :9])


class Toy(Restorer):
    """Two outputs, twice the size, its own padding multiple: what the base class must handle besides our models."""

    size_multiple = 3
    offset = -0.25
    scale = 2

    def __init__(self, in_chans: int = 3, *, gain: float = 2.0):
        super().__init__()
        self.in_chans, self.gain = in_chans, nn.Parameter(torch.tensor(gain))
        self.seen: Tensor | None = None

    def levels(self, x: Tensor) -> list[Tensor]:
        self.seen = x
        return [x, x[:, :, ::3, ::3]]

    def reconstruct(self, levels: list[Tensor], x: Tensor) -> Reconstruction:
        return Reconstruction([level.repeat_interleave(2, 2).repeat_interleave(2, 3) for level in levels])


@settings(deadline=None, derandomize=True, max_examples=30)
@given(h=st.integers(1, 8), w=st.integers(1, 8))
def test_offset_padding_and_cropping_of_any_size_cancel(h, w):
    model, x = Toy().double(), images(1, 3, h, w, dtype=torch.float64)
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(model(x), doubled, atol=1e-15)
    assert model.seen is not None and all(size % 3 == 0 for size in model.seen.shape[2:])
    assert torch.equal(model.seen[:, :, :h, :w], x - 0.25)
    found = model.forward_outputs(x)
    assert found["residual"] is None and found["outputs"][1].shape[2:] == (-(-2 * h // 3), -(-2 * w // 3))
    for axis, size in ((2, h), (3, w)):
        missing = -size % 3
        mode = "reflect" if missing < size else "edge"
        line = model.seen.movedim(axis, -1)[..., 0, :] + 0.25
        inside = np.pad(line[..., :size].numpy(), ((0, 0), (0, 0), (0, missing)), mode=mode)
        assert np.allclose(line.numpy(), inside)


def test_arguments_are_remembered_with_their_defaults_and_survive_copies():
    model = Toy(1, gain=3.0)
    assert model.arguments == {"in_chans": 1, "gain": 3.0} and model.architecture == "Toy"
    assert copy.deepcopy(model).arguments == model.arguments
    assert Toy().arguments == {"in_chans": 3, "gain": 2.0}


def test_a_folder_of_another_model_and_a_missing_one_are_refused(tmp_path):
    Toy().save_pretrained(tmp_path / "toy")
    assert type(Toy.from_pretrained(tmp_path / "toy")) is Toy
    with pytest.raises(CheckpointError, match="holds Toy, not a XYScanNet"):
        FAMILIES[0].from_pretrained(tmp_path / "toy")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        Toy.from_pretrained(tmp_path / "nowhere")


def test_a_name_on_the_hub_without_the_hub_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"owner/net: .*slicescan\[hub\]"):
        Toy.from_pretrained("owner/net")


def test_a_subclass_must_define_its_network():
    for call in (lambda: Restorer().levels(torch.ones(1)), lambda: Restorer().reconstruct([], torch.ones(1))):
        with pytest.raises(NotImplementedError, match="Restorer does not define"):
            call()
    assert isinstance(Restorer(), nn.Module)
