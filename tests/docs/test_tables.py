"""What the build writes into the pages is what the registry, the results and the contracts say."""

import json
import re
import runpy
import tomllib
import zlib
from importlib import import_module
from pathlib import Path

import pytest
from docutils import nodes
from sphinx.errors import SphinxError

import slicescan

ROOT = Path(__file__).parents[2]


@pytest.fixture
def extension(monkeypatch):
    """Import one of the extensions of our pages."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    return import_module


def test_every_model_has_a_line_with_what_it_can_do(extension):
    table = extension("model_table")
    text = "\n".join(table.sections())
    for name in slicescan.list_models():
        (line,) = re.findall(rf"^\| `{name}` \|.*$", text, flags=re.MULTILINE)
        record = slicescan.model_entry(name)
        assert line.count("✓") == len(record.supports & set(table.ABILITIES))
        assert f"{record.params / 1e6:.2f} M" in line


def test_every_ability_has_a_column(extension):
    known = set(extension("model_table").ABILITIES)
    assert all(slicescan.model_entry(name).supports <= known for name in slicescan.list_models())


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda file: file.stem)
def test_every_committed_result_is_shown_with_its_device(file, extension):
    result = json.loads(file.read_text(encoding="utf-8"))
    text = extension("benchmark_tables").section(file.stem, result)
    device = result.get("device") or result["machine_info"]["cpu"]["brand_raw"]
    assert f"**{device}**" in text and "|" in text and file.name in text


def test_a_result_without_a_device_is_refused(extension):
    with pytest.raises(SphinxError, match=r"scan_mine\.json names no device: add the key 'device'"):
        extension("benchmark_tables").section("scan_mine", {"ms": {"torch": 1.0}})


def test_nested_figures_keep_the_names_of_their_groups(extension):
    tables = extension("benchmark_tables")
    ways = [{"case": "a", "ways": {"cpu": {"ms": 1.5}, "torch": {"ms": 10.0}}}]
    assert list(tables.rows_of(ways)) == [
        {"case": "a", "name": "cpu", "ms": 1.5},
        {"case": "a", "name": "torch", "ms": 10.0},
    ]
    study = {"hybrid": {"runs": [{"psnr": 30.0}], "costs": {"ms": 3.0}}}
    assert list(tables.rows_of(study)) == [{"name": "hybrid", "psnr": 30.0}, {"name": "hybrid / costs", "ms": 3.0}]


def test_a_file_of_pytest_benchmark_is_shown_in_ms(extension):
    stats = {"min": 1e-3, "median": 2e-3, "mean": 2e-3, "stddev": 0.0}
    result = {
        "machine_info": {"cpu": {"brand_raw": "A processor"}},
        "benchmarks": [{"name": "test_it", "stats": stats}],
    }
    text = extension("benchmark_tables").section("mine", result)
    assert "**A processor**" in text and "| test_it | 1.000 | 2.000 | 2.000 | 0 |" in text


def test_columns_have_as_many_decimals_in_every_row(extension):
    text = extension("benchmark_tables").table([{"ms": 10.0}, {"ms": 2.5}, {"ms": None}])
    assert text.splitlines()[2:] == ["| 10.00 |", "| 2.50 |", "| – |"]


def test_the_diagram_has_the_contract_s_layers_from_top_to_bottom(extension):
    diagram = extension("import_direction").diagram()
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    assert re.findall(r'<li><code>(\w+)</code><span class="purpose">[^<]', diagram) == layers
    assert "<li><code>nafnet</code></li>" in diagram and "<li><code>triton</code></li>" in diagram


def test_the_inventories_are_those_of_the_list():
    folder = ROOT / "docs" / "inventories"
    fresh = runpy.run_path(str(folder / "make.py"))["inventories"]()
    assert {file.name for file in folder.glob("*.inv")} == set(fresh)
    for name, content in fresh.items():
        kept = (folder / name).read_bytes()
        kept, content = ([*data.split(b"\n", 4)] for data in (kept, content))
        assert kept[:4] == content[:4] and zlib.decompress(kept[4]) == zlib.decompress(content[4]), name


def test_a_formula_becomes_mathml_and_a_faulty_one_is_named(extension):
    mathml = extension("mathml").mathml
    assert "<msub>" in mathml(nodes.math("", r"h_t = \exp(\Delta_t A) h_{t-1}"), block=False)
    assert "<mtable" in mathml(nodes.math_block("", "a &= b \\\\\nc &= d"), block=True)
    with pytest.raises(SphinxError, match=r"cannot write the formula '\\\\nosuchcommand' as MathML"):
        mathml(nodes.math("", r"\nosuchcommand"), block=False)


def test_the_slider_shows_pixels_as_they_are(extension):
    from PIL import Image

    middle = extension("before_after").middle
    photo = Image.radial_gradient("L").resize((786, 436)).convert("RGB")
    shown = middle(photo, 600)
    assert shown.size == (600, 400)
    assert shown.getpixel((0, 0)) == photo.getpixel((93, 18))
    assert middle(photo.resize((90, 80)), 600).size == (90, 60)
