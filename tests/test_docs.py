"""The reference pages have every public name."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from slicescan.registry import FAMILIES

API = Path(__file__).parent.parent / "docs" / "api"


def listed(page: str) -> set[str]:
    """Names that a page summarises."""
    text = (API / f"{page}.md").read_text(encoding="utf-8")
    return {line.strip().rpartition(".")[2] for line in re.findall(r"^   [A-Za-z_][\w.]*$", text, flags=re.MULTILINE)}


@pytest.mark.parametrize("page", ["models", "layers", "ops", "checkpoint"])
def test_every_public_name_is_on_its_page(page):
    module = "slicescan" if page == "models" else f"slicescan.{page}"
    public = set(import_module(module).__all__) - {"layers", "ops"}
    assert public <= listed(page), public - listed(page)


def test_every_family_is_on_the_page_of_models():
    assert {family.__name__ for family in FAMILIES} <= listed("models")
