"""The document and its changes in Redis.

    sw:merchandising    hash: `document`, as JSON; `stamp`, which differs whenever the document does; `c:<version>`, the
                        change that made a version, as JSON; `oldest`, the first version whose change is kept; `bytes`,
                        the size of all kept changes

It is one key, so that one script can change all of it, also in a cluster.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

import msgspec

from serving.merchandising.document import Change, Document, MerchandisingRule
from serving.store import MERCHANDISING, BulkStore, Store, StoreCorrupt

CHANGES = 500
"""Maximum number of changes that are kept."""
CHANGES_BYTES = 2_000_000
"""Maximum size of all changes that are kept. The newest is always kept."""
_WRITE = """
local key, version = KEYS[1], tonumber(ARGV[3])
if (redis.call('HGET', key, 'stamp') or '') ~= ARGV[1] then return 0 end
local oldest = tonumber(redis.call('HGET', key, 'oldest') or version)
local bytes = tonumber(redis.call('HGET', key, 'bytes') or 0) + #ARGV[5]
redis.call('HSET', key, 'stamp', ARGV[2], 'document', ARGV[4], 'c:' .. version, ARGV[5])
while oldest < version and (version - oldest >= tonumber(ARGV[6]) or bytes > tonumber(ARGV[7])) do
  bytes = bytes - redis.call('HSTRLEN', key, 'c:' .. oldest)
  redis.call('HDEL', key, 'c:' .. oldest)
  oldest = oldest + 1
end
redis.call('HSET', key, 'oldest', oldest, 'bytes', bytes)
return 1
"""
"""Writes a document and its change if the stored document is still the one that was read, in one step. Of two callers
that have read the same document, one gets 0. Removes the oldest changes beyond the bounds."""

_DOCUMENT = msgspec.json.Decoder(Document)
_CHANGE = msgspec.json.Decoder(Change)


class Stored(NamedTuple):
    """A document as it is in Redis. stamp: empty if Redis has none."""

    stamp: str
    document: Document


NOTHING_STORED = Stored("", Document())


def stamped(document: Document) -> Stored:
    """A document with its stamp: the version, and a digest of the whole."""
    digest = blake2b(msgspec.json.encode(document), digest_size=12).hexdigest()
    return Stored(f"{document.version}-{digest}", document)


def decode_document(encoded: bytes) -> Document:
    """Decode a document. Raises msgspec.MsgspecError and UnicodeDecodeError if it is not one."""
    return _DOCUMENT.decode(encoded)


async def read_document(store: Store) -> Stored:
    """The document in Redis. Raises StoreAway, also for one that this version cannot read."""
    key = store.layout.key(MERCHANDISING)
    return _stored(key, *(await store.run([["HMGET", key, "stamp", "document"]]))[0])


def read_rules(store: BulkStore) -> list[MerchandisingRule]:
    """The rules in Redis, for offline jobs. Raises StoreAway, also for a document that this version cannot read."""
    key = store.layout.key(MERCHANDISING)
    return _stored(key, *store.run([["HMGET", key, "stamp", "document"]])[0]).document.rules


def _stored(key: str, stamp: bytes | None, encoded: bytes | None) -> Stored:
    if stamp is None or encoded is None:
        return NOTHING_STORED
    try:
        return Stored(stamp.decode(), decode_document(encoded))
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise StoreCorrupt(f"{key} is not a valid document of merchandising rules ({e}): restore a backup of it") from e


async def read_changes(store: Store, newest: int, most: int = CHANGES) -> list[Change]:
    """At most `most` changes up to version `newest`, newest first, without those that are no longer kept.

    Raises StoreAway.
    """
    versions = range(newest, max(0, newest - most), -1)
    if not versions:
        return []
    key = store.layout.key(MERCHANDISING)
    encoded = (await store.run([["HMGET", key, *(f"c:{version}" for version in versions)]]))[0]
    try:
        return [_CHANGE.decode(one) for one in encoded if one is not None]
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise StoreCorrupt(f"{key} has a change that is not valid ({e}): restore a backup of it") from e


async def write_document(store: Store, before: str, document: Document, change: Change) -> Stored | None:
    """Write the next version of the document, and the change that makes it.

    before: stamp of the document that was read. Returns None, and writes nothing, if the stored one is another by now.
    Raises StoreAway; the document may then have been written.
    """
    new = stamped(document)
    encoded = (msgspec.json.encode(document), msgspec.json.encode(change))
    arguments = (before, new.stamp, document.version, *encoded, CHANGES, CHANGES_BYTES)
    written = (await store.run([["EVAL", _WRITE, 1, store.layout.key(MERCHANDISING), *arguments]]))[0]
    return new if written else None
