"""Bounds of an import: no file takes memory or disk without limit, reads another file, or loses rows unseen."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offline.ingest.importer import DataError, ImportConfig, ImportSummary, validate
from offline.ingest.reading import dialects, feeds, files, workbooks
from tests.offline.ingest.exports import NOW, import_export

MIB = 2**20


def read(folder: Path, name: str, content: bytes, **item: str) -> ImportSummary:
    """Validation of a file of items `p0`, `p1`, ... and of one event of `p1`."""
    (folder / name).write_bytes(content)
    (folder / "log.csv").write_text("event,user_id,item_id,timestamp\nview,u,p1,2026-01-01\n")
    config = {"folder": folder, "items": [{"from": name, "columns": item}], "events": [{"from": "log.csv"}]}
    return validate(ImportConfig.model_validate({**config, "unknown_items": "keep"}), NOW)


def zipped(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "pack"), [("items.csv.gz", gzip.compress), ("items.zip", lambda text: zipped(items_csv=text))]
)
def test_an_archive_unpacks_to_at_most_a_multiple_of_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, pack: Callable[[bytes], bytes]
) -> None:
    """2 MiB of one letter are packed to 2 KB, which count as 1 MiB: with a ratio of 1, that is too much."""
    content = b"item_id,title\np1," + b"x" * (2 * MIB) + b"\n"
    assert read(tmp_path, name, pack(content)).items == 1
    monkeypatch.setattr(files, "MOST_RATIO", 1)
    with pytest.raises(DataError, match=rf"{name}: unpacks to more than 1,048,576 bytes"):
        read(tmp_path, name, pack(content))


def test_an_archive_unpacks_to_at_most_the_maximum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_UNPACKED", 1000)
    with pytest.raises(DataError, match=r"items.zip: unpacks to more than 1,000 bytes"):
        read(tmp_path, "items.zip", zipped(items_csv=b"item_id,title\n" + b"p1,Mug\n" * 1000))


def test_an_archive_has_at_most_the_maximum_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_FILES", 2)
    with pytest.raises(DataError, match=r"items.zip: has 3 files; the maximum is 2"):
        read(tmp_path, "items.zip", zipped(a_csv=b"item_id\n", b_csv=b"item_id\n", c_csv=b"item_id\n"))


def test_a_workbook_unpacks_to_at_most_the_maximum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an archive too. What does not unpack to its own checksum is no workbook."""
    book = zipped(workbook_xml=b"<x/>", sheet1_xml=b" " * (2 * MIB))
    monkeypatch.setattr(workbooks, "MOST_UNPACKED", MIB)
    with pytest.raises(DataError, match=r"items.xlsx: unpacks to more than 1,048,576 bytes. Export its sheets as CSV"):
        read(tmp_path, "items.xlsx", book)
    broken = bytearray(zipped(workbook_xml=bytes(range(256)) * 8))
    broken[60] ^= 1
    with pytest.raises(DataError, match=r"items.xlsx: cannot be read as an Excel workbook"):
        read(tmp_path, "items.xlsx", bytes(broken))


def feed(item: str, declaration: str = "") -> bytes:
    record = "<item><item_id>p1</item_id><title>Mug</title></item>"
    records = f"{record}{record.replace('p1', 'p2')}<item>{item}</item>"
    return f'<?xml version="1.0"?>{declaration}<feed>{records}</feed>'.encode()


def test_entities_of_a_feed_are_not_expanded(tmp_path: Path) -> None:
    """A billion laughs: nine entities of ten entities each would be 10^9 words."""
    laughs = "".join(f"<!ENTITY l{k} '{f'&l{k - 1};' * 10}'>" for k in range(1, 10))
    with pytest.raises(DataError, match=r"feed.xml: is not valid XML"):
        read(
            tmp_path,
            "feed.xml",
            feed("<item_id>p3</item_id><title>&l9;</title>", f"<!DOCTYPE f [<!ENTITY l0 'ha'>{laughs}]>"),
        )


def test_a_feed_reads_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("a secret")
    declaration = (
        f'<!DOCTYPE f SYSTEM "file://{tmp_path}/none.dtd" [<!ENTITY s SYSTEM "file://{tmp_path}/secret.txt">]>'
    )
    (tmp_path / "feed.xml").write_bytes(feed("<item_id>p3</item_id><title>A &s; B</title>", declaration))
    found = list(feeds.records(tmp_path / "feed.xml", ("feed", "item")))
    assert [record["item_id"] for record in found] == ["p1", "p2", "p3"]
    assert "secret" not in json.dumps(found)


def test_a_feed_has_a_depth_and_its_records_a_size(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"feed.xml: is nested more than 40 levels deep"):
        read(tmp_path, "feed.xml", feed("<a>" * 50 + "</a>" * 50))
    with pytest.raises(DataError, match=r"feed.xml: a record has more than 100,000 elements"):
        read(tmp_path, "feed.xml", feed("<a/>" * (feeds.MOST_ELEMENTS + 1)))


@pytest.mark.parametrize("count", [dialects.MOST_COLUMNS + 1, 1_000_000])
def test_a_csv_has_at_most_the_maximum_of_columns(tmp_path: Path, count: int) -> None:
    """Found in the first lines, before a table is made of them."""
    header = "item_id," + ",".join(f"c{k}" for k in range(count - 1))
    with pytest.raises(DataError, match=r"items.csv: has more than 2000 columns"):
        read(tmp_path, "items.csv", f"{header}\np1{',' * (count - 1)}\n".encode())


def test_parquet_and_json_have_at_most_the_maximum_of_columns(tmp_path: Path) -> None:
    """One JSON record with 2,001 keys, or 2,001 records with one key each besides the ID."""
    names = [f"c{k}" for k in range(2001)]
    pq.write_table(pa.table({"item_id": ["p1"], **{name: [1] for name in names}}), tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"items.parquet: has 2002 columns; the maximum is 2000"):
        read(tmp_path, "items.parquet", (tmp_path / "items.parquet").read_bytes())
    with pytest.raises(DataError, match=r"items.jsonl: a record has 2002 keys; the maximum is 2000"):
        read(tmp_path, "items.jsonl", json.dumps({"item_id": "p1", **dict.fromkeys(names, 1)}).encode())
    many = "".join(json.dumps({"item_id": name, name: 1}) + "\n" for name in names)
    with pytest.raises(DataError, match=r"items.jsonl: has 2002 different keys; the maximum is 2000"):
        read(tmp_path, "items.jsonl", many.encode())


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("items.csv", ["item_id,title", "p0,{}", "p1,Mug"]),
        ("items.jsonl", ['{{"item_id": "p0", "title": "{}"}}', '{{"item_id": "p1", "title": "Mug"}}']),
    ],
)
def test_a_line_of_more_than_16_mib_is_refused_and_counted_and_the_others_are_read(
    tmp_path: Path, name: str, lines: list[str]
) -> None:
    summary = read(tmp_path, name, "\n".join(line.format("x" * (17 * MIB)) for line in lines).encode())
    (items, _) = summary.sources
    assert (items.read, items.accepted, items.quarantined) == (2, 1, {"line_too_long": 1})


def test_a_cell_longer_than_pythons_own_bound_costs_the_cell(tmp_path: Path) -> None:
    """200,000 characters in the second row, where the columns are looked for. A title has at most 100,000."""
    content = "item_id,title\np0," + "x" * 200_000 + "\np1,Mug\n"
    (items, _) = read(tmp_path, "items.csv", content.encode()).sources
    assert (items.accepted, [note[:42] for note in items.notes]) == (2, ["title: 1 cells cannot be read and count as"])


def test_deeply_nested_json_costs_at_most_its_line(tmp_path: Path) -> None:
    deep = '{"item_id": "p0", "a": ' + "[" * 100_000 + "]" * 100_000 + "}\n"
    (items, _) = read(tmp_path, "items.jsonl", (deep + '{"item_id": "p1"}\n').encode()).sources
    assert items.read == 2
    assert items.accepted >= 1


def test_a_group_is_an_id_and_an_invalid_one_counts_as_missing(tmp_path: Path) -> None:
    """Of p1 it is read without white space, of p2 it is too long, and of p3 it is a word for a missing one."""
    events = "event,user_id,item_id,timestamp\nview,u1,p1,2026-01-30T10:00:00Z\n"
    rows = f"item_id,group_id\np1, mug \np2,{'x' * 257}\np3,undefined\np4,\n"
    got = import_export(tmp_path, {"items.csv": rows, "events.csv": events})
    assert {i: row["group_id"] for i, row in got.items.items()} == {"p1": "mug", "p2": None, "p3": None, "p4": None}
    (note,) = [note for source in got.summary.sources for note in source.notes]
    assert note.startswith("group_id: 1 cells cannot be read and count as missing, such as 'xxx")
