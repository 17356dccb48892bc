"""No row is lost in silence: unclosed quotes, item IDs that never meet, and words that stand for no shopper."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from offline.ingest import detect, validate
from offline.ingest.importer import DataError, ImportConfig, ImportSummary

NOW = datetime(2026, 6, 1, tzinfo=UTC)
HEADER = "user_id,item_id,event,timestamp,query\n"


def check(folder: Path, items: list[str], events: list[str], **settings: object) -> ImportSummary:
    """Validation of a catalogue of these IDs and of these lines of events."""
    (folder / "items.csv").write_text(
        "item_id,title,sku\n" + "".join(f"{i},Mug {n},s{n}\n" for n, i in enumerate(items))
    )
    (folder / "events.csv").write_text(HEADER + "".join(line + "\n" for line in events))
    return validate(detect(folder)[0].model_copy(update=settings), NOW)


def views(items: list[str]) -> list[str]:
    return [f"u{k},{item},view,2026-01-01T00:{k % 60:02d}:00Z," for k, item in enumerate(items)]


def test_a_quote_that_is_never_closed_is_an_error_that_names_its_row(tmp_path: Path) -> None:
    """It would swallow all rows after it. The header is row 1, so the sixth event is row 7."""
    lines = views(["a"] * 200)
    lines[5] += '"oops'
    with pytest.raises(DataError, match=r"events.csv, row 7: a quote is opened and never closed.*oops"):
        check(tmp_path, ["a"], lines)


def test_rows_between_two_stray_quotes_are_an_error_that_names_the_cell(tmp_path: Path) -> None:
    """Another quote later closes the cell: rows 7 to 157 are one record of 151 lines.

    The first line is the rest of row 7, and the other 150 have the four commas of a row.
    """
    lines = views(["a"] * 200)
    lines[5] += '"oops'
    lines[155] += 'oops"'
    with pytest.raises(
        DataError, match=r"events.csv, row 7, column query: one cell spans 151 lines, of which 150 look"
    ):
        check(tmp_path, ["a"], lines)


def test_a_cell_that_holds_a_table_is_accepted_where_the_quote_is_configured(tmp_path: Path) -> None:
    """25 lines with four commas, as before, in a cell that is right: 40 rows less the 24 that are part of it."""
    lines = views(["a"] * 40)
    lines[5] += '"'
    lines[29] += '"'
    (tmp_path / "events.csv").write_text(HEADER + "".join(line + "\n" for line in lines))

    def read(**table: str) -> ImportSummary:
        tables = {"log": {"files": "events.csv", **table}}
        mapping = {"folder": tmp_path, "tables": tables, "events": [{"from": "log"}], "unknown_items": "keep"}
        return validate(ImportConfig.model_validate(mapping), NOW)

    with pytest.raises(DataError, match="of which 24 look like rows of the table"):
        read()
    assert read(quote='"').events["view"] == 40 - 24


@pytest.mark.parametrize("between", [0, 1, 19, 20, 60])
def test_rows_swallowed_by_two_stray_quotes_are_an_error_from_twenty_on(tmp_path: Path, between: int) -> None:
    """Fewer lines are also the size of a description, so they are one cell. No row more than these is lost."""
    lines = views(["a"] * 100)
    lines[5] += '"'
    lines[5 + between] += '"'
    if between >= 20:
        with pytest.raises(DataError, match=f"of which {between} look like rows"):
            check(tmp_path, ["a"], lines)
    else:
        assert check(tmp_path, ["a"], lines).events["view"] == 100 - between


def test_a_long_text_of_many_lines_is_named_and_kept(tmp_path: Path) -> None:
    """A query of 151 lines with a comma each is no row of five columns."""
    lines = views(["a"] * 3)
    lines[1] += '"' + "\n".join(f"line {k}, more" for k in range(151)) + '"'
    summary = check(tmp_path, ["a"], lines)
    notes = [n for s in summary.sources for n in s.notes]
    assert "events.csv, row 3, column query: one cell spans 151 lines; check that its quote is closed" in notes
    assert summary.events["view"] == 3


@pytest.mark.parametrize(
    ("items", "events", "difference"),
    [
        (["00007", "00012"], ["7", "12"], "leading zeros"),
        (["AB-1", "AB-2"], ["ab-1", "ab-2"], "upper and lower case"),
        (["the", "cafe"], ["thé", "café"], "accents"),
        (["123", "124", "a"], ["123.0", "124.0", "a"], "a decimal fraction such as .0"),
        (["9", "10"], ["gid://shopify/Product/9", "gid://shopify/Product/10"], "a prefix that ends in / or :"),
    ],
)
def test_item_ids_of_events_that_are_spelled_differently_are_matched_and_said(
    tmp_path: Path, items: list[str], events: list[str], difference: str
) -> None:
    """Where only one item can be meant, its ID is used."""
    summary = check(tmp_path, items, views(events), unknown_items="quarantine")
    assert summary.events["view"] == len(events)
    assert any(f"item IDs of 2 events differ from the catalogue's by {difference}" in note for note in summary.notes)


def test_ids_are_not_matched_where_two_items_could_be_meant(tmp_path: Path) -> None:
    """`7` is both `007` and `07`: two of the three events stay unknown, more than half, and the import stops."""
    with pytest.raises(DataError, match=r"67% of the events \(2 of 3\) are of items without a catalogue entry"):
        check(tmp_path, ["007", "07", "a"], views(["7", "7", "a"]))


def test_ids_that_never_meet_stop_the_import_with_the_column_that_has_them(tmp_path: Path) -> None:
    """The events name `sku`, which the catalogue has beside `item_id`."""
    with pytest.raises(DataError, match=r"100% of the events \(2 of 2\).*The column sku of the catalogue has them"):
        check(tmp_path, ["a", "b"], views(["s0", "s1"]))


def test_a_share_of_unknown_items_can_be_allowed(tmp_path: Path) -> None:
    """With `most_unknown: 1` the two events of unknown items are quarantined, and the third is accepted."""
    summary = check(tmp_path, ["a"], views(["a", "x", "y"]), most_unknown=1.0, unknown_items="quarantine")
    assert (summary.events["view"], summary.sources[1].quarantined) == (1, {"unknown_item": 2})


def test_words_for_a_missing_shopper_are_refused_and_a_large_shopper_is_named(tmp_path: Path) -> None:
    """60 of 200 events are of `NA`, and 40 of the other 140, 20% of all, of one of 21 shoppers."""
    users = ["NA"] * 60 + ["till"] * 40 + [f"u{k % 20}" for k in range(100)]
    lines = [f"{user},a,view,2026-01-01T{k // 60:02d}:{k % 60:02d}:00Z," for k, user in enumerate(users)]
    summary = check(tmp_path, ["a"], lines)
    assert summary.sources[1].quarantined == {"placeholder_id": 60}
    assert summary.users == 21
    assert any(note.startswith("user 'till' has 20% of the events") for note in summary.notes)


def test_an_export_of_many_files_gives_examples_of_two_and_the_number_of_the_others(tmp_path: Path) -> None:
    """Four daily files, each with one row without a user: 4 = 2 with an example + 2 more."""
    for day in range(1, 5):
        rows = f"view,u1,p1,2026-01-0{day}T10:00:00Z\nview,,p1,2026-01-0{day}T11:00:00Z\n"
        (tmp_path / f"events_{day}.csv").write_text("event,user_id,item_id,timestamp\n" + rows)
    (tmp_path / "items.csv").write_text("item_id,title\np1,Mug\n")
    config = ImportConfig.model_validate(
        {
            "folder": str(tmp_path),
            "tables": {"events": {"files": "events_*.csv"}},
            "items": [{"from": "items.csv", "columns": {"item_id": "item_id", "title": "title"}}],
            "events": [{"from": "events", "columns": {c: c for c in ("event", "user_id", "item_id", "timestamp")}}],
        }
    )
    said = validate(config, NOW).examples
    assert [line.split(",")[0] for line in said[:2]] == ["events_1.csv", "events_2.csv"]
    assert list(said[2:]) == ["missing_user: 2 more files have such rows"]
