"""Sphinx configuration."""

project = "bindsock"
author = "the bindsock maintainers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "bindsock"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["bindsock.css"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
exclude_patterns = ["_build", "performance"]
intersphinx_mapping: dict[str, tuple[str, None]] = {}
# "More than one target found": TransportFactory is the name of asyncio's and of anyio's, and annotations have no module in them.
suppress_warnings = ["ref.python"]
