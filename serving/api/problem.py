"""Problem documents (RFC 9457): every error the service answers."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class Problem(Exception):
    """An answer that is an error, as a problem document (RFC 9457).

    slug: kind of problem, the end of its `type`. detail: what is wrong. remedy: what to do. field: where, if anywhere.
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
    """An error (RFC 9457): what is wrong, where, and what to do."""

    type: str
    title: str
    status: int
    detail: str
    remedy: str
    field: str | None = None
    instance: str | None = None
