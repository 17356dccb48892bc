"""The data in Redis: users' histories, the event stream, the release pointer, item vectors and written items.

`Store` is for the service (asyncio, with timeouts), `BulkStore` for offline jobs. Only this package knows the Redis
keys.
"""

from __future__ import annotations

from serving.store.address import Address
from serving.store.bulk import BulkStore
from serving.store.embedded import EmbeddedError, connect_url
from serving.store.erasure import new_secret, tombstone, user_hash
from serving.store.errors import StoreAway
from serving.store.layout import DUPLICATES_S, ERASED, SERVED, STREAM
from serving.store.online import Backlog, Store
from serving.store.pointer import Pointer
from serving.store.stream import END, START, Event, Tail, decode_event
from serving.store.users import Outcome
from serving.store.written import BulkWrittenItems, ItemFields, WrittenItems, decode_fields, to_years

__all__ = [
    "DUPLICATES_S",
    "END",
    "ERASED",
    "SERVED",
    "START",
    "STREAM",
    "Address",
    "Backlog",
    "BulkStore",
    "BulkWrittenItems",
    "EmbeddedError",
    "Event",
    "ItemFields",
    "Outcome",
    "Pointer",
    "Store",
    "StoreAway",
    "Tail",
    "WrittenItems",
    "connect_url",
    "decode_event",
    "decode_fields",
    "new_secret",
    "to_years",
    "tombstone",
    "user_hash",
]
