"""Files of a page over HTTP, under a policy that lets in nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastapi import FastAPI, Response

from serving.http import needs

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Nothing from elsewhere, no script or style in the page, and no text ever read as markup."""
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".js": "text/javascript; charset=utf-8",
}


def add_files(app: FastAPI, path: str, files: Mapping[str, Path]) -> None:
    """Answer these files, by their names, below `path`, and `index.html` at `path` itself; no other file is answered.

    No key is asked for: what a page shows comes from routes that ask.
    """
    for name, file in files.items():
        content, kind = file.read_bytes(), _TYPES[file.suffix]

        @app.get(path if name == "index.html" else f"{path}/{name}", include_in_schema=False, openapi_extra=needs(None))
        async def answer(content: bytes = content, kind: str = kind) -> Response:
            return Response(content, headers=_HEADERS, media_type=kind)
