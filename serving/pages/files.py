"""Serving a page's files, under a content security policy that allows nothing from other origins but pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fastapi import FastAPI, Response

from serving.http import needs

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Content security policy: nothing from other origins, no inline scripts or styles, and no text parsed as markup."""
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".js": "text/javascript; charset=utf-8",
}


def add_files(app: FastAPI, path: str, files: Mapping[str, Path], image_origins: Sequence[str] = ()) -> None:
    """Add routes for these files, by name, below `path`; `index.html` is at `path` itself.

    They need no key: what a page shows comes from routes that do. image_origins: origins of images that the page may
    show besides its own.
    """
    policy = POLICY.replace("img-src 'self'", " ".join(("img-src 'self'", *image_origins)))
    headers = {**_HEADERS, "Content-Security-Policy": policy}
    for name, file in files.items():
        content, kind = file.read_bytes(), _TYPES[file.suffix]

        @app.get(path if name == "index.html" else f"{path}/{name}", include_in_schema=False, openapi_extra=needs(None))
        async def answer(content: bytes = content, kind: str = kind) -> Response:
            return Response(content, headers=headers, media_type=kind)
