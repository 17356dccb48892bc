"""HTTP: routes, guard, admission, keys, connections, the request log and the OpenAPI document.

This is the only subpackage that depends on HTTP; the work of a route is done in lower subpackages.
"""

from __future__ import annotations

from serving.http import keys
from serving.http.connection import Connections
from serving.http.guard import Guard, caller, needs
from serving.http.keys import Keys, KeysError, new_key
from serving.http.openapi import add_document
from serving.http.request_log import log_config
from serving.http.routes import add_error_handlers, add_routes

__all__ = [
    "Connections",
    "Guard",
    "Keys",
    "KeysError",
    "add_document",
    "add_error_handlers",
    "add_routes",
    "caller",
    "keys",
    "log_config",
    "needs",
    "new_key",
]
