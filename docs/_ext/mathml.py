"""Formulas as MathML, which browsers draw themselves: no JavaScript, no fonts, no network.

The translation from LaTeX is docutils' own, which Sphinx brings along.
"""

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml, pick_math_environment
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.writers.html5 import HTML5Translator


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer ``html_math_renderer = "mathml"``."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    """Write a formula of a line."""
    self.body.append(mathml(node, block=False))
    raise nodes.SkipNode


def visit_math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula of its own, with its number if it has a label."""
    number = self.builder.env.domains.math_domain.get_equation_number_for(node["label"]) if node.get("label") else None
    anchor = f' id="{node["ids"][0]}"' if node["ids"] else ""
    self.body.append(f'<div class="math"{anchor}>{mathml(node, block=True)}')
    self.body.append(f'<span class="eqno">({number})</span></div>\n' if number else "</div>\n")
    raise nodes.SkipNode


def mathml(node: nodes.Element, *, block: bool) -> str:
    """The formula, or an error that names it."""
    formula = node.astext()
    try:
        if not block:
            return latex2mathml.tex2mathml(formula)
        if pick_math_environment(formula).startswith("align") and r"\begin{align" not in formula:
            formula = rf"\begin{{aligned}}{formula}\end{{aligned}}"
        return latex2mathml.tex2mathml(formula, as_block=True)
    except MathError as error:
        raise SphinxError(
            f"{node.source}:{node.line}: cannot write the formula {formula!r} as MathML: {error}"
        ) from error
