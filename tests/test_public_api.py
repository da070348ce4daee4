"""What `import slicescan` offers, and what it costs."""

import subprocess
import sys

import pytest

import slicescan

NAMES = [
    "create_model",
    "load",
    "list_models",
    "list_pretrained",
    "is_model",
    "model_entry",
    "register_model",
    "restore",
    "unregister_model",
]


@pytest.mark.parametrize("name", slicescan.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(slicescan, name).__doc__
    assert name in dir(slicescan)


def test_the_promised_names_are_public():
    assert {*NAMES, "profile", "layers", "ops"} <= set(slicescan.__all__)
    assert callable(slicescan.profile) and callable(slicescan.restore)
    assert slicescan.layers.KLFF and slicescan.ops.slice_scan


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'slicescan' has no attribute 'creat_model'"):
        slicescan.creat_model  # noqa: B018


def test_the_version_is_a_plain_string():
    assert slicescan.__version__ == "0.1.0"


def imported_by(statement: str) -> set[str]:
    """Top-level modules that a fresh process has after ``statement``."""
    code = f"{statement}; import sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_imports_nothing_until_a_name_is_used():
    assert imported_by("import slicescan") - imported_by("pass") <= {"slicescan", "importlib", "typing"} | set(
        sys.stdlib_module_names
    )


OPTIONAL = set("numba triton mamba_ssm timm spandrel huggingface_hub cv2 accelerate skimage onnx".split())


def test_building_a_model_imports_no_optional_package():
    loaded = imported_by("import slicescan; slicescan.create_model('xyscannet_tiny', blocks=(1, 1, 1))")
    assert not loaded & OPTIONAL - imported_by("import torch.utils.flop_counter")  # where torch itself asks for triton
