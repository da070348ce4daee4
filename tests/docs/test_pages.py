"""The Python code of every page runs, page by page, where there are a blurred photograph and little else.

A block behind a comment ``% not run: REASON`` is only read, and must be Python all the same.
"""

import ast
import doctest
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^(% not run: ?(?P<why>[^\n]*)\n+)?```python\n(?P<code>.*?)^```$", flags=re.MULTILINE | re.DOTALL)
BUILT = {"_build", "auto_gallery", "generated"}
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if not BUILT & set(page.parts)]


def blocks(page: Path) -> list[tuple[str, str | None, int]]:
    """Code, the reason not to run it, and the line where it starts."""
    text = page.read_text(encoding="utf-8")
    return [(m["code"], m["why"], text.count("\n", 0, m.start("code"))) for m in BLOCK.finditer(text)]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with a small blurred photograph; models that a page registers are gone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("slicescan.registry._outside", {})
    Image.effect_noise((48, 40), 60).convert("RGB").save("blurred.jpg")
    yield tmp_path
    torch.set_grad_enabled(True)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page, desk):
    names = {"__name__": "__main__"}
    for code, why, line in blocks(page):
        if why is not None:
            assert why, f"{page.name}, line {line}: say why the block is not run"
            ast.parse(code)
        elif ">>>" in code:
            test = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), line)
            test.globs = names
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
            failed, _ = runner.run(test, clear_globs=False)  # the names go on to the next block
            assert not failed, f"{page.name}, line {line}"
        else:
            exec(compile("\n" * line + code, page, "exec"), names)


def test_a_page_whose_code_fails_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nx = 1\n```\n\n% not run: no such file\n\n```python\nopen('none')\n```\n")
    assert [(code, why) for code, why, _ in blocks(page)] == [("x = 1\n", None), ("open('none')\n", "no such file")]
