"""Make the notebook of a gallery page: how ``examples/plug_a_layer.ipynb`` was made. It needs sphinx-gallery.

python examples/make_notebook.py docs/gallery/plug_a_layer.py examples/plug_a_layer.ipynb
"""

import argparse
import json
from pathlib import Path

from sphinx_gallery.gen_gallery import DEFAULT_GALLERY_CONF
from sphinx_gallery.notebook import jupyter_notebook
from sphinx_gallery.py_source_parser import split_code_and_text_blocks


def notebook(script: Path) -> str:
    """The notebook of a script in the gallery's format, as JSON."""
    _, blocks = split_code_and_text_blocks(str(script))
    found = jupyter_notebook(blocks, DEFAULT_GALLERY_CONF, str(script.parent))
    cells = [
        {"cell_type": cell["cell_type"], "metadata": {}, "source": "".join(cell["source"]).strip()}
        | ({"execution_count": None, "outputs": []} if cell["cell_type"] == "code" else {})
        for cell in found["cells"]
    ]
    python = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return json.dumps({"cells": cells, "metadata": python, "nbformat": 4, "nbformat_minor": 4}, indent=1) + "\n"


def main() -> None:
    """Read, convert, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("script", type=Path)
    parser.add_argument("notebook", type=Path)
    options = parser.parse_args()
    options.notebook.write_text(notebook(options.script), encoding="utf-8")


if __name__ == "__main__":
    main()
