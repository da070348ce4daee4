"""The capability table of all models, from the records of the registry."""

from collections.abc import Sequence

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import slicescan
from slicescan.models.base import ModelRecord
from slicescan.registry import FAMILIES

ABILITIES = {
    "fp16": "fp16",
    "bf16": "bf16",
    "channels_last": "channels last",
    "compile": "compile",
    "export": "export",
    "onnx": "ONNX",
    "stream": "stream",
}
NUMBERS = {"scale", "parameters", "GMACs", "pads to"}


class ModelTable(SphinxDirective):
    """A section for each family: what all of its models share, and a row for each."""

    def run(self) -> list[nodes.Node]:
        """Read the registry anew whenever the page is written."""
        self.env.note_reread()
        return self.parse_text_to_nodes("\n\n".join(sections()), allow_section_headings=True)


def sections() -> list[str]:
    """Families as Markdown, in the order of the registry."""
    records = [slicescan.model_entry(name) for name in slicescan.list_models()]
    return [section([record for record in records if record.family == family.__name__]) for family in FAMILIES]


def section(records: Sequence[ModelRecord]) -> str:
    """A family as Markdown: columns in which all of its models agree are said once, above the table."""
    first = records[0]
    module = next(family.__module__ for family in FAMILIES if family.__name__ == first.family)
    columns = [cells(record) for record in records]
    agreed = [key for key in ("task", "scale", "pads to", "weights") if len({row[key] for row in columns}) == 1]
    said = " · ".join(f"{key} {columns[0][key]}" for key in agreed if columns[0][key] != "–")
    lines = [f"## {first.family}", "", f"{{class}}`~{module}.{first.family}` · [paper]({first.paper}) · {said}", ""]
    lines += [f"Tiling is {first.tiling}: {first.tiling_reason}.", ""] if first.tiling else []
    heads = [key for key in columns[0] if key not in agreed]
    sides = ["--:" if key in NUMBERS else ":-:" if key in ABILITIES.values() else "---" for key in heads]
    for line in (heads, sides, *([row[key] for key in heads] for row in columns)):
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def cells(record: ModelRecord) -> dict[str, str]:
    """A model's line, by the heads of its columns."""
    params, macs = costs(record)
    abilities = {head: "✓" if ability in record.supports else "–" for ability, head in ABILITIES.items()}
    return {
        "model": f"`{record.name}`",
        "task": record.task or "–",
        "scale": f"×{record.scale}",
        "parameters": params,
        "GMACs": macs,
        "pads to": str(record.size_multiple),
        **abilities,
        "weights": weights(record),
    }


def costs(record: ModelRecord) -> tuple[str, str]:
    """Parameters and multiply-adds."""
    return (
        "–" if record.params is None else f"{record.params / 1e6:.2f} M",
        "–" if record.macs_256 is None else f"{record.macs_256 / 1e9:.1f}",
    )


def weights(record: ModelRecord) -> str:
    """Where trained weights are."""
    if not record.weights:
        return "–"
    source = record.weights[0]
    return "in the package" if source.page is None else f"[published]({source.page})"


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the directive ``model-table``."""
    app.add_directive("model-table", ModelTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
