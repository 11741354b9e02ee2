"""How the documentation is built: ``nox -s docs``."""

from __future__ import annotations

import importlib.metadata

project = "aiotaskqueue"
author = "the aiotaskqueue contributors"
release = importlib.metadata.version("aiotaskqueue-embedded")
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"aiotaskqueue {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# A dangling reference to a name of ours is an error; names of other projects are not looked up, so that no network is needed.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!aiotaskqueue\.).*"),
    # Private classes in the signatures of public ones, and what only web adapters use.
    (r"py:class", r"aiotaskqueue\..*\._\w+"),
    (r"py:class", r"aiotaskqueue\.worker\._access\.AccessCheck"),
    # Type variables.
    (r"py:class", r"aiotaskqueue\.web\.\w+\.(App|R)"),
    # What queues ask of their service.
    (r"py:class", r"aiotaskqueue\._managing\.Managing"),
]
