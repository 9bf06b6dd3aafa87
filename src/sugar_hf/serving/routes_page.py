"""The OpenAPI document as a page for people, without scripts."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; }
body { margin: 0 auto; padding: 1.5rem 1rem; max-width: 60rem; font: 1rem/1.5 system-ui, sans-serif; }
h2 { margin: 2rem 0 0; font-size: 1.1rem; } code { font-size: .95em; }
table { border-collapse: collapse; margin: .5rem 0; font-size: .9rem; }
td, th { border: 1px solid #8886; padding: .25rem .5rem; text-align: left; vertical-align: top; }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
OPENAI = ("ChatCompletion",)  # described elsewhere, at length
_LIMITS = {"minimum": "≥", "maximum": "≤", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}


def routes_page(document: Mapping[str, Any]) -> str:
    """Write an OpenAPI document as HTML: each route, the fields of what it takes, and of what it gives."""
    schemas = document["components"]["schemas"]
    lines = [f"<!doctype html><html lang=en><meta charset=utf-8><title>Routes</title><style>{_STYLE}</style>"]
    lines.append(f"<h1>{escape(document['info']['title'])}</h1><p>{escape(document['info']['description'])}</p>")
    lines.append("<p>For programs: <code>/openapi.json</code>.</p>")
    shown: dict[str, None] = {}  # parts that several routes have, in the order of their coming
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            lines.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(route['description'])}</p>")
            rows = [(each["name"], each["schema"], each.get("required")) for each in route.get("parameters", ())]
            for schema in _schemas(route.get("requestBody", {}), schemas):
                rows += _fields(schema)
            lines += _table("Takes", rows, shown)
            for schema in _schemas(route["responses"]["200"], schemas):
                is_known = schema["title"] in OPENAI
                rows = [(schema["title"], {"type": "of the OpenAI API"}, True)] if is_known else [*_fields(schema)]
                lines += _table("Gives", rows, shown)
    described: set[str] = set()
    while left := [name for name in shown if name not in described]:
        for name in left:
            described.add(name)
            schema = schemas[name]
            lines.append(f"<h2 id={escape(name, quote=True)}>{escape(name)}</h2>")
            lines.append(f"<p>{escape(schema.get('description', ''))}</p>")
            lines += _table("", list(_fields(schema)), shown)
    return "\n".join(lines)


def _schemas(part: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The schemas of a body, in JSON."""
    found = part.get("content", {}).get("application/json", {}).get("schema", {})
    if "$ref" in found:
        yield schemas[_named(found)]


def _fields(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    for name, field in schema.get("properties", {}).items():
        yield name, field, name in schema.get("required", ())


def _table(title: str, rows: list[tuple[str, Any, Any]], shown: dict[str, None]) -> list[str]:
    if not rows:
        return []
    lines = [f"<table><tr><th>{title}</th><th></th><th></th></tr>"]
    for name, field, is_required in rows:
        said = [field.get("description", ""), "" if not is_required or title == "Gives" else "required"]
        if field.get("default") is not None:
            said.append(f"{field['default']!r} if left out")
        text = "; ".join(filter(None, said))
        lines.append(
            f"<tr><td><code>{escape(name)}</code></td><td>{_kind(field, shown)}</td><td>{escape(text)}</td></tr>"
        )
    return [*lines, "</table>"]


def _kind(field: Mapping[str, Any], shown: dict[str, None]) -> str:
    """What a field may be, in words."""
    if "$ref" in field:
        name = _named(field)
        shown.setdefault(name)
        return f"<a href=#{escape(name, quote=True)}>{escape(name)}</a>"
    for key in ("anyOf", "oneOf"):
        if key in field:
            return " or ".join(dict.fromkeys(_kind(each, shown) for each in field[key]))
    if "const" in field or "enum" in field:
        return " or ".join(f"<code>{escape(str(value))}</code>" for value in field.get("enum", [field.get("const")]))
    kind = escape(str(field.get("type", "anything")))
    if kind == "array":
        return f"list of ({_kind(field.get('items', {}), shown)})"
    limits = [f"{sign} {field[key]:g}" for key, sign in _LIMITS.items() if key in field]
    return " ".join([kind, *limits])


def _named(field: Mapping[str, Any]) -> str:
    return field["$ref"].rsplit("/", 1)[1]
