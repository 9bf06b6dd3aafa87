"""Markdown becomes sections as HTML does."""

from pathlib import Path

import pytest
from PIL import Image

from sugar_hf.data import BadSampleError, read_documents

pytest.importorskip("markdown_it")

README = """---
title: "The tool"
draft: true
---
In front, with `code`.

# Install

![Badge](https://x.org/badge.svg) [![cat](red.png)](https://x.org) one
two

## What's *new* in 2.0?

| a | b |
|---|---|
| 1 | 2 |

- one
  - two

```python
x = "<p>"
```

<details><summary>More</summary>

<img src="red.png" alt="raw"> ~~old~~

</details>

Install
=======

![x](file:///etc/passwd) <!-- no -->
"""


@pytest.fixture
def read(tmp_path):
    """A function that writes Markdown and reads it: ids with texts and names of pictures."""
    Image.new("RGB", (6, 4), "red").save(tmp_path / "red.png")

    def read(text, name="README.md"):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return {
            document.id: [part.name if isinstance(part, Path) else part for part in document.sample]
            for document in read_documents(tmp_path / name)
        }

    read.folder = tmp_path
    return read


def test_markdown_becomes_sections(read):
    with pytest.warns(UserWarning, match="1 pictures at addresses"):
        assert read(README) == {
            "README.md": ["The tool", "In front, with code."],
            "README.md#install": ["Install", "Badge", "red.png", "one two"],
            "README.md#whats-new-in-20": [
                "Install > What's new in 2.0?",
                "a | b\n1 | 2",
                "- one\n  - two",
                'x = "<p>"',
                "More",
                "red.png",
                "old",
            ],
            "README.md#install-1": ["Install", "![x](file:///etc/passwd)"],
        }


def test_metadata_name_file_title_and_headings(read):
    (read.folder / "README.md").write_text(README.replace("![Badge]", "[Badge]"))
    document = next(each for each in read_documents(read.folder / "README.md") if each.id.endswith("20"))
    headings = ["Install", "What's new in 2.0?"]
    assert document.metadata == {"file": "README.md", "title": "The tool", "headings": headings}


def test_the_first_heading_is_the_title(read):
    read("# Tool\n\na\n\n## Use\n\nb", "x.markdown")
    assert [document.metadata["title"] for document in read_documents(read.folder / "x.markdown")] == ["Tool", "Tool"]


def test_a_note_without_headings_is_called_by_its_file(read):
    assert read("a cat.") == {"README.md": ["a cat."]}
    assert read("caf\u00e9\n".encode("utf-16")) == {"README.md": ["caf\u00e9"]}


def test_hostile_markdown(read, subtests):
    for text, message in [
        (b"\xff\xfa", "not UTF-8"),
        ("", "neither text nor picture"),
        (">" * 100_000 + " x", "nested more than 100 deep"),
        ("".join("  " * level + "- x\n" for level in range(120)), "nested more than 100 deep"),
        ("[" * 50_000, "brackets"),
        ("<!-- b\n\nc", "breaks off"),
    ]:
        with subtests.test(text=text[:20]), pytest.raises(BadSampleError, match=message) as caught:
            read(text)
        assert caught.value.file.endswith("README.md")
    deep = "".join("  " * level + f"- {level}\n" for level in range(40))
    [lines] = read(deep).values()
    assert "".join(lines).count("- ") == 40
