"""The bytes in Redis: users' two lists, the event stream, the release pointer, item vectors. Nothing else knows them.

    sw:{<user>}:e              list of records, newest first: the last engagements, at most ENGAGEMENTS
    sw:{<user>}:s              list of records, newest first: the last impressions, at most SHOWN
    sw:{<user>}:d:<period>     set of int64 hashes of the event ids that came in this period, against duplicates
    sw:events                  stream of accepted events, field `e`: JSON of an `Event`
    sw:served                  stream of answered lists, see `served.Served`
    sw:i:.., sw:items, sw:item-changes     items written since a release: see `written`
    sw:erased                  stream of erased users, fields `u` (see `user_hash`) and `t` (Unix seconds)
    sw:release                 JSON of a `Pointer`
    sw:shadow                  likewise, of the release that is scored beside the live one; missing where none is
    sw:audit                   list of JSON lines, oldest first: the last changes of the pointer, at most AUDITED
    sw:v:<encoder>:<item id>   float16[d], little-endian: the item's vector by the encoder of this fingerprint

In a cluster users and the two large streams are in shards, and keys say which: see `layout`. Records are in `users`,
events and places in their stream in `stream`, and who is asked how in `server` and `cluster`. The service reads and
writes through `Store`, everything offline through `BulkStore`.
"""

from __future__ import annotations

from serving.store.address import Address
from serving.store.bulk import BulkStore
from serving.store.errors import StoreAway, StoreCorrupt
from serving.store.layout import ERASED, POINTER, SERVED, SHARDS, STREAM, Layout
from serving.store.online import Seen, Store
from serving.store.pointer import AUDITED, Pointer
from serving.store.stream import END, START, Event, Tail, decode_event
from serving.store.users import DUPLICATES_S, event_hash, record, user_hash
from serving.store.vectors import decode_vectors, vector_key

__all__ = [
    "AUDITED",
    "DUPLICATES_S",
    "END",
    "ERASED",
    "POINTER",
    "SERVED",
    "SHARDS",
    "START",
    "STREAM",
    "Address",
    "BulkStore",
    "Event",
    "Layout",
    "Pointer",
    "Seen",
    "Store",
    "StoreAway",
    "StoreCorrupt",
    "Tail",
    "decode_event",
    "decode_vectors",
    "event_hash",
    "record",
    "user_hash",
    "vector_key",
]
