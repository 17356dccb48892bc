"""The service's log: plain text, or JSON with one object per line. It contains nothing about shoppers.

A path may contain the id of a user or an item, so requests are logged by route. User ids, item ids and client addresses
are never logged.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

REQUESTS = logging.getLogger("serving.requests")
"""One line per request at INFO, or at WARNING for status 500. Refused requests are not failures; metrics count them."""


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object: time (ISO 8601, UTC), level, logger, message, and the request's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a line break."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": at, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        line |= getattr(record, "request", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_request(request_id: str, route: str, status: int, took_s: float, key: str | None) -> None:
    """Log a request. route: the template, such as /v1/similar/{item_id}. key: name of the caller's key."""
    level = logging.WARNING if status == 500 else logging.INFO
    if not REQUESTS.isEnabledFor(level):
        return
    fields = {"request_id": request_id, "route": route, "status": status, "ms": round(took_s * 1e3, 2), "key": key}
    text = " ".join(f"{name}={value}" for name, value in fields.items() if value is not None)
    REQUESTS.log(level, "request %s", text, extra={"request": fields})


def log_config(form: Literal["text", "json"], requests: bool) -> dict[str, Any]:
    """Settings for `logging.config.dictConfig`. requests: whether to log every request instead of only failed ones."""
    formatters: dict[str, dict[str, Any]] = {
        "text": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
        "json": {"()": "serving.http.request_log.JsonLines"},
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": formatters,
        "handlers": {"out": {"class": "logging.StreamHandler", "formatter": form, "stream": "ext://sys.stderr"}},
        "root": {"handlers": ["out"], "level": "INFO"},
        "loggers": {REQUESTS.name: {"level": "INFO" if requests else "WARNING"}},
    }
