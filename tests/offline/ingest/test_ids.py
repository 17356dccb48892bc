"""IDs in files: the importer and the service accept the same ones, in the same form."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import msgspec
import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from features.bounds import IdError, clean_id
from offline.ingest.cells import Limits, as_id
from offline.ingest.quarantine import Quarantine, Rows
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


@settings(max_examples=200, deadline=None)
@given(st.lists(ids, min_size=1, max_size=6))
def test_an_id_is_accepted_from_a_file_if_and_only_if_it_is_accepted_in_a_request(given: list[str]) -> None:
    """Both have the form of `clean_id`."""
    rows = Rows("events.csv", np.arange(len(given)), {}, Quarantine())
    found = as_id(rows, "user_id", pa.array(given, pa.string()), Limits(("",), 0, 2**62), "missing_user").to_pylist()
    for text, imported, good in zip(given, found, rows.good.tolist(), strict=True):
        body = json.dumps({"event": "click", "user_id": text, "item_id": "i"}).encode()
        (answer,) = accept(msgspec.Raw(body), NOW, 60.0)
        try:
            expected: str | None = clean_id(text)
        except IdError:
            expected = None
        assert (imported if good else None) == expected
        assert (answer.event.user_id if isinstance(answer, Accepted) else None) == expected
