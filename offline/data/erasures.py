"""Erased users: their tombstones, and the removal of their rows from tables.

A tombstone stands for a user ID, which itself must be deleted (see `serving.store.erasure`), and has the time of the
erasure. Events up to that time are excluded from every nightly run. Later events are kept: the user came back.

    <data>/erasures.parquet    tombstones
    <data>/erasures.key        secrets of the tombstones, one per line; readable for its owner only
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from offline.runtime import DataError, atomic_path
from serving.store import BulkStore, Merge, new_secret, tombstone, user_hash

FILE = "erasures.parquet"
SECRETS_FILE = "erasures.key"
SCHEMA = pa.schema([("user", pa.string()), ("at", pa.float64())])

USER_COLUMNS = ("user_id", "from_id")
"""Columns of the log that have a user ID."""
_TOMBSTONE_DIGITS = 40


@dataclass(frozen=True)
class Erasures:
    """The erased users. at: Unix seconds of the last erasure by tombstone.

    secrets: those that the tombstones were made with. There are several if Redis was emptied, since the service then
    makes a new one. Earlier versions wrote `user_hash` in place of a tombstone, which `until` also finds.
    """

    at: Mapping[str, float]
    secrets: tuple[str, ...] = ()

    def until(self, user_id: str) -> float:
        """Unix seconds of the last erasure of a user; -inf if the user was never erased."""
        if not self.at:
            return -np.inf
        of_user = user_hash(user_id)
        names = (of_user, *(tombstone(secret, of_user) for secret in self.secrets))
        return max(self.at.get(name, -np.inf) for name in names)

    def merged(self, newer: Erasures) -> Erasures:
        """These erasures and newer ones. With a secret, every `user_hash` becomes a tombstone."""
        secrets = tuple(dict.fromkeys([*self.secrets, *newer.secrets]))
        at: dict[str, float] = {}
        for name, when in [*self.at.items(), *newer.at.items()]:
            if len(name) < _TOMBSTONE_DIGITS and secrets:
                name = tombstone(secrets[0], name)
            at[name] = max(when, at.get(name, when))
        return Erasures(at, secrets)


NOBODY = Erasures({})


def erased_by_merges(erasures: Erasures, merges: Iterable[Merge]) -> dict[str, float]:
    """Users whose events were merged into erased users: Unix seconds, by ID, up to which theirs are erased as well.

    An ID that was merged into several users is erased up to the merge into the erased one.
    """
    out: dict[str, float] = {}
    # The latest first: an erased user may have been merged into another one after others were merged into it.
    for merge in sorted(merges, key=lambda m: m.at, reverse=True) if erasures.at else ():
        until = max(erasures.until(merge.user_id), out.get(merge.user_id, -np.inf))
        if until > -np.inf:
            out[merge.from_id] = max(out.get(merge.from_id, -np.inf), min(until, merge.at))
    return out


def read_erasures(directory: Path) -> Erasures:
    """The erasures recorded in a data set; empty without a file. Raises the errors of `read_file`."""
    path = directory / FILE
    return read_file(path) if path.is_file() else Erasures({}, _read_secrets(path))


def waiting_erasures(store: BulkStore, secrets: tuple[str, ...]) -> tuple[str, Erasures]:
    """The erasures that `collect` has not recorded yet: (ID of the last entry, erasures). secrets: known ones, of which
    Redis gets one if it has none."""
    secret = store.erasure_secret(secrets[0] if secrets else new_secret())
    last, entries = store.erased()
    return last, Erasures(dict(entries), (secret,))


def read_file(path: Path) -> Erasures:
    """The erasures in a file, with the secrets in the file beside it.

    Raises DataError if they cannot be read, or if the secrets are missing.
    """
    try:
        table = pq.read_table(path, schema=SCHEMA)
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{path}: cannot be read ({' '.join(str(e).split())[:200]}); restore it from a backup") from e
    out = Erasures(dict(zip(table["user"].to_pylist(), table["at"].to_pylist(), strict=True)), _read_secrets(path))
    if not out.secrets and any(len(name) == _TOMBSTONE_DIGITS for name in out.at):
        secrets = path.with_name(SECRETS_FILE)
        raise DataError(f"{secrets}: missing, so that the users erased in {path} are not known; restore it")
    return out


def _read_secrets(path: Path) -> tuple[str, ...]:
    secrets = path.with_name(SECRETS_FILE)
    return tuple(secrets.read_text("utf-8").split()) if secrets.is_file() else ()


def write_erasures(directory: Path, erasures: Erasures) -> None:
    """Write both files of a data set; the secrets first, since tombstones are of no use without them."""
    with atomic_path(directory / SECRETS_FILE) as temporary:
        temporary.touch(mode=0o600)
        temporary.chmod(0o600)
        temporary.write_text("".join(f"{secret}\n" for secret in erasures.secrets), "utf-8")
    with atomic_path(directory / FILE) as temporary:
        users = sorted(erasures.at)
        pq.write_table(pa.table({"user": users, "at": [erasures.at[u] for u in users]}, SCHEMA), temporary)


def without_erased(rows: pa.Table, erasures: Erasures, time_column: str) -> pa.Table:
    """The rows that remain after the erasures. time_column: the column with the time of a row.

    A row is of the user in the column `user_id`, and of the one in `from_id` as well if there is one.
    """
    for column in USER_COLUMNS:
        if column in rows.column_names:
            rows = _without_erased(rows, erasures, time_column, column)
    return rows


def _without_erased(rows: pa.Table, erasures: Erasures, time_column: str, user_column: str) -> pa.Table:
    if not erasures.at or not len(rows):
        return rows
    users = rows[user_column].cast(pa.string()).combine_chunks().dictionary_encode()
    until = [-np.inf if u is None else erasures.until(u) for u in users.dictionary.to_pylist()]
    bound = np.array([*until, -np.inf])[pc.fill_null(users.indices, len(until)).to_numpy(zero_copy_only=False)]
    if not np.isfinite(bound).any():
        return rows
    at = rows[time_column].cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.int64()).to_numpy() / 1e6
    return rows.filter(pa.array(at > bound))
