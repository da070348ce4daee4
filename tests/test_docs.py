"""The reference pages have every public name."""

import re
from importlib import import_module
from inspect import isfunction
from pathlib import Path

import pytest

from slicescan.registry import FAMILIES

API = Path(__file__).parent.parent / "docs" / "api"


def listed(page: str) -> set[str]:
    """Names that a page summarises."""
    text = (API / f"{page}.md").read_text(encoding="utf-8")
    return {line.strip().rpartition(".")[2] for line in re.findall(r"^   [A-Za-z_][\w.]*$", text, flags=re.MULTILINE)}


PUBLIC = {
    "slicescan": "models",
    "slicescan.layers": "layers",
    "slicescan.ops": "ops",
    "slicescan.checkpoint": "checkpoint",
    "slicescan.engine.metrics": "engine",
    "slicescan.engine.data": "engine",
}
"""Packages with public names, and the page of each."""


def public(module: str) -> dict[str, object]:
    """Public functions and classes of a package by name."""
    package = import_module(module)
    found = {name: getattr(package, name) for name in package.__all__ if name not in ("layers", "ops")}
    return {name: value for name, value in found.items() if callable(value)}


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_on_its_page(module):
    names, page = set(public(module)), listed(PUBLIC[module])
    assert names <= page, names - page


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_function_and_layer_has_an_example(module):
    wanted = {
        name: value for name, value in public(module).items() if isfunction(value) or module == "slicescan.layers"
    }
    assert not [name for name, value in wanted.items() if ">>>" not in value.__doc__]


@pytest.mark.parametrize("module", ["slicescan.layers", "slicescan.ops"])
def test_every_layer_and_operator_names_its_source_and_shapes(module):
    for name, value in public(module).items():
        if name.endswith("register_backend"):
            continue  # neither layers nor operators
        if not issubclass(value if isinstance(value, type) else object, Exception):
            assert "Source:" in value.__doc__, name
            assert re.search(r"Shapes?:|Returns:", value.__doc__), name


def test_every_family_is_on_the_page_of_models():
    assert {family.__name__ for family in FAMILIES} <= listed("models")
