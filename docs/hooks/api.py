"""The page of the HTTP API, generated from the service's OpenAPI document at each build, so it is always up to date."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from serving.app import create_app
from serving.config import ServiceConfig

PAGE, DOCUMENT = "api.md", "openapi.json"
_PLAIN = r"^[^\u0000-\u001f\u007f]*$"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """MkDocs hook: adds the page, and the document itself to download."""
    found = openapi()
    files.append(File.generated(config, PAGE, content=page(found)))
    files.append(File.generated(config, DOCUMENT, content=json.dumps(found, indent=1)))
    return files


def openapi() -> dict[str, Any]:
    """The document that a running service returns at /openapi.json."""
    return create_app(ServiceConfig(), "redis://127.0.0.1:1").openapi()


def page(spec: Mapping[str, Any]) -> str:
    """An OpenAPI document as Markdown: a section for each route, then one for each schema."""
    lines = [
        "# API reference",
        "",
        f"Generated from the service's OpenAPI document ([{DOCUMENT}]({DOCUMENT})), which a running service returns at"
        " `/openapi.json` and shows at `/docs`. [Serving](serving.md) describes keys, limits and errors.",
        "",
        "| | route | purpose |",
        "|---|---|---|",
    ]
    routes = [(verb.upper(), path, o) for path, verbs in spec["paths"].items() for verb, o in verbs.items()]
    lines += [f"| `{verb}` | [`{path}`](#{_anchor(verb, path)}) | {o['summary']} |" for verb, path, o in routes]
    for verb, path, operation in routes:
        lines += ["", f"## `{verb} {path}` {{ #{_anchor(verb, path)} }}", "", *_route(operation)]
    lines += ["", "## Schemas"]
    for name, schema in spec["components"]["schemas"].items():
        if name not in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which are never returned
            lines += ["", f"### {name}", "", *_form(schema)]
    return "\n".join(lines) + "\n"


def _anchor(verb: str, path: str) -> str:
    return re.sub(r"\W+", "-", f"{verb} {path}".lower()).strip("-")


def _route(operation: Mapping[str, Any]) -> Iterator[str]:
    scopes = [s for need in operation.get("security", []) for s in need.get("key", [])]
    yield f"{operation['summary']}. Scope: {', '.join(f'`{s}`' for s in scopes) or 'none'}."
    yield ""
    parameters = operation.get("parameters", [])
    if parameters:
        yield from ("| parameter | in | type |", "|---|---|---|")
        for p in parameters:
            yield f"| `{p['name']}` | {p['in']} | {_what(p['schema'])} |"
        yield ""
    for media, body in operation.get("requestBody", {}).get("content", {}).items():
        yield f"- body, `{media}`: {_what(body['schema'])}"
    refused: dict[str, list[str]] = {}
    for status, answer in sorted(operation["responses"].items()):
        for media, body in answer.get("content", {}).items():
            if media == "application/problem+json":
                refused.setdefault(_what(body.get("schema", {})), []).append(status)
            else:
                yield f"- {status}, `{media}`: {_what(body.get('schema', {})) or 'text'}"
    yield from (f"- {', '.join(statuses)}: {what}" for what, statuses in refused.items())


def _form(schema: Mapping[str, Any]) -> Iterator[str]:
    yield " ".join(str(schema.get("description", "")).split())
    yield ""
    required = set(schema.get("required", []))
    fields = schema.get("properties", {})
    if fields:
        yield from ("| field | type | |", "|---|---|---|")
    for name, field in fields.items():
        left_out = "required" if name in required else f"default `{json.dumps(field.get('default'))}`"
        yield f"| `{name}` | {_what(field)} | {left_out} |"


def _what(schema: Mapping[str, Any]) -> str:
    """The type and limits of a value, for one table cell."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if either := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_what(s) for s in either)
    if "enum" in schema:
        return ", ".join(f"`{v}`" for v in schema["enum"])
    kind = schema.get("type", "anything" if not schema else "")
    if kind == "array":
        inner = _what(schema.get("items", {}))
        return f"array of {inner}{_between(schema, 'minItems', 'maxItems', ' entries')}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {_what(schema['additionalProperties'])}"
    said = _between(schema, "minimum", "maximum", "") + _between(schema, "minLength", "maxLength", " characters")
    about = "" if schema.get("pattern") == _PLAIN and "Any text" in schema.get("description", "") else _about(schema)
    return f"{kind}{said}{about}"


def _between(schema: Mapping[str, Any], low: str, high: str, unit: str) -> str:
    bounds = [f"{word} {schema[key]:,}" for key, word in ((low, "from"), (high, "to")) if key in schema]
    return f" {' '.join(bounds)}{unit}" if bounds else ""


def _about(schema: Mapping[str, Any]) -> str:
    text = " ".join(str(schema.get("description", "")).split()).replace("|", r"\|")
    return f": {text}" if text else ""
