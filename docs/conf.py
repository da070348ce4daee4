import sys
import tomllib
from pathlib import Path

import slicescan

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "slicescan"
author = "The slicescan developers"
copyright = "2026, the slicescan developers"
version = release = slicescan.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "matplotlib.sphinxext.plot_directive",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "before_after",
    "benchmark_tables",
    "doctor_output",
    "import_direction",
    "mathml",
    "model_table",
    "signatures",
    "source_links",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "_templates", "gallery", "auto_gallery/*.ipynb", "auto_gallery/*.py"]
templates_path = ["_templates"]
nitpicky = True
nitpick_ignore = [  # type variables: whatever comes in goes out
    ("py:class", "slicescan.engine.restore.Image"),
    ("py:class", "slicescan.registry.Entry"),
]
html_math_renderer = "mathml"

myst_enable_extensions = ["colon_fence", "dollarmath", "attrs_inline", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_custom_sections = [("Source", "notes_style"), ("Shape", "notes_style"), ("Shapes", "notes_style")]

intersphinx_mapping = {
    name: (entry["url"], f"inventories/{name}.inv")
    for name, entry in tomllib.loads((HERE / "inventories" / "names.toml").read_text(encoding="utf-8")).items()
}

plot_html_show_formats = False
plot_html_show_source_link = False
plot_include_source = False
plot_formats = [("png", 120)]
plot_rcparams = {"savefig.bbox": "tight", "figure.constrained_layout.use": True}

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": r"\.py$",
    "ignore_pattern": r"(^|/)_",
    "within_subsection_order": "gallery_order.Order",
    "backreferences_dir": "auto_gallery/backreferences",
    "doc_module": ("slicescan",),
    "reference_url": {"slicescan": None},
    "image_scrapers": ("matplotlib",),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1,
    "write_computation_times": False,
}

html_theme = "pydata_sphinx_theme"
html_context = {"default_mode": "auto"}
html_title = "slicescan"
html_theme_options = {
    "show_prev_next": False,
    "navigation_with_keys": False,
    "header_links_before_dropdown": 7,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"index": [], "install": [], "models": [], "benchmarks": [], "search": [], "genindex": []}
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
