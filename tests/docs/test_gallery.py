"""The pages of the gallery are whole; the build of the documentation runs them."""

import ast
import runpy
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "gallery").glob("*.py"))
PLUG = ROOT / "docs" / "gallery" / "plug_a_layer.py"


def classes(file: Path) -> dict[str, str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name: ast.dump(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def test_every_page_has_its_place_in_the_order():
    order = runpy.run_path(str(ROOT / "docs" / "_ext" / "gallery_order.py"))
    assert sorted(order["PAGES"]) == [page.stem for page in PAGES]
    place = order["Order"]("gallery")
    assert [place(f"{name}.py") for name in order["PAGES"]] == list(range(len(PAGES)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_begins_with_a_title_and_has_code(page):
    tree = ast.parse(page.read_text(encoding="utf-8"))
    title, line, *_ = (ast.get_docstring(tree) or "\n").splitlines()
    assert title and line == "=" * len(title)
    assert len(tree.body) > 1


def test_a_layer_is_plugged_in_and_trains_in_fewer_than_15_lines():
    block = PLUG.read_text(encoding="utf-8").split('"""')[2].split("# %%")[0]
    assert len([line for line in block.splitlines() if line.strip()]) < 15
    assert "SliceScan2D(" in block and "InterVSSM(" in block and ".backward()" in block
    made: dict = {}
    exec(compile(block, str(PLUG), "exec"), made)
    net, x = made["UNet"](), torch.rand(2, 3, 6, 10)
    y = net(x)
    y.square().mean().backward()
    assert y.shape == x.shape
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in net.parameters())


def test_the_notebook_is_what_its_page_makes():
    notebook = runpy.run_path(str(ROOT / "examples" / "make_notebook.py"))["notebook"](PLUG)
    assert (ROOT / "examples" / "plug_a_layer.ipynb").read_text(encoding="utf-8") == notebook


def test_the_page_and_the_example_have_the_same_decoder():
    page, example = classes(ROOT / "docs" / "gallery" / "timm_encoder.py"), classes(ROOT / "examples/timm_encoder.py")
    assert page["ScanDecoder"] == example["ScanDecoder"]
