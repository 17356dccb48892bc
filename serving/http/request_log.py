"""What the service writes down of itself: lines of text, or JSON, one object a line. Nothing about shoppers.

A path may hold the id of a user or an item, so a request is logged by its route; no id of either and no address of a
client is logged anywhere.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

REQUESTS = logging.getLogger("serving.requests")
"""One line a request, at INFO; those the service failed at WARNING, but not those it refused: these are counted."""


class JsonLines(logging.Formatter):
    """One JSON object a line: time (ISO 8601, UTC), level, logger, message, and the fields of a request."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": at, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        line |= getattr(record, "request", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_request(request_id: str, route: str, status: int, took_s: float, key: str | None) -> None:
    """Log a request. route: the template, as /v1/similar/{item_id}. key: the name of the caller's key."""
    level = logging.WARNING if status == 500 else logging.INFO
    if not REQUESTS.isEnabledFor(level):
        return
    fields = {"request_id": request_id, "route": route, "status": status, "ms": round(took_s * 1e3, 2), "key": key}
    said = " ".join(f"{name}={value}" for name, value in fields.items() if value is not None)
    REQUESTS.log(level, "request %s", said, extra={"request": fields})


def log_config(form: Literal["text", "json"], requests: bool) -> dict[str, Any]:
    """Settings for `logging.config.dictConfig`. requests: whether every request is a line, not only failed ones."""
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
