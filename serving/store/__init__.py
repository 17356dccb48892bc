"""The data in Redis: users' histories, the event stream, the release pointer, item vectors and written items.

`Store` is for the service (asyncio, with timeouts), `BulkStore` for offline jobs. Only this package knows the Redis
keys.
"""

from __future__ import annotations

from serving.store.address import PREFIX_PATTERN, Address, AddressError, with_prefix
from serving.store.attributes import REFUSED, TOO_MANY, AttributeWrite, decode_attribute_write
from serving.store.bulk import BulkStore
from serving.store.continuity import Continuity, Extent, Origin, origin_loss, rewound
from serving.store.embedded import EmbeddedError, connect_url
from serving.store.erasure import new_secret, tombstone, user_hash
from serving.store.errors import StoreAway, StoreCorrupt
from serving.store.layout import (
    DUPLICATES_S,
    ERASED,
    EXPERIMENTS,
    MERCHANDISING,
    MERGES,
    PREFIX,
    SERVED,
    STREAM,
    WRITES,
    Layout,
)
from serving.store.memory import EvictionError, Memory
from serving.store.merging import Merge, decode_merge
from serving.store.online import Backlog, Store, StoredUser
from serving.store.pointer import Pointer
from serving.store.stream import END, START, Event, Tail, decode_event, entry_number
from serving.store.users import Outcome, UserLimits
from serving.store.written import BulkWrittenItems, ItemFields, ItemSize, WrittenItems, decode_fields, size_of, to_years

__all__ = [
    "DUPLICATES_S",
    "END",
    "ERASED",
    "EXPERIMENTS",
    "MERCHANDISING",
    "MERGES",
    "PREFIX",
    "PREFIX_PATTERN",
    "REFUSED",
    "SERVED",
    "START",
    "STREAM",
    "TOO_MANY",
    "WRITES",
    "Address",
    "AddressError",
    "AttributeWrite",
    "Backlog",
    "BulkStore",
    "BulkWrittenItems",
    "Continuity",
    "EmbeddedError",
    "Event",
    "EvictionError",
    "Extent",
    "ItemFields",
    "ItemSize",
    "Layout",
    "Memory",
    "Merge",
    "Origin",
    "Outcome",
    "Pointer",
    "Store",
    "StoreAway",
    "StoreCorrupt",
    "StoredUser",
    "Tail",
    "UserLimits",
    "WrittenItems",
    "connect_url",
    "decode_attribute_write",
    "decode_event",
    "decode_fields",
    "decode_merge",
    "entry_number",
    "new_secret",
    "origin_loss",
    "rewound",
    "size_of",
    "to_years",
    "tombstone",
    "user_hash",
    "with_prefix",
]
