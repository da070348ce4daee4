"""Lead the way back from a line of source code to its place in the reference.

``sphinx.ext.viewcode`` writes these links as if all names of a file were documented under the module that came first; a
file whose names are documented under two, say ``slicescan`` and ``slicescan.engine.erf``, gets links to no place.
"""

import re
import shutil
from typing import Any

from sphinx.application import Sphinx

BACK = re.compile(r'(<a class="viewcode-back" href="[./]*)(?P<page>[^"#]+)\.html#(?P<place>[^"]+)"')


def setup(app: Sphinx) -> dict[str, bool]:
    """Look at the pages of source code before they are written."""
    app.connect("builder-inited", forget_source)
    app.connect("html-page-context", right_places)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def forget_source(app: Sphinx) -> None:
    """Have pages of source code written anew: which of their lines are led to depends on more than the source."""
    shutil.rmtree(app.outdir / "_modules", ignore_errors=True)


def right_places(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Put the place where a page documents a name for the place where viewcode supposes it."""
    if not pagename.startswith("_modules/"):
        return
    objects = app.env.domains.python_domain.objects

    def corrected(link: re.Match[str]) -> str:
        page, place = link["page"], link["place"]
        there = [name for name, entry in objects.items() if entry.docname == page]
        parts = place.split(".")
        tails = (".".join(parts[first:]) for first in range(len(parts)))
        right = next((name for tail in tails for name in there if name == tail or name.endswith(f".{tail}")), place)
        return f'{link[1]}{page}.html#{right}"'

    context["body"] = BACK.sub(corrected, context["body"])
