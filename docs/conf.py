"""Settings of Sphinx for the documentation site: `make docs` builds it."""

import re

import sugar_hf

project = "sugar-hf"
author = "The sugar-hf authors"
copyright = "The sugar-hf authors, Apache-2.0"
version = release = sugar_hf.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "lab/notes.md"]

html_theme = "furo"
html_title = "sugar-hf"

myst_heading_anchors = 4
default_role = "code"  # docstrings write `name` for code
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
suppress_warnings = ["ref.python"]  # a class may be documented under the package and at the top


def public_names() -> str:
    """Return a list of the names at the top, each with a link to its description."""
    lines = []
    for name in sugar_hf.__all__:
        package = getattr(sugar_hf, name).__module__.split(".")[1]
        lines.append(f"- :py:obj:`sugar_hf.{name} <sugar_hf.{package}.{name}>`")
    return "\n".join(lines)


def add_public_names(app, document, source):
    """Put the list of names where a page asks for it."""
    source[0] = source[0].replace(".. public-names", public_names())


def as_literal(match):
    """Return a code span as reStructuredText has it; roles and literals stay."""
    return match[0] if match[1] is None else f"``{match[1]}``" + ("\\ " if match[2] else "")


def markdown_to_rst(app, what, name, obj, options, lines):
    """Rewrite a docstring's Markdown: `code`, [`Class`], tables and fenced blocks."""
    text = re.sub(r"\[(`[^`]+`)\]", r"\1", "\n".join(lines))
    text = re.sub(r"```|:\w+:`[^`]+`|``[^`]+``|`([^`]+)`(?=(\w)?)", as_literal, text)
    made: list[str] = []
    block = ""  # what is literal now: "", a "table" or a "fence"
    for line in text.split("\n"):
        bare = line.strip()
        fence, table = bare.startswith("```"), bare.startswith("|") and block != "fence"
        if (fence and not block) or (table and block != "table"):
            made += ["", f"{line[: len(line) - len(line.lstrip())]}::", ""]
        elif block == "table" and not table:
            made.append("")
        if fence:
            block = "" if block == "fence" else "fence"
            continue
        block = "table" if table else block if block == "fence" else ""
        made.append(f"    {line}" if block else line)
    lines[:] = made


def setup(app):
    """Connect the two functions above."""
    app.connect("source-read", add_public_names)
    app.connect("autodoc-process-docstring", markdown_to_rst, priority=100)  # before napoleon reads the sections
