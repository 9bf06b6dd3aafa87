"""Markdown to sections, by way of HTML: so raw HTML in it is read, too."""

from __future__ import annotations

import re
from typing import Any

from .errors import BadSampleError

_DEEPEST = 100
_MOST_BRACKETS = 10_000  # of a paragraph: what looks for their ends is quadratic
_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_TITLE = re.compile(r"^title:[ \t]*(.+?)[ \t]*$", re.MULTILINE)


def markdown_html(text: str) -> tuple[str | None, str]:
    """Turn Markdown (CommonMark, with tables and strikethrough) into HTML.

    Front matter, a block of YAML between `---` at the very beginning, is left out; its `title` is returned.

    Raises:
        BadSampleError: It is nested too deeply.
        ImportError: markdown-it-py is not installed.
    """
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise ImportError("Markdown needs markdown-it-py: pip install 'sugar-hf[documents]'") from error

    title = None
    if front := _FRONT.match(text):
        text = text[front.end() :]
        if found := _TITLE.search(front[1]):
            title = found[1].strip("\"'").strip() or None
    markdown = MarkdownIt("commonmark", {"maxNesting": _DEEPEST}).enable(["table", "strikethrough"])
    markdown.core.ruler.before("inline", "brackets", _check_brackets)
    tokens = markdown.parse(text)
    # what is nested deeper is left out by markdown-it without a word
    if any(token.level >= _DEEPEST - 1 for block in tokens for token in (block, *(block.children or ()))):
        raise BadSampleError(f"blocks are nested more than {_DEEPEST} deep", mend="Mend or remove the file")
    return title, markdown.renderer.render(tokens, markdown.options, {})


def _check_brackets(state: Any) -> None:
    for token in state.tokens:
        if token.type == "inline" and token.content.count("[") > _MOST_BRACKETS:
            reason = f"a paragraph has more than {_MOST_BRACKETS} brackets"
            raise BadSampleError(reason, field="text", mend="Mend or remove the file")
