"""HTTP: routes, guard, admission, keys, connections, the request log and the OpenAPI document.

This is the only subpackage that depends on HTTP; the work of a route is done in lower subpackages.
"""

from __future__ import annotations

from serving.http import keys
from serving.http.access import access_of
from serving.http.connection import Connections
from serving.http.credentials import KeysError
from serving.http.guard import Guard, caller, needs
from serving.http.keys import Keys, new_key
from serving.http.openapi import add_document, operation, problem_responses
from serving.http.request_log import log_config
from serving.http.routes import add_error_handlers, add_routes
from serving.http.shopper_tokens import HEADER as SHOPPER_TOKEN_HEADER
from serving.http.shopper_tokens import ShopperTokens, last_secret, make_token, new_secret

__all__ = [
    "SHOPPER_TOKEN_HEADER",
    "Connections",
    "Guard",
    "Keys",
    "KeysError",
    "ShopperTokens",
    "access_of",
    "add_document",
    "add_error_handlers",
    "add_routes",
    "caller",
    "keys",
    "last_secret",
    "log_config",
    "make_token",
    "needs",
    "new_key",
    "new_secret",
    "operation",
    "problem_responses",
]
