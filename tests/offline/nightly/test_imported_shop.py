"""A nightly run over an import whose columns, lists and cells no trees or trainers expect: it ends with a release."""

from __future__ import annotations

import csv
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from offline.config import load
from offline.data import EVENTS_FILE
from offline.ingest import detect, import_data
from offline.nightly.night import Night
from offline.runtime import ReleaseKept
from offline.simulation.dataset import simulate
from serving.release import load_release
from serving.store.embedded import connect_url
from tests.offline.nightly.test_night_failures import END, SHOP, YAML, clock
from tests.tiny_encoder import tiny_encoder

pytestmark = pytest.mark.nights

ODD = ["Unit Weight", "unit weight ", "Size [EU]", "Price, net", 'naïve {x}: "q"', "颜色", "", "x" * 300]
"""Names of columns with blanks, brackets, commas, quotes, other scripts, no name, and too many characters."""
LONG = 10_050


def write(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def export(folder: Path) -> None:
    """The files of a simulated shop as CSV, with odd columns, and with one shown list of 10,050 items.

    Cells of the odd columns are numbers, words or nothing. The items of the long list have only an ID and a title.
    """
    simulate(SHOP, folder / "simulated")
    shop = folder / "export"
    shop.mkdir()
    items = pq.read_table(folder / "simulated" / "items.parquet").to_pylist()
    rows = [
        [item["item_id"], item["title"], item["category"], "7,59 USD" if k == 0 else item["price"]]
        + [
            [k % 7 + 0.5, k % 3, 36 + k % 9, f"{k}.5", "blue" if k % 2 else "red", "红", k, ""][j]
            for j in range(len(ODD))
        ]
        for k, item in enumerate(items)
    ]
    rows += [[f"long{k}", f"Item {k}", "", ""] + [""] * len(ODD) for k in range(LONG)]
    write(shop / "items.csv", ["item_id", "title", "category", "price", *ODD], rows)
    events = pq.read_table(folder / "simulated" / EVENTS_FILE).to_pylist()
    names = ["event", "user_id", "item_id", "timestamp", "request_id", "position", "value"]
    middle = events[len(events) // 2]["timestamp"].isoformat()
    lists = [["impression", "reader", f"long{k}", middle, "all", k, ""] for k in range(LONG)]
    lists.append(["click", "reader", "long7", events[len(events) // 2]["timestamp"].isoformat(), "all", "", ""])
    rows = [[e[n].isoformat() if n == "timestamp" else e[n] for n in names] for e in events]
    write(shop / "events.csv", names, [*rows, *lists])


def test_a_night_over_odd_columns_and_one_list_of_10050_items_ends_with_a_release(tmp_path: Path) -> None:
    """LightGBM refuses blanks and brackets in names, and query groups of more than 10,000 rows."""
    export(tmp_path)
    summary = import_data(detect(tmp_path / "export")[0], tmp_path / "data", END)
    assert summary.items == LONG + len(pq.read_table(tmp_path / "simulated" / "items.parquet"))
    assert summary.events["impression"] > LONG
    model = tiny_encoder(tmp_path / "tiny")
    (tmp_path / "shop.yaml").write_text(
        YAML.format(workspace=tmp_path).replace("encoder: {", f"encoder: {{model: {model}, ")
    )
    config = load(tmp_path / "shop.yaml")
    with connect_url(None, config.embedded) as url:
        night = Night(config, url, clock=clock)
        with suppress(ReleaseKept):
            # Whether so small an encoder is good enough is not the question.
            night()
    notes = json.loads(night.run.file("evaluation.json").read_text())["data"]["notes"]
    assert "Lists of more than 10,000 items were left out: 1." in notes
    # By one rule, names become those of features; reports and explanations show the columns as they are.
    release = load_release(night.artefacts.release_path)
    assert {"item_Unit_Weight", "item_unit_weight_(2)"} <= set(release.manifest.feature_names)
    assert "Unit Weight" in night.run.file("report.html").read_text("utf-8")
