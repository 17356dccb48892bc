"""Reading in the second of two nightly runs: `python -m tests.bench.second_night`.

A simulated shop goes through the steps of a nightly run up to the encoder. The descriptions of `--changed` of its items
then change, and the second run reads the changed texts only. `read_share` is the number of texts that it read, relative
to the first run, as counted in the vector store. A third run has the changed catalogue and an empty store; its vectors
must be those of the second, bit for bit (`equal`). `--model` is a directory, or `minilm`, the default.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from offline.config import Config, load
from offline.nightly import Night
from offline.simulation import simulate
from offline.training import VectorStore


class Measured(NamedTuple):
    """A nightly run up to the encoder: texts in the store afterwards, seconds of each step, and its directory."""

    known: int
    seconds: dict[str, float]
    directory: Path


def run(config: Config) -> Measured:
    """Run the steps up to the encoder."""
    started = time.perf_counter()
    night = Night(config)
    artefacts = night.run_to("encoder")
    model = artefacts.json("texts.json")["base_fingerprint"]
    seconds = {name: step["seconds"] for name, step in night.run.finished.items()}
    print(f"{time.perf_counter() - started:,.1f} s: {seconds}", file=sys.stderr)
    return Measured(VectorStore(config.vector_store).rows(model), seconds, night.run.directory)


def change_descriptions(items: Path, share: float) -> int:
    """Change the descriptions of a share of the items, at even distances. Returns their number."""
    table = pq.read_table(items)
    rows = np.unique(np.linspace(0, len(table) - 1, round(share * len(table))).astype(np.int64))
    description = table["description"].to_pylist()
    for row in rows.tolist():
        description[row] = f"Improved in {row}. {description[row] or ''}"
    column = table.schema.get_field_index("description")
    pq.write_table(table.set_column(column, table.schema.field(column), pa.array(description, pa.string())), items)
    return len(rows)


def same_vectors(one: Path, other: Path) -> bool:
    """Whether two runs have the same vectors, before and after fine-tuning, bit for bit."""
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in ("zero_shot.npy", "vectors.npy"))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """The figures of the last line."""
    encoder = {"model": options.model} | ({"epochs": options.epochs} if options.epochs else {})
    config = load(
        None,
        workspace=folder / "shop",
        encoder=encoder,
        simulate={"items": options.items, "users": options.users, "days": options.days, "end": "2024-06-01T00:00:00Z"},
    )
    simulate(config.simulate, config.data)
    first = run(config)
    changed = change_descriptions(config.data / "items.parquet", options.changed)
    second = run(config)
    nothing = config.model_copy(update={"workspace": folder / "nothing"})
    nothing.workspace.mkdir()
    nothing.data.symlink_to(config.data)
    third = run(nothing)
    return {
        "items": pq.read_metadata(config.data / "items.parquet").num_rows,
        "changed": changed,
        "first_read": first.known,
        "second_read": second.known - first.known,
        "read_share": round((second.known - first.known) / first.known, 4),
        "equal": float(same_vectors(second.directory, third.directory)),
        "first_s": round(first.seconds["texts"], 1),
        "second_s": round(second.seconds["texts"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--users", type=int, default=800)
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--changed", type=float, default=0.01, help="share of the descriptions that change")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--epochs", type=int, help="maximum number of epochs, instead of the default setting")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), options)))


if __name__ == "__main__":
    main()
