"""Sphinx: guides in Markdown, API from docstrings."""

import importlib.metadata

project = "bayesmoe"
author = "the bayesmoe developers"
release = importlib.metadata.version("bayesmoe")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say what arguments are
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"bayesmoe {release}"
html_copy_source = False
