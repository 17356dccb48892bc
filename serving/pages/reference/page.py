"""The API reference at /docs: the OpenAPI document as one page of plain HTML.

It has no script and loads only its own style sheet, so it works without access to the internet, and its content
security policy allows nothing else.
"""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response

from serving.http import needs
from serving.pages.files import add_files

PATH = "/docs"
FOLDER = Path(__file__).parent
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_REQUIRED = {True: " <b>required</b>", False: ""}
_CODE = re.compile(r"`([^`]+)`")

Json = Mapping[str, Any]


def add_reference(app: FastAPI) -> None:
    """Add the page at /docs, without a key, for the routes that the application has at the first request."""
    add_files(app, PATH, {"style.css": FOLDER / "style.css", "icon.svg": FOLDER.parent / "storefront" / "icon.svg"})
    pages: list[bytes] = []

    @app.get(PATH, include_in_schema=False, openapi_extra=needs(None))
    async def reference() -> Response:
        if not pages:
            pages.append(as_html(app.openapi()).encode())
        return Response(pages[0], headers=_HEADERS, media_type="text/html; charset=utf-8")


def as_html(document: Json) -> str:
    """An OpenAPI document as a page: every operation, then every schema that they use."""
    operations = [
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = _used(document["components"]["schemas"], operations)
    title = html.escape(f"{document['info']['title']} API, version {document['info']['version']}")
    routes = "".join(
        f'<li><a href="#{_anchor(method, path)}">{_route(method, path)}</a> {html.escape(operation["summary"])}</li>'
        for method, path, operation in operations
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="docs/icon.svg">
<link rel="stylesheet" href="docs/style.css">
</head>
<body>
<header><h1>{title}</h1>
<p>This page as an OpenAPI document: <a href="openapi.json">openapi.json</a></p></header>
<main>
<nav aria-label="Routes"><ul>{routes}</ul></nav>
<h2>Routes</h2>
{"".join(_operation(*each) for each in operations)}
<h2>Schemas</h2>
{"".join(_schema(name, schema) for name, schema in schemas.items())}
</main>
</body>
</html>
"""


def _used(schemas: Json, operations: Iterable[Any]) -> dict[str, Json]:
    """The schemas that operations refer to, also through other schemas, in the order of the document."""
    used: set[str] = set()
    new = _references(list(operations))
    while new:
        used |= new
        new = {name for found in new for name in _references(schemas[found])} - used
    return {name: schema for name, schema in schemas.items() if name in used}


def _references(part: Any) -> set[str]:
    if isinstance(part, Mapping):
        own = {part["$ref"].rpartition("/")[2]} if isinstance(part.get("$ref"), str) else set[str]()
        return own.union(*(_references(value) for value in part.values()))
    return set[str]().union(*(_references(value) for value in part)) if isinstance(part, (list, tuple)) else set()


def _operation(method: str, path: str, operation: Json) -> str:
    scopes = [scope for one in operation.get("security", []) for scope in one.get("key", [])]
    key = f"Needs a key with scope <code>{html.escape(', '.join(scopes))}</code>." if scopes else "Needs no key."
    parameters = _fields(
        "Parameters",
        (
            (p["name"], f"in the {p['in']}", p.get("required", False), p["schema"])
            for p in operation.get("parameters", [])
        ),
    )
    body = operation.get("requestBody")
    request = f"<h4>Body</h4><ul>{_contents(body['content'])}</ul>" if body else ""
    responses = "".join(
        f"<li><code>{html.escape(status)}</code> {_prose_line(answer['description'])} "
        f"<ul>{_contents(answer.get('content', {}))}</ul></li>"
        for status, answer in sorted(operation["responses"].items())
    )
    return (
        f'<section id="{_anchor(method, path)}"><h3>{_route(method, path)}</h3>'
        f"<p>{html.escape(operation['summary'])}. {key}</p>{parameters}{request}"
        f"<details><summary>Responses</summary><ul>{responses}</ul></details></section>\n"
    )


def _contents(content: Json) -> str:
    return "".join(
        f"<li><code>{html.escape(kind)}</code> {_type(of.get('schema', {}))}</li>" for kind, of in content.items()
    )


def _schema(name: str, schema: Json) -> str:
    required = schema.get("required", [])
    fields = ((field, "", field in required, of) for field, of in schema.get("properties", {}).items())
    return (
        f'<section id="{html.escape(name)}"><h3>{html.escape(name)}</h3>'
        f"{_prose(schema.get('description', ''))}{_fields('Fields', fields)}</section>\n"
    )


def _fields(caption: str, fields: Iterable[tuple[str, str, bool, Json]]) -> str:
    """A table of (name, place, whether it is required, schema); empty without fields."""
    rows = "".join(
        f"<tr><th scope=row><code>{html.escape(name)}</code> {html.escape(place)}{_REQUIRED[required]}</th>"
        f"<td>{_type(schema)}{_default(schema)}</td></tr>"
        for name, place, required, schema in fields
    )
    return f"<table><caption>{caption}</caption><tbody>{rows}</tbody></table>" if rows else ""


def _default(schema: Json) -> str:
    default = schema.get("default")
    return "" if default in (None, []) else f", default <code>{html.escape(repr(default))}</code>"


def _type(schema: Json) -> str:
    """The type, limits and description of a value, as HTML."""
    if "$ref" in schema:
        name = html.escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for combined in ("anyOf", "oneOf"):
        if combined in schema:
            return " or ".join(_type(part) for part in schema[combined])
    if "enum" in schema:
        kind = "one of " + ", ".join(f"<code>{html.escape(str(value))}</code>" for value in schema["enum"])
    elif schema.get("type") == "array":
        kind = f"array of ({_type(schema.get('items', {}))})"
    else:
        kind = html.escape(str(schema.get("type", "any")))
    about = _prose_line(schema.get("description", "")).rstrip(".")
    return ", ".join([kind, *_limits(schema)]) + (f" ({about})" if about else "")


def _limits(schema: Json) -> list[str]:
    words = (
        ("minimum", "at least {}"),
        ("exclusiveMinimum", "more than {}"),
        ("maximum", "at most {}"),
        ("exclusiveMaximum", "less than {}"),
        ("minLength", "at least {} characters"),
        ("maxLength", "at most {} characters"),
        ("minItems", "at least {} values"),
        ("maxItems", "at most {} values"),
    )
    return [html.escape(text.format(schema[name])) for name, text in words if name in schema]


def _prose(text: str) -> str:
    return "".join(f"<p>{_prose_line(part)}</p>" for part in inspect.cleandoc(text).split("\n\n") if part.strip())


def _prose_line(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", html.escape(" ".join(text.split())))


def _route(method: str, path: str) -> str:
    return f"<code>{html.escape(method.upper())} {html.escape(path)}</code>"


def _anchor(method: str, path: str) -> str:
    return html.escape(f"{method}{re.sub('[^a-z0-9_]+', '-', path)}".rstrip("-"))
