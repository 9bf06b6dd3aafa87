"""A gallery of examples as one HTML page: pink behind retrieved results, blue behind generated ones."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment
from PIL import Image

Part = str | Image.Image

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
  table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .3rem .8rem; text-align: right; }
  th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #888; }
  tbody tr:nth-child(even) { background: #f5f5f5; }
  .card { border: 1px solid #ddd; border-radius: 10px; padding: .6rem 1rem; margin: 1rem 0;
          display: flex; flex-wrap: wrap; gap: .6rem; }
  .given { max-width: 100%; }
  .parts { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin: .3rem 0; }
  .parts span { padding: .2rem .5rem; border-radius: 6px; background: #f1f1f1; max-width: 22rem; }
  .parts img { height: 96px; border-radius: 6px; border: 1px solid #ccc; }
  .retrieved { background: #ffd9e6; border-radius: 8px; padding: .4rem .6rem; }
  .generated { background: #d8e8ff; border-radius: 8px; padding: .4rem .6rem; }
  .retrieved .parts span, .generated .parts span { background: #ffffffb0; }
  .label { font-size: .85rem; color: #555; } .plot { max-width: 100%; }
  .key span { padding: .1rem .6rem; border-radius: 6px; margin-right: .6rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="key"><span class="retrieved">retrieved</span><span class="generated">generated</span></p>
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% if section.note %}<p>{{ section.note }}</p>{% endif %}
{% if section.table %}
<table><thead><tr>{% for name in section.table[0] %}<th>{{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for row in section.table[1:] %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>
{% endif %}
{% for card in section.cards %}
<div class="card">
  {% for block in card.blocks %}
  <div class="{{ block.kind }}">
    {% if block.label %}<div class="label">{{ block.label }}</div>{% endif %}
    <div class="parts">{% for part in block.parts %}
      {% if part is string %}<span>{{ part }}</span>
      {% else %}<img alt="picture" src="{{ part | data_uri }}">{% endif %}
    {% endfor %}</div>
  </div>
  {% endfor %}
</div>
{% endfor %}
{% for picture in section.pictures %}<p><img class="plot" alt="plot" src="{{ picture | data_uri }}"></p>{% endfor %}
{% endfor %}
</body>
</html>
"""


@dataclass
class Block:
    """A row of texts and pictures in a card; `kind` is `given`, `retrieved` or `generated`."""

    kind: str
    parts: Sequence[Part]
    label: str = ""


@dataclass
class Card:
    """One example: what was given and what came of it."""

    blocks: Sequence[Block]


@dataclass
class Section:
    """A heading with a note, a table (first row is its head), examples and plots."""

    title: str
    note: str = ""
    table: Sequence[Sequence[str]] = ()
    cards: Sequence[Card] = ()
    pictures: Sequence[Image.Image] = field(default_factory=list)


def data_uri(image: Image.Image) -> str:
    """A picture as a PNG data address, so that the page is one file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def write_gallery(path: str | Path, title: str, sections: Sequence[Section]) -> Path:
    """Write the page. All text is escaped, whatever a user or a model wrote.

    Args:
        path: the HTML file; its folder is made.
        title: heading of the page.
        sections: what it shows, in order.

    Returns:
        The path written.
    """
    environment = Environment(autoescape=True)
    filters: dict[str, Any] = {"data_uri": data_uri}
    environment.filters.update(filters)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(environment.from_string(PAGE).render(title=title, sections=sections), encoding="utf-8")
    return path
