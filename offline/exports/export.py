"""Export of ranked lists, or of an audience, to files on any file system, in parts that can be resumed.

A part has the users of one file. Its bytes depend only on the release, the time, the settings and the data set, which
`export.json` records when the export begins, so parts may be made in any order, on any machine, and again.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.parquet as pq

from features.columns import NOTHING, table, with_placement
from features.context import NO_CONTEXT, Context
from features.history import EMPTY
from features.table import features
from offline.data import Storage
from offline.exports.state import Shoppers
from offline.runtime import LOCAL, DataError, Engine, Failure, OnProgress, no_progress
from serving.merchandising import Document, MerchandisingRule, compile_document
from serving.ranking import NO_PLACEMENT, Live, Placement, Ranking
from serving.rules import Condition, Plan, RuleError, Rules, VariantPlan, Variants

USERS_PER_FILE = 1000
NO_RULES = Rules()
NO_VARIANTS = Variants()
SUMMARY = "export.json"
SCHEMA = pa.schema(
    [("user_id", pa.string()), ("position", pa.int32()), ("item_id", pa.string()), ("score", pa.float64())]
)
"""Columns of an export. position: from 0. score: of the ranker, with the effects of rules."""
Format = Literal["parquet", "csv"]


class Destination(NamedTuple):
    """The place to write to, and the format. restart: delete what an earlier export has left there."""

    storage: Storage
    format: Format = "parquet"
    restart: bool = False


class Audience(NamedTuple):
    """The users to find: those with an item that matches the condition at a position below `within` of their list."""

    condition: Condition
    within: int


@dataclass(frozen=True)
class Export:
    """The lists to make: the candidates, the users and the time.

    live, shoppers: from `live_at`. at: Unix seconds. limit: items per list. size: number of candidates to retrieve.
    rules: added to the configuration's `standing` rules and those of the placement; None for none. merchandising: the
    rules of merchandisers that apply to the lists at this time, in their order. users_per_file: at least 1. variants:
    those of the configuration, which the placement may change.
    """

    live: Live
    shoppers: Shoppers
    at: float
    limit: int
    size: int
    standing: Rules = NO_RULES
    placement: Placement = NO_PLACEMENT
    rules: Rules | None = None
    audience: Audience | None = None
    merchandising: tuple[MerchandisingRule, ...] = ()
    users_per_file: int = USERS_PER_FILE
    variants: Variants = NO_VARIANTS

    @property
    def parts(self) -> list[range]:
        """The numbers of the users of each file."""
        count, step = len(self.shoppers.user_ids), self.users_per_file
        return [range(first, min(first + step, count)) for first in range(0, count, step)]

    def settings(self, form: Format) -> dict[str, Any]:
        """All that the bytes of the files depend on, but for the time."""
        users = sha256()
        for user_id in self.shoppers.user_ids:
            users.update(user_id.encode() + b"\n")
        return {
            "release": self.live.release.id,
            "format": form,
            "limit": self.limit,
            "candidates": self.size,
            "placement": [self.placement.name, self.placement.config.model_dump(mode="json")],
            "rules": msgspec.to_builtins([self.standing, self.rules]),
            "variants": msgspec.to_builtins(self.variants),
            "audience": msgspec.to_builtins(self.audience),
            "users": len(self.shoppers.user_ids),
            "users_sha256": users.hexdigest(),
            "users_per_file": self.users_per_file,
            "events": self.shoppers.events,
            "written_items": len(self.live.overlay.written),
            **({"merchandising": msgspec.to_builtins(list(self.merchandising))} if self.merchandising else {}),
        }


class Exported(NamedTuple):
    """A finished export. users: of whom `new` have no history. rows, files: written in all. reused: files that an
    interrupted export had written."""

    users: int
    new: int
    rows: int
    files: int
    reused: int


def started_at(storage: Storage) -> float | None:
    """The time of an unfinished export, Unix seconds; None if there is none. Raises DataError if `export.json` cannot
    be read."""
    found = _read_summary(storage)
    return None if found is None or found["complete"] else float(found["at"])


def started_merchandising(storage: Storage) -> tuple[MerchandisingRule, ...]:
    """The rules of merchandisers that an unfinished export began with. Raises DataError as `started_at`."""
    found = _read_summary(storage)
    rules = None if found is None else found["settings"].get("merchandising")
    return () if rules is None else msgspec.convert(rules, tuple[MerchandisingRule, ...])


def merchandising_of(
    rules: Sequence[MerchandisingRule], placement: str | None, at: float
) -> tuple[MerchandisingRule, ...]:
    """Those of the rules of merchandisers that apply to the lists of a placement at this time (Unix seconds)."""
    return tuple(r for r in rules if r.placement in (None, placement) and r.applies(at))


def write_export(
    export: Export, to: Destination, engine: Engine = LOCAL, on_progress: OnProgress = no_progress
) -> Exported:
    """Write the files, or those that are missing of an unfinished export with the same settings and time.

    on_progress: called with the number of users done and of all. Raises Failure if the destination has another export,
    and for rules or a condition that the catalogue does not support.
    """
    _plans(export, replace(export.live))
    summary = _begin(export, to)
    names = [f"part-{number:05d}.{to.format}" for number in range(len(export.parts))]
    missing = [number for number, name in enumerate(names) if not to.storage.exists(name)]
    total = len(export.shoppers.user_ids)
    done = total - sum(len(export.parts[number]) for number in missing)
    reused = [name for number, name in enumerate(names) if number not in missing]
    rows = sum(_count_rows(to, name) for name in reused)
    on_progress(done, total)
    # Compiled rules and features have functions that do not reach another process, so each part makes them again.
    job = replace(export, live=replace(export.live, standing=None, placed={}, features=()))
    for number, part in zip(missing, engine.map(_rank_part, job, [export.parts[n] for n in missing]), strict=True):
        to.storage.write(names[number], _to_bytes(part, to.format))
        rows += len(part)
        done += len(export.parts[number])
        on_progress(done, total)
    _write_summary(to.storage, summary | {"complete": True, "rows": rows})
    new = int((export.shoppers.row < 0).sum())
    return Exported(total, new, rows, len(names), len(reused))


def _begin(export: Export, to: Destination) -> dict[str, Any]:
    """The summary of the export, written before its first file. Raises Failure if the destination has another one."""
    settings = export.settings(to.format)
    summary = {"at": export.at, "complete": False, "settings": settings}
    where = to.storage.root
    if to.restart:
        for name in [n for n in to.storage.entries("") if n.startswith("part-")]:
            to.storage.remove(name)
    elif (found := _read_summary(to.storage)) is not None:
        if found["complete"]:
            raise Failure(f"{where}: has a finished export; write to another folder, or replace it with --restart")
        before = {**found["settings"], "at": found["at"]}
        changed = [n for n, value in {**settings, "at": export.at}.items() if before.get(n) != value]
        if changed:
            raise Failure(
                f"{where}: has an unfinished export with another {' and '.join(changed)}; repeat its command to finish "
                "it, write to another folder, or replace it with --restart"
            )
    elif to.storage.entries(""):
        raise Failure(f"{where}: is not empty; write to a folder of its own")
    _write_summary(to.storage, summary)
    return summary


def _read_summary(storage: Storage) -> dict[str, Any] | None:
    content = storage.read(SUMMARY)
    try:
        return None if content is None else msgspec.json.decode(content, type=dict[str, Any])
    except msgspec.MsgspecError as e:
        raise DataError(f"{storage.path(SUMMARY)}: cannot be read ({e}); replace the export with --restart") from e


def _write_summary(storage: Storage, summary: dict[str, Any]) -> None:
    storage.write(SUMMARY, msgspec.json.format(msgspec.json.encode(summary)) + b"\n")


class _Plans(NamedTuple):
    """Compiled rules. matching: admits the items of the audience. narrowed: the rules, with only these items."""

    rules: Plan | None
    matching: Plan | None = None
    narrowed: Plan | None = None


def _plans(export: Export, live: Live) -> _Plans:
    """The compiled rules of an export. Raises Failure, naming the rule, for what the catalogue does not support.

    live: a copy of that of the export, which keeps the rules of the configuration.
    """
    name, config = export.placement.name, export.placement.config
    try:
        live.compile_rules(export.standing, {} if name is None else {name: config})
        if export.merchandising:
            document = Document(0, list(export.merchandising))
            live.merchandising = compile_document(document, live.attributes, () if name is None else (name,))
        rules = live.plan(export.rules, name, at=export.at)
        if export.audience is None:
            return _Plans(rules)
        matching = Plan.of(Rules(filter=export.audience.condition), live.attributes, "audience")
    except RuleError as e:
        raise Failure(f"{e.path.replace('audience.filter', 'condition')}: {e}") from e
    assert matching is not None
    return _Plans(rules, matching, matching if rules is None else rules.then(matching))


def _rank_part(export: Export, part: range) -> Iterator[pa.Table]:
    """The rows of the users with these numbers, as one table."""
    live = replace(export.live, features=features(export.live.items))
    plans, columns = _plans(export, live), live.items.columns
    sent = with_placement(columns, {}, export.placement.name)
    rows: list[tuple[str, int, str, float]] = []
    for number in part:
        user_id = export.shoppers.user_ids[number]
        history = export.shoppers.history(number, export.at)
        context = NO_CONTEXT
        if columns:
            user = export.shoppers.attributes.get(user_id, NOTHING)
            context = Context(columns=table(columns, sent, user, strict=False))
        limit = export.limit if export.audience is None else export.audience.within
        settings = export.placement.variants_of(None, export.variants)
        variants = VariantPlan.of(live.items.catalogue, settings, "one", history, export.at)
        ranking = live.recommend(
            history,
            export.at,
            limit,
            export.size,
            plans.rules,
            context,
            narrowed=plans.narrowed,
            shares=export.placement.shares,
            variants=variants,
            placement=export.placement.name,
        )
        positions = range(len(ranking.item_ids))
        if plans.matching is not None:
            positions = _first_matching(ranking, plans.matching, export.at)
        rows.extend((user_id, k, ranking.item_ids[k], float(ranking.score[k])) for k in positions)
    yield pa.table([pa.array(column, f.type) for column, f in zip(_transposed(rows), SCHEMA, strict=True)], SCHEMA)


def _first_matching(ranking: Ranking, matching: Plan, at: float) -> range:
    """The position of the first matching item, if there is one."""
    found = np.flatnonzero(matching.admits(ranking.item, EMPTY, at))[:1].tolist()
    return range(found[0], found[0] + 1) if found else range(0)


def _transposed(rows: list[tuple[str, int, str, float]]) -> Sequence[Sequence[Any]]:
    return list(zip(*rows, strict=True)) if rows else [()] * len(SCHEMA)


def _to_bytes(part: pa.Table, form: Format) -> bytes:
    out = io.BytesIO()
    if form == "csv":
        pv.write_csv(part, out)
    else:
        pq.write_table(part, out, compression="zstd")
    return out.getvalue()


def _count_rows(to: Destination, name: str) -> int:
    """Number of rows of a file."""
    if to.format == "parquet":
        with to.storage.parquet(name) as file:
            return int(file.metadata.num_rows)
    content = to.storage.read(name) or b""
    return len(pv.read_csv(io.BytesIO(content), convert_options=pv.ConvertOptions(column_types=SCHEMA)))
