"""Store: the bytes in Redis and everything that reads or writes them.

`Store` is the service's side (asyncio, deadlines), `BulkStore` the offline side; users' histories, the event stream,
the release pointer, item vectors and written items. No other room knows a key.
"""

from __future__ import annotations

from serving.store.address import Address
from serving.store.bulk import BulkStore
from serving.store.embedded import EmbeddedError, connect_url
from serving.store.errors import StoreAway
from serving.store.layout import ERASED, SERVED, STREAM
from serving.store.online import Store
from serving.store.pointer import Pointer
from serving.store.stream import END, START, Event, Tail, decode_event
from serving.store.users import DUPLICATES_S, user_hash
from serving.store.written import BulkWrittenItems, ItemFields, WrittenItems, decoded_fields, to_years

__all__ = [
    "DUPLICATES_S",
    "END",
    "ERASED",
    "SERVED",
    "START",
    "STREAM",
    "Address",
    "BulkStore",
    "BulkWrittenItems",
    "EmbeddedError",
    "Event",
    "ItemFields",
    "Pointer",
    "Store",
    "StoreAway",
    "Tail",
    "WrittenItems",
    "connect_url",
    "decode_event",
    "decoded_fields",
    "to_years",
    "user_hash",
]
