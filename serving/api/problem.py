"""Problem documents (RFC 9457), the form of every error response."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class Problem(Exception):
    """An error response, as a problem document (RFC 9457).

    slug: kind of problem, the last part of its `type`. detail: what is wrong. remedy: how to fix it. field: the invalid
    field, if any. headers: added to the response. more: additional members of the document.
    """

    def __init__(
        self,
        status: int,
        slug: str,
        title: str,
        detail: str,
        remedy: str,
        field: str | None = None,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.status, self.headers = status, headers
        self.document = {
            "type": f"urn:shelfwise:problem:{slug}",
            "title": title,
            "status": status,
            "detail": detail,
            **({} if field is None else {"field": field}),
            "remedy": remedy,
            **more,
        }


class ProblemDocument(Struct):
    """An error (RFC 9457): what is wrong, where, and how to fix it."""

    type: str
    title: str
    status: int
    detail: str
    remedy: str
    field: str | None = None
    instance: str | None = None
