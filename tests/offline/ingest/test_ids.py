"""IDs in files: the importer and the service accept the same ones, in the same form."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import msgspec
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.bounds import IdError, clean_id
from offline.ingest.importer import DataError, ImportConfig, import_data
from serving.api.events import Accepted, accept

ids = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    [
        "undefined",
        " p1",
        "p1 ",
        "e\u0301",
        "é",
        "\u00a0",
        "x" * 257,
        "é" * 129,
        "a\x85",
        "\x1fa",
        "\u2028b",
        "[object Object]",
    ]
)
NOW = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


@settings(max_examples=20, deadline=None)
@given(st.lists(ids, min_size=1, max_size=30))
def test_an_id_is_accepted_from_a_file_if_and_only_if_it_is_accepted_in_a_request(
    tmp_path_factory: pytest.TempPathFactory, given: list[str]
) -> None:
    """Both have the form of `clean_id`."""
    rows = [{"user_id": text, "item_id": f"i{n}", "event": "click", "timestamp": NOW} for n, text in enumerate(given)]
    folder = tmp_path_factory.mktemp("ids")
    (folder / "events.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    section = {"folder": folder, "missing": [""], "events": [{"from": "events.jsonl"}], "unknown_items": "keep"}
    config = ImportConfig.model_validate(section)
    try:
        import_data(config, folder, datetime(2026, 1, 2, tzinfo=UTC))
        table = pq.read_table(folder / "events.parquet", columns=["item_id", "user_id"])
        found = dict(zip(*table.to_pydict().values(), strict=True))
    except DataError:  # no event was accepted
        found = {}
    for n, text in enumerate(given):
        body = json.dumps({"event": "click", "user_id": text, "item_id": "i"}).encode()
        (answer,) = accept(msgspec.Raw(body), NOW, 60.0)
        try:
            expected: str | None = clean_id(text)
        except IdError:
            expected = None
        assert found.get(f"i{n}") == expected
        assert (answer.event.user_id if isinstance(answer, Accepted) else None) == expected
