"""What ``slicescan doctor`` prints, from the machine that builds the pages."""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from slicescan.engine.doctor import diagnosis


class DoctorOutput(SphinxDirective):
    """The diagnosis as a block of plain text."""

    def run(self) -> list[nodes.Node]:
        """Ask the machine anew whenever the page is written."""
        self.env.note_reread()
        text = diagnosis()
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the directive ``doctor-output``."""
    app.add_directive("doctor-output", DoctorOutput)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
