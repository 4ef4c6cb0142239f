"""The site of README.md and these pages: ``tox -e docs``, which runs Sphinx in the root of the tree.

The pages are plain Markdown, readable without it: the table of contents is added here.
"""

from __future__ import annotations

from importlib.metadata import version as version_of

from sphinx.application import Sphinx

project = "twistedproxy"
author = "The twistedproxy authors"
version = release = version_of("twistedproxy")

extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md"]
exclude_patterns = [".*", "build", "deploy", "tests", "twisted*", "docs/_build"]
myst_heading_anchors = 4
highlight_language = "none"
html_theme = "furo"
html_title = "twistedproxy"
html_show_copyright = False

PAGES = (
    "operating options page viewers http pictures access privacy conformance prefetch upgrading benchmarks architecture contributing"
).split()
CONTENTS = "\n\n```{toctree}\n:hidden:\n\n" + "".join(f"docs/{page}\n" for page in PAGES) + "CHANGELOG\n```\n"


def _add_contents(_app: Sphinx, page: str, source: list[str]) -> None:
    if page == root_doc:
        source[0] += CONTENTS


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _add_contents)
