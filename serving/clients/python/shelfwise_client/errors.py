"""Exceptions of the client. All are subclasses of `ShelfwiseError`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shelfwise_client.answers import Rejected, decode

if TYPE_CHECKING:
    from shelfwise_client.forms import Event


class ShelfwiseError(Exception):
    """Base class of all errors of the client."""


class UnreachableError(ShelfwiseError):
    """The service did not respond. delivered: whether it may have received the request (False: certainly not)."""

    def __init__(self, message: str, delivered: bool) -> None:
        super().__init__(message)
        self.delivered = delivered


class DeadlineError(UnreachableError):
    """The deadline of the call passed before the response was complete."""


class ServiceError(ShelfwiseError):
    """The service returned an error.

    status: HTTP status code. code: kind of problem (`invalid-field`, `rate`), None if something else answered, such as
    a proxy. detail: what is wrong. remedy: how to fix it. field: the invalid field. request_id: the request's id in the
    service's log. rejected: the rejected parts of a request with several events or items. retry_after_s: seconds to
    wait before a retry.
    """

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        *,
        code: str | None = None,
        remedy: str = "",
        field: str | None = None,
        request_id: str | None = None,
        rejected: Sequence[Rejected] = (),
        retry_after_s: float | None = None,
    ) -> None:
        self.status, self.title, self.detail, self.code = status, title, detail, code
        self.remedy, self.field, self.request_id = remedy, field, request_id
        self.rejected, self.retry_after_s = tuple(rejected), retry_after_s
        where = f" ({field})" if field else ""
        suffix = f" [request {request_id}]" if request_id else ""
        super().__init__(" ".join(filter(None, [f"{status} {title}{where}: {detail}", remedy])) + suffix)

    @classmethod
    def of(cls, status: int, headers: Mapping[str, str], body: bytes, retry_after_s: float | None) -> ServiceError:
        """The error in a response, from the service or from something in between."""
        document = _problem(body)
        request_id = headers.get("x-request-id")
        if document is None:
            text = body[:200].decode("utf-8", "replace").strip() or "empty body"
            return cls(status, "Not a problem document", text, request_id=request_id, retry_after_s=retry_after_s)
        return cls(
            status,
            document["title"],
            str(document.get("detail", "")),
            code=document["type"].rpartition(":")[2],
            remedy=str(document.get("remedy", "")),
            field=document.get("field"),
            request_id=request_id,
            rejected=[decode(Rejected, r) for r in document.get("rejected", ())],
            retry_after_s=retry_after_s,
        )


def _problem(body: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(body)
    except ValueError:
        return None
    is_problem = isinstance(document, dict) and all(isinstance(document.get(k), str) for k in ("type", "title"))
    return document if is_problem else None


class QueueFull(ShelfwiseError):
    """The event queue is full. The event was not queued; the caller may keep it and try again."""


class UnsentError(ShelfwiseError):
    """Some events were not delivered in time. events: these events with their ids, so they are safe to send again.

    kept: whether they are in the spool, from which the next client with the same spool sends them.
    """

    def __init__(self, message: str, events: Sequence[Event], kept: bool) -> None:
        super().__init__(message)
        self.events, self.kept = tuple(events), kept
