"""Events: reads the values of each event source into the table `shop.events`, and refuses rows that cannot be used.

A row needs a user, an item, a moment and an event kind. Any other cell that cannot be read is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime

from features.bounds import ATTRIBUTE_NAME, CONTROL, EVENT_MOMENTS, MAX_POSITION
from features.catalogue import TEXT_COLUMNS
from features.context import DEVICE_CHARACTERS, QUERY_CHARACTERS
from features.log import GA4, KINDS, Kind
from offline.config import DROP, EVENT_COLUMNS, Column, EventSource, ImportConfig
from offline.ingest.account import Account, TableAccount, named
from offline.ingest.cells import Currencies, Reader, add_request_columns, columns_sql, request_columns
from offline.ingest.mapping import compile_source
from offline.ingest.reading import Library
from offline.ingest.reading.library import literal, quoted

_ORDER = "order_column"
_MOST_KINDS = 10_000
_WRITTEN = (
    *("kind", "user_id", "item_id", "timestamp", "request_id", "session_id", "event_id", "device", "query", "position"),
    *("value", "clicked", *TEXT_COLUMNS, "price", "columns", "placement", "experiments", "team"),
)
_ARM = "%"
"""Before the name of an experiment among the values of a source, whose other names are those of events."""
_ARM_NAME = "[A-Za-z0-9_.-]{1,64}"
DAY_US = 86400 * 10**6


def midnight_us(day: date) -> int:
    """Beginning of a day, in microseconds since 1970 UTC."""
    return round(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1e6)


def read_events(library: Library, account: Account, config: ImportConfig, latest_us: int) -> None:
    """Create the table `shop.events` from all event sources. latest_us: events after it are refused.

    Columns: source (number of the event source), file, row, seq (order of all rows), kind, user_id, item_id, timestamp
    (Unix us), request_id, session_id, event_id, device, query, position, value, clicked, item texts, price, columns (of
    the request of an impression, JSON), placement, experiments (arm of an impression by experiment, a map, null for
    none), team.
    """
    for number, source in enumerate(config.events):
        _read_source(library, account, config, number, source, latest_us)


def _check_required(library: Library, source: EventSource) -> None:
    table = library.tables[source.table]
    if table.form == "json":
        return
    moment = [] if source.order_column else ["timestamp"]
    for name in ("user_id", "item_id", *moment, "event"):
        if source.columns.get(name) is None and name not in table.columns:
            raise table.unmapped(name)


def _read_source(
    library: Library, account: Account, config: ImportConfig, number: int, source: EventSource, latest_us: int
) -> None:
    _check_required(library, source)
    order = {_ORDER: Column(path=source.order_column)} if source.order_column else {}
    canonical = [c for c in EVENT_COLUMNS if c != "timestamp" or not source.order_column]
    sent = request_columns(library, source)
    arms = {_ARM + name: column for name, column in source.experiments.items()}
    team = {"team": source.team} if source.team is not None else {}
    mapped = compile_source(library, source, canonical, order | sent | arms | team)
    reader = Reader(library, mapped, f"_events_{number}", config.timezone, Currencies.of(config))
    reader.prepare(list(sent))
    counts = account.take(source.table, reader.relation, source.where is not None)
    problem = _add_columns(reader, config, source, latest_us)
    types = add_request_columns(reader, list(sent))
    library.sql.execute(f"CREATE OR REPLACE TEMP TABLE _checked AS {reader.query(problem)}")
    counts.said += [*reader.said, *reader.count_lost("_checked")]
    columns = columns_sql(library, "_checked", types, counts.said)
    _take(library, account, counts, reader, source, number, {"columns": columns, "experiments": _arms_sql(source)})
    reader.drop()


def _add_columns(reader: Reader, config: ImportConfig, source: EventSource, latest_us: int) -> str:
    """Take all columns of `shop.events`; returns the expression of a refused row's [reason, column], else null."""
    reader.add("kind", _kinds(reader, source))
    problems = [
        (f"NOT {_has(reader, 'event')}", "'missing_event'", "event"),
        ("kind = -1", "'unknown_event'", "event"),
        ("kind = -2", literal(DROP), "event"),
    ]
    for name in ("user_id", "item_id"):
        reader.add(name, reader.id(name))
        problems += [
            (f"{name} IS NULL", f"'missing_{name.removesuffix('_id')}'", name),
            (f"{reader.id_problem(name)} IS NOT NULL", reader.id_problem(name), name),
        ]
    for name in ("request_id", "session_id"):
        reader.add(name, reader.id(name), f"{reader.id_problem(name)} IS NULL")
    event_id = reader.id("event_id")
    if source.explode and reader.has("event_id"):
        # One message about several items: its ID and the item's place name each event.
        event_id = f"CASE WHEN _index IS NULL THEN {event_id} ELSE {event_id} || ':' || _index END"
    reader.add("event_id", event_id, f"{reader.id_problem('event_id')} IS NULL")
    limits = {"device": DEVICE_CHARACTERS, "query": QUERY_CHARACTERS, "placement": ATTRIBUTE_NAME}
    for name, most in limits.items():
        control = f"regexp_matches({name}, '{CONTROL}')"
        reader.add(name, reader.text(name), f"length({name}) <= {most} AND NOT {control}")
    if source.order_column:
        reader.add("timestamp", "CAST(0 AS BIGINT)")
        reader.add(_ORDER, reader.number(_ORDER))
        problems.append((f"{_ORDER} IS NULL", "'bad_order'", _ORDER))
    else:
        reader.add("timestamp", reader.moment("timestamp"))
        earliest_us = max(midnight_us(config.earliest), EVENT_MOMENTS[0] * 10**6)
        problems += [
            (f"NOT {_has(reader, 'timestamp')}", "'missing_timestamp'", "timestamp"),
            ("timestamp IS NULL", "'bad_timestamp'", "timestamp"),
            (f"timestamp < {earliest_us}", "'timestamp_too_old'", "timestamp"),
            (f"timestamp > {latest_us}", "'future_event'", "timestamp"),
        ]
    start = reader.column("position").start if reader.has("position") else 0
    whole = f"position BETWEEN 0 AND {MAX_POSITION} AND position = trunc(position)"
    reader.add("position", f"{reader.number('position')} - {start}", whole)
    reader.add_number("value")
    problems.append((f"value < 0 AND isfinite(value) AND kind <> {int(Kind.RATING)}", "'negative_value'", "value"))
    reader.add("clicked", reader.flag("clicked"))
    for name in (*(_ARM + experiment for experiment in source.experiments), "team"):
        reader.add(name, reader.text(name), f"regexp_full_match({quoted(name)}, {literal(_ARM_NAME)})")
    for name in TEXT_COLUMNS:
        reader.add_prose(name)
    reader.add_number("price", least=0)
    return f"CASE {' '.join(f'WHEN {bad} THEN [{reason}, {literal(n)}]' for bad, reason, n in problems)} END"


def _arms_sql(source: EventSource) -> str:
    """Expression of the arm of an impression by experiment, of those that it is in; null for none."""
    kind = "MAP(VARCHAR, VARCHAR)"
    if not source.experiments:
        return f"CAST(NULL AS {kind})"
    names = sorted(source.experiments)
    pairs = ", ".join(f"{{'key': {literal(name)}, 'value': {quoted(_ARM + name)}}}" for name in names)
    known = " OR ".join(f"{quoted(_ARM + name)} IS NOT NULL" for name in names)
    of = f"map_from_entries(list_filter([{pairs}], lambda pair: pair.value IS NOT NULL))"
    return f"CASE WHEN kind = {int(Kind.IMPRESSION)} AND ({known}) THEN CAST({of} AS {kind}) END"


def _has(reader: Reader, name: str) -> str:
    return quoted(f"has {name}") if reader.has(name) else "false"


def _kinds(reader: Reader, source: EventSource) -> str:
    """Expression of a row's `Kind`: -1 if its name is unknown, -2 if it is dropped."""
    if not reader.has("event"):
        return "CAST(NULL AS TINYINT)"
    raw = reader.text("event")
    words = [
        row[0]
        for row in reader.library.rows(f"SELECT DISTINCT {raw} FROM {quoted(reader.relation)} LIMIT {_MOST_KINDS}")
    ]
    values = source.columns["event"].values if source.columns.get("event") else {}  # type: ignore[union-attr]
    values = {name.lower(): kind for name, kind in values.items()} | dict(values)
    codes = {word: _kind(word, values) for word in words if word is not None}
    cases = " ".join(f"WHEN {literal(word)} THEN {code}" for word, code in codes.items() if code != -1)
    return f"CAST(CASE {raw} {cases} ELSE -1 END AS TINYINT)" if cases else "CAST(-1 AS TINYINT)"


def _kind(word: str, values: Mapping[str, str]) -> int:
    low = word.lower()
    kind = values.get(word, values.get(low, GA4.get(low, low)))
    kind = GA4.get(kind, kind)
    return KINDS.index(kind) if kind in KINDS else -2 if kind == DROP else -1


def _take(
    library: Library,
    account: Account,
    counts: TableAccount,
    reader: Reader,
    source: EventSource,
    number: int,
    of_lists: Mapping[str, str],
) -> None:
    """Move the checked rows: those with a problem to the quarantine or the rows left out, others to `events`.

    of_lists: expressions of columns that several values make up: `columns` of the request, and `experiments`.
    """
    shown_names = [n for n in ("event", "user_id", "item_id", "timestamp", "value", _ORDER) if reader.has(n)]
    texts = "".join(f", {reader.text(name)} AS {quoted(name)}" for name in shown_names)
    cases = " ".join(f"WHEN {literal(name)} THEN r.{quoted(name)}" for name in shown_names)
    shown = f"CASE c._problem[2] {cases} END" if cases else "CAST(NULL AS VARCHAR)"
    called = " ".join(
        f"WHEN {literal(name)} THEN {named(called)}" for name, called in reader.mapped.names.items() if called != name
    )
    column = f"CASE c._problem[2] {called} ELSE c._problem[2] END" if called else "c._problem[2]"
    raw = f"SELECT _seq{texts} FROM {quoted(reader.relation)}"
    back = f"JOIN ({raw}) AS r ON r._seq = c._seq"
    if library.rows("SELECT count(*) FROM _checked WHERE _problem IS NOT NULL")[0][0]:
        account.refuse(
            counts,
            f"SELECT c._file, c._row, {column}, {shown}, c._problem[1] AS reason FROM _checked AS c {back}"
            f" WHERE c._problem[1] <> {literal(DROP)} ORDER BY c._seq",
        )
        dropped = library.rows(
            f"SELECT {shown}, count(*) FROM _checked AS c {back} WHERE c._problem[1] = {literal(DROP)} GROUP BY 1"
        )
        counts.left_out.update({f"event {word}": n for word, n in dropped})
    without = ", ".join(str(int(kind)) for kind in (Kind.IMPRESSION, Kind.VIEW, Kind.CLICK))
    changed = {
        "position": "CAST(position AS SMALLINT)",
        "value": f"CASE WHEN kind NOT IN ({without}) THEN value END",
        "team": f"CASE WHEN kind = {int(Kind.IMPRESSION)} THEN team END",
        **of_lists,
    }
    cells = ", ".join(f"{changed.get(name, name)} AS {name}" for name in _WRITTEN)
    accepted = "SELECT * FROM _checked WHERE _problem IS NULL"
    if source.order_column:
        accepted = _times_from_order(midnight_us(source.order_last_day))
        counts.said.append(
            f"no timestamps, only an order ({source.order_column}): timestamps were generated one day apart, the last"
            f" of each user on {source.order_last_day.isoformat()}"
        )
    kept = (
        f"SELECT {number} AS source, _file AS file, _row AS row, _seq + ({number}::BIGINT << 55) AS seq, {cells}"
        f" FROM ({accepted})"
    )
    library.sql.execute(f"INSERT INTO shop.events {kept}" if number else f"CREATE TABLE shop.events AS {kept}")
    library.sql.execute("DROP TABLE _checked")


def _times_from_order(last_us: int) -> str:
    """Query of the rows with timestamps one day apart; equal orders have equal ones, the last of each user is last_us.

    Users are aligned at the end, so that a split by time holds out each user's last event.
    """
    steps = f"dense_rank() OVER (PARTITION BY user_id ORDER BY {_ORDER}) AS step"
    rows = f"SELECT *, {steps} FROM _checked WHERE _problem IS NULL"
    at = f"{last_us} - (max(step) OVER (PARTITION BY user_id) - step) * {DAY_US}"
    return f"SELECT * EXCLUDE (step) REPLACE (CAST({at} AS BIGINT) AS timestamp) FROM ({rows})"
