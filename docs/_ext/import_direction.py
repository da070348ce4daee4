"""The direction of imports, drawn from the contracts in ``pyproject.toml`` that ``lint-imports`` checks."""

import ast
import html
import tomllib
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]


class ImportDirection(SphinxDirective):
    """The layers from top to bottom, with the modules that must not know each other side by side."""

    def run(self) -> list[nodes.Node]:
        """Read the contracts anew when they have changed."""
        self.env.note_dependency(str(ROOT / "pyproject.toml"))
        self.env.note_dependency(__file__)
        return [nodes.raw("", diagram(), format="html")]


def diagram() -> str:
    """The diagram as an ordered list, which a style sheet draws as a stack of boxes."""
    contracts = read_contracts()
    (layers,) = [contract for contract in contracts if contract["type"] == "layers"]
    apart = [module for contract in contracts if contract["type"] == "independence" for module in contract["modules"]]
    items = []
    for layer in layers["layers"]:
        inner = "".join(siblings(layer, apart))
        summary = html.escape(purpose(layer))
        items.append(f'<li><code>{html.escape(layer)}</code><span class="purpose">{summary}</span>{inner}</li>')
    label = f"{len(items)} layers; each imports only from those below it"
    return f'<ol class="import-direction" aria-label="{label}">{"".join(items)}</ol>'


def read_contracts() -> list[dict]:
    """The contracts of import-linter."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]


def purpose(layer: str) -> str:
    """First line of a module's or package's docstring, with its marks of code taken off."""
    path = ROOT / "slicescan" / layer
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    first = text.partition("\n")[0].replace(":func:", "").replace("``", "").replace("`", "")
    return first.partition(". ")[0].rstrip(".").partition(": ")[0]


def siblings(layer: str, apart: list[str]) -> Iterator[str]:
    """Modules of a layer that a contract keeps apart from each other."""
    for pattern in apart:
        package = pattern.removeprefix("slicescan.").removesuffix(".*")
        if package.partition(".")[0] == layer:
            folder = ROOT / "slicescan" / Path(*package.split("."))
            names = sorted(
                path.stem
                for path in folder.iterdir()
                if (path.suffix == ".py" or (path / "__init__.py").is_file()) and path.stem not in ("__init__", "base")
            )
            modules = "".join(f"<li><code>{html.escape(name)}</code></li>" for name in names)
            label = f"{package}: none of these imports another"
            name = f'<span class="purpose">{package}</span>' if package != layer else ""
            yield f'<div class="siblings">{name}<ul aria-label="{label}">{modules}</ul></div>'


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the directive ``import-direction``."""
    app.add_directive("import-direction", ImportDirection)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
