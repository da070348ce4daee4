"""Files of weights: what is accepted, what is refused and how, and what is written."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from slicescan.checkpoint import CheckpointError, load_weights, read_checkpoint, rename, write_checkpoint
from slicescan.checkpoint import write as write_module

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def same(found: dict, expected: dict = WEIGHTS) -> bool:
    return list(found) == list(expected) and all(torch.equal(found[key], value) for key, value in expected.items())


def prefixed(prefix: str) -> dict:
    return {prefix + key: value for key, value in WEIGHTS.items()}


@pytest.mark.parametrize("container", ["state_dict", "model_state", "params", "params_ema", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."])
def test_every_container_and_prefix_is_taken_off_and_named(tmp_path, container, prefix):
    path = tmp_path / "weights.pth"
    torch.save({"epoch": 3, container: prefixed(prefix), "optimizer_state": {"state": {}, "param_groups": []}}, path)
    found = read_checkpoint(path)
    assert same(found.state_dict)
    assert found.stripped[0] == container and "".join(found.stripped[1:]) == prefix


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors", ""])
def test_the_bytes_tell_the_format_not_the_name(tmp_path, suffix):
    pickled, safe, legacy = (tmp_path / f"{kind}{suffix}" for kind in ("pickled", "safe", "legacy"))
    torch.save(WEIGHTS, pickled)
    torch.save(WEIGHTS, legacy, _use_new_zipfile_serialization=False)
    save_file(WEIGHTS, safe)
    assert same(read_checkpoint(pickled).state_dict) and same(read_checkpoint(legacy).state_dict)
    assert same(dict(sorted(read_checkpoint(safe).state_dict.items(), reverse=True)))


def test_averaged_weights_are_preferred_to_raw_ones(tmp_path):
    torch.save({"params": {"w": torch.zeros(1)}, "params_ema": {"w": torch.ones(1)}}, tmp_path / "net.pth")
    found = read_checkpoint(tmp_path / "net.pth")
    assert found.state_dict["w"].item() == 1 and found.stripped == ("params_ema",)


def test_the_counter_of_an_averaged_model_does_not_hide_its_prefix(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 1))
    torch.save({"model": averaged.state_dict()}, tmp_path / "ema.pth")
    assert list(read_checkpoint(tmp_path / "ema.pth").state_dict) == ["weight", "bias"]


def test_a_part_called_model_is_not_mistaken_for_a_container(tmp_path):
    weights = {"model.weight": torch.ones(1), "model": torch.ones(1)}
    torch.save(weights, tmp_path / "net.pth")
    assert same(read_checkpoint(tmp_path / "net.pth").state_dict, weights)


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "int64", "int32", "uint8", "bool", ">f8"])
def test_numpy_scalars_beside_the_weights_are_read(tmp_path, kind):
    scalar = np.dtype(kind).type(1).astype(kind)
    torch.save({"best_psnr": scalar, "state_dict": WEIGHTS}, tmp_path / "net.pth")
    assert same(read_checkpoint(tmp_path / "net.pth").state_dict)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numpy_scalars_become_python_numbers_under_old_and_new_names(tmp_path, module):
    from slicescan.checkpoint.pickles import unpickle

    torch.save({"best": np.float64(32.5)}, tmp_path / "new.pth")
    torch_pickle = rewritten(tmp_path / "new.pth", b"numpy._core.multiarray", module.encode())
    (tmp_path / "net.pth").write_bytes(torch_pickle)
    value = unpickle(tmp_path / "net.pth")["best"]
    assert value == 32.5 and type(value) is float


def rewritten(path, old: bytes, new: bytes) -> bytes:
    """The zip archive at ``path`` with ``old`` replaced in its pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as target:
        for item in source.infolist():
            data = source.read(item)
            target.writestr(item, data.replace(old, new) if item.filename.endswith("data.pkl") else data)
    return out.getvalue()


class Hostile:
    """Runs a command when unpickled without care."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(marker) -> dict[str, object]:
    touch = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Hostile(os.system, f"touch {marker}"),
        "exec": Hostile(exec, touch),
        "eval": Hostile(eval, touch),
        "getattr": Hostile(getattr, "", "upper"),
        "torch.load": Hostile(torch.load, str(marker)),
        "numpy.load": Hostile(np.load, str(marker)),
        "Path.touch": Hostile(type(marker).touch, marker),
    }


@pytest.mark.parametrize("attack", ["os.system", "exec", "eval", "getattr", "torch.load", "numpy.load", "Path.touch"])
@pytest.mark.parametrize("way", ["zip", "legacy", "bare pickle", "deep", "beside the weights"])
def test_a_hostile_pickle_is_refused_in_one_line_and_runs_nothing(tmp_path, attack, way):
    marker, path = tmp_path / "ran", tmp_path / "net.pth"
    hostile = attacks(marker)[attack]
    if way == "bare pickle":
        path.write_bytes(pickle.dumps(hostile))
    elif way == "deep":
        torch.save({"state_dict": {"w": [{"x": (hostile,)}]}}, path)
    elif way == "beside the weights":
        torch.save({"state_dict": WEIGHTS, "extra": hostile}, path)
    else:
        torch.save(hostile, path, _use_new_zipfile_serialization=way == "zip")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert not marker.exists()
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert "refused" in message and "nothing was run" in message and "safetensors" in message
    names = {attack.rpartition(".")[2], *(["getattr"] if attack == "Path.touch" else [])}
    assert any(name in message for name in names), message


def test_stand_ins_for_numpy_do_not_open_a_door(tmp_path):
    """A scalar that is no number, a type that is no string, and a hostile thing inside them."""
    marker, path = tmp_path / "ran", tmp_path / "net.pth"
    scalar = type(np.float64(1)).__reduce__(np.float64(1))[0]
    for content in (Hostile(scalar, np.dtype("O"), b"x"), Hostile(scalar, np.dtype("V8"), b"12345678")):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match="not a number|refused"):
            read_checkpoint(path)
    torch.save(Hostile(np.dtype, Hostile(os.system, f"touch {marker}")), path)
    with pytest.raises(CheckpointError, match="refused"):
        read_checkpoint(path)
    assert not marker.exists()


def damaged(tmp_path) -> dict[str, bytes]:
    torch.save(WEIGHTS, tmp_path / "whole.pth")
    save_file(WEIGHTS, tmp_path / "whole.safetensors")
    pickled, safe = (tmp_path / "whole.pth").read_bytes(), (tmp_path / "whole.safetensors").read_bytes()
    listing = io.BytesIO()
    with zipfile.ZipFile(listing, "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    return {
        "empty": b"",
        "one byte": b"\x80",
        "text": b"this is not a checkpoint\n",
        "web page": b"<!DOCTYPE html><html><title>Too many requests</title></html>",
        "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "JPEG": b"\xff\xd8\xff\xe0" + bytes(60),
        "PNG": b"\x89PNG\r\n\x1a\n" + bytes(60),
        "cut .pth": pickled[: len(pickled) // 2],
        "cut .safetensors": safe[:-4],
        "cut header": safe[:20],
        "other zip": listing.getvalue(),
        "garbage": bytes(range(256)),
        "pickled text": pickle.dumps("weights"),
        "zeros": bytes(100),
    }


@pytest.mark.parametrize(
    ("kind", "cause"),
    {
        "empty": "an empty file",
        "one byte": "damaged or cut short",
        "text": "a text file",
        "web page": "a web page",
        "Git LFS": "git lfs pull",
        "JPEG": "a JPEG image",
        "PNG": "a PNG image",
        "cut .pth": "damaged or cut short",
        "cut .safetensors": "damaged or cut short",
        "cut header": "damaged or cut short",
        "other zip": "not a readable PyTorch file",
        "garbage": "unknown format",
        "pickled text": "damaged or cut short",
        "zeros": "unknown format",
    }.items(),
)
def test_a_file_that_is_no_checkpoint_gives_one_line_with_the_cause(tmp_path, kind, cause):
    path = tmp_path / "net.pth"
    path.write_bytes(damaged(tmp_path)[kind])
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and cause in message and "\n" not in message and len(message) < 400


def test_a_missing_file_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pth: no such file"):
        read_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="a folder without model.safetensors"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [{"epoch": 1}, {}, {"state_dict": {}}, [torch.ones(1)], torch.ones(1)], ids=str)
def test_a_file_without_weights_says_what_it_holds(tmp_path, content):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="no weights found|not a state dict"):
        read_checkpoint(tmp_path / "net.pth")


def test_bad_metadata_and_bad_config_are_named(tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors", {"architecture": "x", "arguments": "{dim"})
    with pytest.raises(CheckpointError, match="'arguments' is not JSON"):
        read_checkpoint(tmp_path / "model.safetensors")
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "x"}))
    with pytest.raises(CheckpointError, match="config.json: expected a JSON object with architecture and arguments"):
        read_checkpoint(tmp_path)


class Named(nn.Module):
    """A model with something to say about itself."""

    architecture = "named"

    def __init__(self, dim: int = 3):
        super().__init__()
        self.arguments = {"dim": dim, "pair": [1, 2]}
        self.a = nn.Linear(dim, 2)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_what_is_written_is_read_back_with_architecture_and_arguments(tmp_path, suffix, dtype):
    model, path = Named(), tmp_path / f"net{suffix}"
    model.load_state_dict(WEIGHTS)
    write_checkpoint(path, model, dtype=dtype)
    found = read_checkpoint(path)
    assert (found.architecture, found.arguments) == ("named", {"dim": 3, "pair": [1, 2]})
    assert {value.dtype for value in found.state_dict.values()} == {dtype or torch.float32}
    other = Named()
    load_weights(other, found.state_dict, path)
    assert all(torch.equal(value, WEIGHTS[key]) for key, value in other.state_dict().items())
    assert {value.dtype for value in other.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_published_form_is_the_bare_state_dict(tmp_path, suffix):
    write_checkpoint(tmp_path / f"net{suffix}", Named(), published=True)
    found = read_checkpoint(tmp_path / f"net{suffix}")
    assert found.architecture is None and found.stripped == ()
    assert set(found.state_dict) == set(WEIGHTS)


def test_channels_last_weights_are_written_too(tmp_path):
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    write_checkpoint(tmp_path / "conv.safetensors", conv)
    assert torch.equal(read_checkpoint(tmp_path / "conv.safetensors").state_dict["weight"], conv.weight)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"net{suffix}"
    write_checkpoint(path, Named())
    before = path.read_bytes()

    def half_written(content, target, *rest):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(write_module, "save_file", half_written)
    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(path, Named())
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_bad_suffix_or_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"\.safetensors, \.pth or \.pt, not '\.bin'"):
        write_checkpoint(tmp_path / "net.bin", Named())
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_checkpoint(tmp_path / "nowhere" / "net.pth", Named())


def test_names_and_shapes_that_disagree_are_counted_and_shown():
    state = {"a.weight": torch.ones(2, 5), "b.weight": torch.ones(1), "c": torch.ones(1), "d": torch.ones(1)}
    state["e"] = torch.ones(1)
    with pytest.raises(CheckpointError) as caught:
        load_weights(Named(), state, "net.pth")
    assert str(caught.value) == (
        "net.pth: does not fit Named: 1 missing (a.bias); 4 unexpected (b.weight, c, d, …); "
        "1 of another shape (a.weight (2, 5) instead of (2, 3))"
    )


def test_a_failed_load_changes_nothing():
    model = Named()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_weights(model, {**WEIGHTS, "extra": torch.ones(1)}, "net.pth")
    assert same(model.state_dict(), before)


def test_one_table_renames_both_ways(tmp_path):
    table = [("head", "ConvsOut.0"), ("encoder.*.*", "Encoder.*.layers.*"), ("tail.*", "Tail.0.*")]
    ours = {"encoder.1.12.conv.bias": 1, "head.weight": 2, "tail.3.weight": 3, "header.weight": 4}
    published = rename(ours, table, to_published=True)
    assert list(published) == ["Encoder.1.layers.12.conv.bias", "ConvsOut.0.weight", "Tail.0.3.weight", "header.weight"]
    assert rename(published, table) == ours


def test_a_model_with_a_rename_table_loads_and_writes_published_names(tmp_path):
    model = Named()
    model.renames = [("a", "layers.0")]
    published = {key.replace("a.", "layers.0.", 1): value for key, value in WEIGHTS.items()}
    load_weights(model, published, "net.pth")
    assert same(model.state_dict())
    write_checkpoint(tmp_path / "net.pth", model, published=True)
    assert same(read_checkpoint(tmp_path / "net.pth").state_dict, published)
    write_checkpoint(tmp_path / "own.pth", model)
    load_weights(model, read_checkpoint(tmp_path / "own.pth").state_dict, "own.pth")
