"""The API reference at /docs."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from serving.app import create_app
from serving.config import ServiceConfig
from serving.pages.reference.page import as_html
from tests.serving.test_service import served, url

__all__ = ["url"]
DOCUMENT = create_app(ServiceConfig(), "redis://nowhere").openapi()
HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'


class Read(HTMLParser):
    """The elements, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def values(page: Read, *names: str) -> list[str]:
    return [value for name, value in page.attributes if name in names]


def test_the_reference_loads_nothing_from_elsewhere_and_runs_no_script(url: str) -> None:
    """Every link is relative, and the policy allows only the page's own style sheet and icon."""
    with served(url) as client:
        answer = client.get("/docs")
        page = Read(answer.text)
        assert "script" not in page.tags
        assert not [name for name, _ in page.attributes if name.startswith("on") or name == "style"]
        loaded = values(page, "href", "src")
        assert not [link for link in loaded if "//" in link]
        for link in {link for link in loaded if not link.startswith("#")}:
            assert client.get(f"/{link}").status_code == 200, link
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'self'; img-src 'self';")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_reference_has_every_route_field_and_scope() -> None:
    """As in the OpenAPI document, with a section to link to for each schema that is used."""
    page = Read(as_html(DOCUMENT))
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            assert f"{method.upper()} {path}" in page.text
            assert operation["summary"] in page.text
    for scope in ("rank", "events", "items", "merge", "admin", "metrics"):
        assert f"Needs a key with scope {scope}." in page.text
    anchors = values(page, "id")
    assert len(anchors) == len(set(anchors))
    assert {link[1:] for link in values(page, "href") if link.startswith("#")} <= set(anchors)
    unused = {"HTTPValidationError", "ValidationError"}  # FastAPI adds them, but no response has them
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert (name in anchors) is (name not in unused)
        for field in schema.get("properties", {}) if name not in unused else ():
            assert field in page.text
    limit = re.search(r"limit in the query\s*integer, at least 1, at most 1000, default 10", page.text)
    assert limit, "a parameter has its place, type, limits and default"


def test_texts_of_the_document_are_never_parsed_as_markup() -> None:
    operation = {
        "summary": HOSTILE,
        "parameters": [{"name": HOSTILE, "in": "query", "schema": {"type": "string", "default": HOSTILE}}],
        "responses": {"200": {"description": HOSTILE, "content": {HOSTILE: {"schema": {"enum": [HOSTILE]}}}}},
        "requestBody": {"content": {"x": {"schema": {"$ref": f"#/components/schemas/{HOSTILE}"}}}},
        "security": [{"key": [HOSTILE]}],
    }
    schema = {"description": HOSTILE, "properties": {HOSTILE: {"type": HOSTILE, "description": HOSTILE}}}
    hostile = {
        "info": {"title": HOSTILE, "version": HOSTILE},
        "paths": {f"/{HOSTILE}": {"get": operation}},
        # A reference ends after its last slash, so the name that is looked up is the end of the text.
        "components": {"schemas": {HOSTILE.rpartition("/")[2]: schema}},
    }
    page = Read(as_html(hostile))
    assert not {"script", "img"} & set(page.tags)
    assert "onerror" not in {name for name, _ in page.attributes}


def test_the_reference_needs_no_key_and_no_redis() -> None:
    with served("redis://127.0.0.1:1") as client:
        assert client.get("/docs").status_code == 200
        assert client.get("/docs/oauth2-redirect").status_code == 404
