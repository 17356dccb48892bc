"""Exports as Parquet: a typed column works wherever the text of a CSV cell works, in every preset."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from offline.config import ImportConfig
from offline.ingest.importer import DataError, import_data, validate
from offline.ingest.reading.library import literal, quoted
from offline.ingest.suggestion import suggest
from tests.offline.ingest.exports import NOW, Imported, import_export
from tests.offline.ingest.test_presets import SHOPIFY
from tests.offline.ingest.test_presets_services import EXPORTS
from tests.offline.ingest.test_presets_shops import VARIANTS
from tests.offline.ingest.test_suggestion import parse

READERS = {".csv": "read_csv({}, header=true)", ".jsonl": "read_json_auto({})"}
Files = Mapping[str, str | bytes]
_ALL: Mapping[str, Files] = {
    **{name: export.files for name, export in EXPORTS.items()},
    **{f"two lines of {name}": files for name, files in VARIANTS.items()},
    "Shopify": SHOPIFY,
}
TABLES = {name: files for name, files in _ALL.items() if any(Path(file).suffix in READERS for file in files)}
"""Exports with a table, by what their own test says of them."""


def with_types(files: Files, folder: Path, whole: str) -> tuple[Files, set[str]]:
    """The tables as Parquet, with the types that DuckDB finds. Returns them and the types. whole: type of integers."""
    out: dict[str, str | bytes] = {}
    types: set[str] = set()
    folder.mkdir()
    with duckdb.connect() as sql:
        for name, content in files.items():
            source = folder / name
            source.write_bytes(content if isinstance(content, bytes) else content.encode())
            if source.suffix not in READERS:
                out[name] = content
                continue
            read = READERS[source.suffix].format(literal(str(source)))
            found = {row[0]: row[1] for row in sql.execute(f"DESCRIBE SELECT * FROM {read}").fetchall()}
            types |= set(found.values()) - {"VARCHAR"}
            cells = ", ".join(
                f"{quoted(n)}{f'::{whole} AS {quoted(n)}' if k == 'BIGINT' else ''}" for n, k in found.items()
            )
            sql.execute(f"COPY (SELECT {cells} FROM {read}) TO {literal(str(folder / 'out'))} (FORMAT parquet)")
            out[source.with_suffix(".parquet").name] = (folder / "out").read_bytes()
    return out, types


def content(got: Imported) -> tuple[object, ...]:
    """What is compared: all but generated IDs, which come from the texts of cells. Lists have their order as name."""
    lists = {r: number for number, r in enumerate(dict.fromkeys(row["request_id"] for row in got.rows)) if r}
    rows = [{**row, "event_id": None, "request_id": lists.get(row["request_id"])} for row in got.rows]
    return got.preset, rows, got.items, got.users, got.quarantined, got.left_out


@pytest.mark.slow
@pytest.mark.parametrize("whole", ["BIGINT", "DOUBLE"])
@pytest.mark.parametrize("name", TABLES)
def test_an_export_as_parquet_with_types_gives_what_its_texts_give(tmp_path: Path, name: str, whole: str) -> None:
    """Numbers, days, moments and truth values; and whole numbers as floats, as pandas has them if a cell is empty."""
    files = TABLES[name]
    typed, types = with_types(files, tmp_path / "typed", whole)
    if not types:
        pytest.skip("no table of this export has a column of another type than text")
    for folder in ("texts", "parquet"):
        (tmp_path / folder).mkdir()
    assert content(import_export(tmp_path / "parquet", typed)) == content(import_export(tmp_path / "texts", files))


def test_a_suggested_condition_also_fits_typed_columns(tmp_path: Path) -> None:
    """`cancelled` is a truth value and `status` a text: two of the four orders are left out, as they are of CSV."""
    orders = (
        "order_id,customer_id,sku,order_date,status,cancelled,quantity\n1,7,900,2026-01-01,paid,false,1\n"
        "2,7,901,2026-01-02,paid,true,1\n3,8,900,2026-01-03,cancelled,false,2\n4,8,901,2026-01-04,paid,false,1\n"
    )
    typed, types = with_types({"orders.csv": orders}, tmp_path / "typed", "BIGINT")
    assert types == {"BIGINT", "DATE", "BOOLEAN"}
    found = {}
    for name, file in (("texts", {"orders.csv": orders}), ("types", typed)):
        folder = tmp_path / name
        folder.mkdir()
        for called, text in file.items():
            (folder / called).write_bytes(text if isinstance(text, bytes) else text.encode())
        config: ImportConfig = parse(suggest(folder))
        summary = validate(config, NOW)
        found[name] = (summary.events["purchase"], summary.sources[0].left_out, summary.first, summary.last)
    assert found["types"] == found["texts"]
    assert found["types"][:2] == (2, {"row excluded by `where`": 2})


def test_columns_keep_their_types_unless_sql_needs_texts(tmp_path: Path) -> None:
    """In a mapping, numbers are compared as numbers, and as texts with `as_text`."""
    (tmp_path / "typed").mkdir()
    typed, _ = with_types(
        {"log.csv": "user_id,item_id,timestamp,n\nu,a,2026-01-01,9\nu,b,2026-01-02,10\n"}, tmp_path / "of", "BIGINT"
    )
    (tmp_path / "log.parquet").write_bytes(bytes(typed["log.parquet"]))  # type: ignore[arg-type]
    assert str(pq.read_schema(tmp_path / "log.parquet").field("n").type) == "int64"

    def left_out(where: str, **table: object) -> int:
        source = {"from": "log", "where": where, "columns": {"event": {"value": "view"}}}
        mapping = {"folder": tmp_path, "tables": {"log": {"files": "log.parquet", **table}}, "events": [source]}
        summary = validate(ImportConfig.model_validate({**mapping, "unknown_items": "keep"}), NOW)
        return sum(summary.sources[0].left_out.values())

    # As numbers, 10 > 9 alone holds. As texts, '10' and '9' are both at most '9', so both rows are left out.
    assert (left_out("n > 9"), left_out("n > '9'", as_text=True)) == (1, 2)


@pytest.mark.parametrize("whole", ["BIGINT", "DOUBLE"])
def test_a_configured_format_also_reads_numbers(tmp_path: Path, whole: str) -> None:
    """260130 is the 30th of January 2026, not a number of seconds since 1970."""
    log = {"log.csv": "user_id,item_id,event,on\nu,a,view,260130\n"}
    typed, types = with_types(log, tmp_path / "typed", whole)
    assert types == {"BIGINT"}
    (tmp_path / "log.parquet").write_bytes(bytes(typed["log.parquet"]))  # type: ignore[arg-type]
    source = {"from": "log.parquet", "columns": {"timestamp": {"path": "on", "format": "%y%m%d"}}}
    mapping = {"folder": tmp_path, "events": [source], "unknown_items": "keep"}
    assert validate(ImportConfig.model_validate(mapping), NOW).first == "2026-01-30T00:00:00+00:00"


IDS = st.integers(-5, 10**12)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "item": st.one_of(IDS, st.none()),
            "user": IDS,
            "at": st.datetimes(datetime(2000, 1, 1), datetime(2026, 5, 1)),
            "n": st.one_of(st.none(), st.integers(0, 10**6), st.floats(0, 1e6, width=32)),
            "price": st.one_of(st.none(), st.decimals(0, 10**6, places=2)),
            "day": st.one_of(st.none(), st.dates(date(1900, 1, 1), date(2100, 1, 1))),
            "weight": st.one_of(st.none(), st.integers(0, 10**6)),
        }
    ),
    min_size=1,
    max_size=8,
)
SCHEMA = pa.schema(
    [
        *(("item", pa.int64()), ("user", pa.int64()), ("at", pa.timestamp("us")), ("n", pa.float64())),
        *(("price", pa.decimal128(12, 2)), ("day", pa.date32()), ("weight", pa.int32())),
    ]
)
SOURCES = {
    "items": [
        {
            "from": "log",
            "merge": "first",
            "include": ["weight"],
            "columns": {"item_id": "item", "price": "price", "available_from": "day"},
        }
    ],
    "events": [
        {
            "from": "log",
            "columns": {"event": {"value": "purchase"}, "user_id": "user", "item_id": "item"}
            | {"timestamp": "at", "value": "n", "price": "price"},
        }
    ],
}


@pytest.mark.slow
@settings(max_examples=10, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(ROWS)
def test_typed_columns_mean_what_their_texts_mean(rows: list[dict[str, Any]]) -> None:
    """Integers, floats, decimals, moments and days; and the same with `as_text`."""
    found = []
    for name, as_text in (("log.csv", False), ("log.parquet", False), ("log.parquet", True)):
        with TemporaryDirectory() as directory:
            folder = Path(directory)
            typed = pa.Table.from_pylist(rows, SCHEMA)
            pq.write_table(typed, folder / "log.parquet")
            with (folder / "log.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, SCHEMA.names)
                writer.writeheader()
                writer.writerows(typed.to_pylist())
            tables = {"log": {"files": name, "as_text": as_text}}
            config = ImportConfig.model_validate({"folder": folder, "tables": tables, **SOURCES})
            try:
                summary = import_data(config, folder / "out", NOW)
            except DataError:
                # Every item is missing.
                assert all(row["item"] is None for row in rows)
                continue
            items, events = (pq.read_table(folder / "out" / f"{n}.parquet").to_pylist() for n in ("items", "events"))
            found.append((items, events, [s.quarantined for s in summary.sources]))
    assert all(one == found[0] for one in found)
