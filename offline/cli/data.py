"""Commands that make a data set: a simulated shop, or an import."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offline.cli.terminal import ConfigPath, EngineName, RayAddress, Workspace, load_config, print_table, say, today
from offline.runtime import Failure, open_engine, progress_bar

if TYPE_CHECKING:
    from offline.config import Config


def simulate(
    config: ConfigPath = None,
    workspace: Workspace = None,
    items: Annotated[int | None, typer.Option(help="Products on the opening day.")] = None,
    users: Annotated[int | None, typer.Option(help="Shoppers who may come.")] = None,
    days: Annotated[int | None, typer.Option(help="Length of the log.")] = None,
    searches: Annotated[float | None, typer.Option(help="Share of the lists that answer words typed.")] = None,
    seed: Annotated[int | None, typer.Option(help="Everything random follows from it.")] = None,
    end: Annotated[str | None, typer.Option(help="End of the last day, as 2026-06-01; default today.")] = None,
) -> None:
    """Make a shop to try things on: a catalogue with real-sounding text, shoppers with hidden tastes, their log.

    The same seed, sizes and end give the same bytes. `truth.parquet` holds the hidden utility, so that a report can say
    how far a ranker is from the best possible order.
    """
    from offline.simulation import simulate as run

    c = load_config(config, workspace)
    if end is None and "end" not in c.simulate.model_fields_set:
        end = today()
    given = {
        "items": items,
        "users": users,
        "days": days,
        "searches": searches,
        "seed": seed,
        "end": end and f"{end}T00:00:00Z",
    }
    shop = {**c.simulate.model_dump(), **{k: v for k, v in given.items() if v is not None}}
    with progress_bar("Simulating a shop") as on_progress:
        s = run(load_config(None, None, simulate=shop).simulate, c.data, on_progress)
    say(
        f"{c.data}: {s.items:,} items, {s.users:,} shoppers, {s.lists:,} lists, {sum(s.events.values()):,} events, "
        f"click rate {s.click_rate:.1%}"
    )


def import_(
    source: Annotated[Path | None, typer.Argument(help="A folder in the layout, or a file; else the config's.")] = None,
    config: ConfigPath = None,
    workspace: Workspace = None,
    suggest: Annotated[
        bool, typer.Option("--suggest", help="Import nothing; print a first mapping for SOURCE, to read and save.")
    ] = False,
    engine: EngineName = "local",
    ray_address: RayAddress = None,
) -> None:
    """Bring in items and events: Parquet, CSV, JSONL, Metarank's events or GA4's, through a column mapping.

    Every row is checked. Good rows go on; each bad one stands in `quarantine.parquet` with its file, row, column,
    value, the reason and what to do. The mapping is the `import` section of the config (see docs/data.md);
    `shelfwise import FILE --suggest > shop.yaml` guesses one.
    """
    from offline.ingest import import_data

    if suggest:
        from offline.ingest import suggest as suggest_mapping

        if source is None:
            raise Failure("--suggest looks at a file or folder: name one, as `shelfwise import orders.csv --suggest`")
        say(suggest_mapping(source).removesuffix("\n"))
        return
    c = load_config(config, workspace)
    with open_engine(engine, ray_address) as working, progress_bar("Importing") as on_progress:
        summary = import_data(sources(c, source), c.data, datetime.now(UTC), on_progress, working)
    print_import(summary)
    # The next command reads the same workspace, by the same settings.
    options = [("--config", config), ("--workspace", workspace)]
    named = "".join(f" {option} {shlex.quote(str(path))}" for option, path in options if path is not None)
    say(f"The data set is in {c.data}; next: shelfwise nightly{named}")


def validate(
    source: Annotated[Path | None, typer.Argument(help="A folder in the layout, or a file; else the config's.")] = None,
    config: ConfigPath = None,
    workspace: Workspace = None,
    engine: EngineName = "local",
    ray_address: RayAddress = None,
) -> None:
    """The checks of `import`, writing nothing; exit status 1 where a row would be refused."""
    from offline.ingest import validate as run

    c = load_config(config, workspace)
    with open_engine(engine, ray_address) as working, progress_bar("Validating") as on_progress:
        summary = run(sources(c, source), datetime.now(UTC), on_progress, working)
    print_import(summary)
    if any(s.quarantined for s in summary.sources):
        raise typer.Exit(1)


def sources(config: Config, source: Path | None) -> Any:
    """What to import: what is found in `source`, else the config's section. Raises Failure where there is neither."""
    from offline.ingest import detect

    if source is not None:
        return detect(source)
    if config.sources is None:
        raise Failure(
            "nothing to import: name a folder or file (`shelfwise import DIR`), or give --config a YAML file "
            "with an `import` section; `shelfwise import FILE --suggest > shop.yaml` writes a first one"
        )
    return config.sources


def print_import(summary: Any) -> None:
    """Print what happened to every row."""
    rows = [[file, what, f"{n:,}"] for file, what, n in summary.table()]
    print_table("What happened to every row", ["source", "", "rows"], rows, {2})
    for note in (*summary.notes, *(n for s in summary.sources for n in s.notes)):
        say(f"- {note}")
    for example in summary.examples:
        say(f"- {example}", "yellow")
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in summary.events.items())
    say(f"{summary.items:,} items, {summary.users:,} users, {summary.lists:,} lists; events: {kinds}")
