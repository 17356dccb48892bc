"""Files that an import writes beside items and events, the attributes of users, and the removal of erased users.

`users.parquet` has the attributes of users: `user_id` and a column per attribute. It has no times, so they hold for the
whole log, until the first write of the attribute through the service, which is in the log.

A row of the quarantine has the value of one cell, which may be a user ID, or a whole line that contains one. A
tombstone can be compared with an ID, but not searched in a text. Therefore a value is removed if it or one of its words
is the ID of an erased user, and every value that is a whole line or was cut is removed with the first erasure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.bounds import IdError, clean_id
from features.columns import Scalar
from offline.data.erasures import Erasures, without_erased
from offline.data.log import LogFiles
from offline.data.partitions import to_microseconds
from offline.data.schema import ATTRIBUTES_FORM
from offline.runtime import atomic_path, write_json

QUARANTINE_FILE = "quarantine.parquet"
SUMMARY_FILE = "import.json"
PROFILES_FILE = "users.parquet"
SHOWN_CHARACTERS = 200
"""Maximum length of a rejected value that is kept: enough to recognise it, too little to fill a disk."""

_ATTRIBUTES = msgspec.json.Decoder(dict[str, bool | float | str | None])
_BETWEEN = re.compile(r"[\s,;|\"'{}\[\]()=&?]+")


def without_erased_values(quarantine: pa.Table, erasures: Erasures) -> pa.Table:
    """The same rows, with null for every value that may have the ID of an erased user."""
    if not erasures.at or not len(quarantine):
        return quarantine
    values = quarantine["value"].combine_chunks().dictionary_encode()
    named = [_may_name_erased(value, erasures) for value in values.dictionary.to_pylist()]
    is_line = quarantine["column"].combine_chunks().is_null().to_numpy(zero_copy_only=False)
    removed = is_line | np.array([*named, False])[values.indices.fill_null(len(named)).to_numpy()]
    kept = pa.array(
        [None if gone else value for gone, value in zip(removed, quarantine["value"].to_pylist(), strict=True)],
        quarantine.schema.field("value").type,
    )
    return quarantine.set_column(quarantine.schema.get_field_index("value"), quarantine.schema.field("value"), kept)


def _may_name_erased(value: str, erasures: Erasures) -> bool:
    if len(value) >= SHOWN_CHARACTERS:
        return True
    parts = {value, *_BETWEEN.split(value)}
    return any(erasures.until(user) > -np.inf for part in parts for user in _as_ids(part))


def _as_ids(text: str) -> list[str]:
    """The text, and the ID that it is after `clean_id`."""
    try:
        return [text, clean_id(text)]
    except IdError:
        return [text]


def without_erased_profiles(profiles: pa.Table, erasures: Erasures) -> pa.Table:
    """The rows of users who were never erased. Attributes have no time, so they are never newer than an erasure."""
    if not erasures.at:
        return profiles
    kept = [erasures.until(user) == -np.inf for user in profiles["user_id"].to_pylist()]
    return profiles.filter(pa.array(kept, pa.bool_()))


def remove_erased(directory: Path, erasures: Erasures) -> None:
    """Remove erased users from the quarantine, the summary and the users' attributes of the last import."""
    _remove_profiles(directory / PROFILES_FILE, erasures)
    path, summary = directory / QUARANTINE_FILE, directory / SUMMARY_FILE
    if not path.is_file():
        return
    before = pq.read_table(path)
    after = without_erased_values(before, erasures)
    if after.equals(before):
        return
    with atomic_path(path) as temporary:
        pq.write_table(after, temporary, compression="zstd")
    if summary.is_file():
        content = json.loads(summary.read_text("utf-8"))
        rows = zip(before.to_pylist(), after["value"].to_pylist(), strict=True)
        # An example begins with the file and the row that it describes.
        gone = {f"{row['file']}, row {row['row']}" for row, value in rows if row["value"] != value}
        content["examples"] = [e for e in content["examples"] if not _is_about(e, gone)]
        write_json(summary, content)


def _is_about(example: str, rows: set[str]) -> bool:
    start = re.match(r"(.*?, row \d+)[,:]", example)
    return start is not None and start[1] in rows


def _remove_profiles(path: Path, erasures: Erasures) -> None:
    if not path.is_file():
        return
    before = pq.read_table(path)
    after = without_erased_profiles(before, erasures)
    if len(after) < len(before):
        with atomic_path(path) as temporary:
            pq.write_table(after, temporary, compression="zstd")


class UserAttributes:
    """The attributes of users as of a time that only moves forward.

    of: the users to read; None for all.
    """

    def __init__(self, files: LogFiles, of: Container[str] | None = None) -> None:
        self._of = of
        self.state = dict(_imported_attributes(files.directory / PROFILES_FILE, of))
        """Attributes by user, as of the last time. One that was cleared is None."""
        self._writes = _writes(files, of)
        self._next = next(self._writes, None)

    def at(self, user_id: str, at: float) -> dict[str, Scalar]:
        """The attributes of a user strictly before a time, Unix seconds, which is not before that of the last call."""
        self.advance(at)
        return self.state.get(user_id, {})

    def advance(self, at: float) -> None:
        """Apply the writes strictly before a time."""
        while self._next is not None and self._next[0] / 1e6 < at:
            _, user_id, written = self._next
            self.state[user_id] = self.state.get(user_id, {}) | written
            self._next = next(self._writes, None)


def _imported_attributes(path: Path, of: Container[str] | None) -> Iterator[tuple[str, dict[str, Scalar]]]:
    """The attributes of the last import that have one value: numbers, flags and texts, but no lists and dates."""
    if not path.is_file():
        return
    for batch in pq.ParquetFile(path).iter_batches():
        for row in batch.to_pylist():
            user_id = row.pop("user_id")
            if of is None or user_id in of:
                yield user_id, {n: v for n, v in row.items() if isinstance(v, bool | int | float | str)}


def _writes(files: LogFiles, of: Container[str] | None) -> Iterator[tuple[int, str, dict[str, Scalar]]]:
    """(Unix microseconds, user, attributes) of the writes through the service, in time order."""
    for table in files.attributes.spans(("user_id", "at", "attributes")):
        rows = without_erased(table, files.erased, ATTRIBUTES_FORM.moment)
        at = to_microseconds(rows["at"])
        users, texts = rows["user_id"].to_pylist(), rows["attributes"].to_pylist()
        for k in np.argsort(at, kind="stable").tolist():
            if of is None or users[k] in of:
                yield int(at[k]), users[k], dict(_ATTRIBUTES.decode(texts[k]))
