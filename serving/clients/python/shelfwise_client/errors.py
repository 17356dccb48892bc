"""What can go wrong, each with what the service said of it. All are `ShelfwiseError`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shelfwise_client.answers import Rejected, decode

if TYPE_CHECKING:
    from shelfwise_client.forms import Event


class ShelfwiseError(Exception):
    """Something went wrong; the message says what."""


class UnreachableError(ShelfwiseError):
    """The service did not answer. delivered: it may have received the request; False where it surely did not."""

    def __init__(self, message: str, delivered: bool) -> None:
        super().__init__(message)
        self.delivered = delivered


class DeadlineError(UnreachableError):
    """The deadline of the call passed before the answer was whole."""


class ServiceError(ShelfwiseError):
    """The service answered with an error.

    status: of HTTP. code: kind of problem (`invalid-field`, `rate`), None where the answer came from something else,
    a proxy perhaps. detail, remedy, field: what is wrong, what to do, where. request_id: what the service's log names.
    rejected: where it said so, what it did not take of a request with several parts. retry_after_s: seconds to wait.
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
        known = f" [request {request_id}]" if request_id else ""
        super().__init__(" ".join(filter(None, [f"{status} {title}{where}: {detail}", remedy])) + known)

    @classmethod
    def of(cls, status: int, headers: Mapping[str, str], body: bytes, retry_after_s: float | None) -> ServiceError:
        """The error in an answer, whatever answered it."""
        document = _problem(body)
        request_id = headers.get("x-request-id")
        if document is None:
            said = body[:200].decode("utf-8", "replace").strip() or "no text"
            return cls(status, "No problem document", said, request_id=request_id, retry_after_s=retry_after_s)
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
    said = isinstance(document, dict) and all(isinstance(document.get(k), str) for k in ("type", "title"))
    return document if said else None


class QueueFull(ShelfwiseError):
    """There is no room for another event; this one was not taken, and is the caller's to keep or to give up."""


class UnsentError(ShelfwiseError):
    """Time ran out before all events were delivered. events: those, with their ids: sending them again is harmless.

    kept: they are in the spool, and the next client with the same one sends them.
    """

    def __init__(self, message: str, events: Sequence[Event], kept: bool) -> None:
        super().__init__(message)
        self.events, self.kept = tuple(events), kept
