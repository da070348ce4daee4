"""A photograph and what a network makes of it, one over the other, with a handle that moves the border between them.

The build restores the photograph, and does so again only when photograph, weights or this file have changed. Without
JavaScript, and on paper, the two pictures follow one another.
"""

import hashlib
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from PIL import Image
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.writers.html5 import HTML5Translator

import slicescan
from slicescan.registry import WEIGHTS

PICTURES = "auto_pictures"
"""Folder for what the build draws, in the folder of the pages."""


class before_after(nodes.General, nodes.Element):  # noqa: N801 (docutils names nodes so)
    """Two pictures of one size; the second lies over the first."""


class BeforeAfter(SphinxDirective):
    """``{before-after} path/of/photo.jpg``, relative to the repository; the text below is the caption."""

    required_arguments = 1
    has_content = True
    option_spec = {
        "model": directives.unchanged_required,
        "width": directives.positive_int,
        "alt": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        """Restore, unless that has been done, and name both pictures."""
        photo = (Path(self.env.srcdir).parent / self.arguments[0]).resolve()
        model, width = self.options.get("model", "xyscannet_tiny"), self.options.get("width", 480)
        alt = self.options.get("alt", photo.stem.replace("_", " "))
        self.env.note_dependency(str(photo))
        self.env.note_dependency(__file__)
        files = draw(photo, model, width, Path(self.env.srcdir) / PICTURES)
        slider = before_after("", label=f"How much of the restored picture is shown: {alt}")
        for file, state in zip(files, ("blurred", "restored"), strict=True):
            slider += nodes.image(
                "", uri=f"/{PICTURES}/{file.name}", alt=f"{alt}, {state}", candidates={}, classes=["dark-light"]
            )
        figure = nodes.container("", slider, classes=["before-after"])
        if self.content:
            figure += nodes.container("", *self.parse_content_to_nodes(), classes=["before-after-caption"])
        return [figure]


def draw(photo: Path, model: str, width: int, folder: Path) -> tuple[Path, Path]:
    """Write a photograph at a width, and what the model makes of it, under names that tell what they were made from."""
    weights = WEIGHTS / f"{model}.safetensors"
    made_from = hashlib.sha256(b"".join(file.read_bytes() for file in (photo, weights, Path(__file__))))
    made_from.update(str(width).encode())
    stem = f"{photo.stem}_{made_from.hexdigest()[:12]}"
    before, after = folder / f"{stem}_before.png", folder / f"{stem}_after.png"
    if not (before.is_file() and after.is_file()):
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(photo) as image:
            given = middle(image.convert("RGB"), width)
        restored = slicescan.restore(slicescan.create_model(model, pretrained=True).eval(), given)
        for picture, file in ((given, before), (restored, after)):
            fresh = file.with_suffix(".part.png")
            picture.save(fresh)
            fresh.replace(file)
    return before, after


def middle(image: Image.Image, width: int) -> Image.Image:
    """The middle of a picture, three parts wide and two high, pixel for pixel: a smaller blur would be another one."""
    width = min(width, image.width, image.height * 3 // 2)
    height = width * 2 // 3
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def visit(self: HTML5Translator, node: before_after) -> None:
    """Open the frame; the pictures write themselves."""
    self.body.append('<div class="before-after-frame">')


def depart(self: HTML5Translator, node: before_after) -> None:
    """Add the handle: a range that covers the pictures, so that pointers, fingers and keys move it by themselves."""
    label = self.attval(node["label"])
    self.body.append(
        f'<input type="range" min="0" max="100" step="1" value="50" aria-label="{label}">'
        '<span class="before-after-handle" aria-hidden="true"></span></div>'
    )


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the directive ``before-after``."""
    app.add_node(before_after, html=(visit, depart))
    app.add_directive("before-after", BeforeAfter)
    app.add_css_file("before_after.css")
    app.add_js_file("before_after.js", loading_method="defer")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
