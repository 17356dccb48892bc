"""Commands that create a data set: `simulate`, `visit`, `import` and `validate`."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offline.cli.terminal import ConfigPath, Workspace, load_config, print_table, say, today
from offline.runtime import Failure, progress_bar

if TYPE_CHECKING:
    from offline.config import Config

Preset = Annotated[str | None, typer.Option(help="Name of the preset to use, instead of the one that fits best.")]


def simulate(
    config: ConfigPath = None,
    workspace: Workspace = None,
    items: Annotated[int | None, typer.Option(help="Number of products on the opening day.")] = None,
    users: Annotated[
        int | None, typer.Option(help="Number of potential shoppers. Those who never visit are not in the log.")
    ] = None,
    days: Annotated[int | None, typer.Option(help="Length of the log in days.")] = None,
    searches: Annotated[float | None, typer.Option(help="Share of lists that are search results, from 0 to 1.")] = None,
    language: Annotated[str | None, typer.Option(help="Language of all texts: en or zh.")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.")] = None,
    end: Annotated[str | None, typer.Option(help="End of the last day, such as 2026-06-01. Default: today.")] = None,
) -> None:
    """Simulate a shop: a catalogue with realistic texts, shoppers with hidden tastes, and their log.

    The same seed, sizes and end date give the same bytes. `truth.parquet` has the hidden utilities, so that a report
    can compare a ranker with the best possible order.
    """
    from offline.simulation import simulate as run

    c = load_config(config, workspace)
    if end is None and "end" not in c.simulate.model_fields_set:
        end = today()
    options = {
        "items": items,
        "users": users,
        "days": days,
        "searches": searches,
        "language": language,
        "seed": seed,
        "end": end and f"{end}T00:00:00Z",
    }
    shop = {**c.simulate.model_dump(), **{k: v for k, v in options.items() if v is not None}}
    settings = load_config(None, None, simulate=shop).simulate
    with progress_bar("Simulating a shop") as on_progress:
        s = run(settings, c.data, on_progress)
    say(
        f"{c.data}: {s.items:,} items, {s.users:,} shoppers, {s.lists:,} lists, {sum(s.events.values()):,} events, "
        f"click rate {s.click_rate:.1%}"
    )
    if s.users < settings.users:
        say(
            f"{settings.users - s.users:,} of {settings.users:,} shoppers never visited in {settings.days:,} days, so "
            "they are not in the log; more visit with more days, or a higher simulate.lists_per_user_day"
        )


def visit(
    config: ConfigPath = None,
    workspace: Workspace = None,
    address: Annotated[str, typer.Option(help="Address of the service.")] = "http://localhost:8000",
    days: Annotated[int, typer.Option(min=1, help="Number of days to play.")] = 1,
    placement: Annotated[str, typer.Option(help="Placement of the lists that shoppers request.")] = "home",
) -> None:
    """Let the shoppers of the simulated shop use a running service, for the next days after the log.

    They request lists and act on what they are shown, as their hidden tastes say. The service has to have a
    `serving.clock_file`, and the shop days `simulate.ahead`.
    """
    from offline.simulation import visit as run

    c = load_config(config, workspace)
    if c.serving.clock_file is None:
        raise Failure("serving.clock_file is not set: the service needs it, so that days can pass")
    with progress_bar("Days") as on_progress:
        v = run(c.simulate, address, days, c.serving.clock_file, placement, on_progress)
    say(
        f"days {v.first + 1} to {v.first + v.days} after the log: {v.lists:,} lists, {v.clicks:,} clicks, "
        f"{v.purchases:,} purchases"
    )


def import_(
    source: Annotated[
        Path | None, typer.Argument(help="Folder or file to read. Default: the config's `import` section.")
    ] = None,
    config: ConfigPath = None,
    workspace: Workspace = None,
    suggest: Annotated[
        bool, typer.Option("--suggest", help="Print a suggested mapping for SOURCE instead of importing it.")
    ] = False,
    preset: Preset = None,
) -> None:
    """Import items, events and users from the files of a shop: CSV, JSON, XML, Excel or Parquet, packed or not.

    Common exports are recognised by their shape (see docs/data.md). Other files are mapped by the `import` section of
    the config; `shelfwise import FILES --suggest > shop.yaml` suggests one. Every row is checked. Each rejected row is
    written to `quarantine.parquet` with its file, row, column and value, the reason, and how to fix it.
    """
    from offline.ingest import import_data

    if suggest:
        from offline.ingest import suggest as suggest_mapping

        if source is None:
            raise Failure("--suggest needs a file or folder, for example `shelfwise import orders.csv --suggest`")
        say(suggest_mapping(source).removesuffix("\n"))
        return
    c = load_config(config, workspace)
    found = sources(c, source, preset)
    with progress_bar("Importing") as on_progress:
        summary = import_data(found, c.data, datetime.now(UTC), on_progress)
    print_import(summary)
    # Repeat the options, so that the next command uses the same workspace and settings.
    options = [("--config", config), ("--workspace", workspace)]
    repeated = "".join(f" {option} {shlex.quote(str(path))}" for option, path in options if path is not None)
    say(f"The data set is in {c.data}; next: shelfwise nightly{repeated}")


def validate(
    source: Annotated[
        Path | None, typer.Argument(help="Folder or file to read. Default: the config's `import` section.")
    ] = None,
    config: ConfigPath = None,
    workspace: Workspace = None,
    preset: Preset = None,
) -> None:
    """Check data like `import`, without writing anything.

    Exit status 1 if any row would be rejected.
    """
    from offline.ingest import validate as run

    c = load_config(config, workspace)
    found = sources(c, source, preset)
    with progress_bar("Validating") as on_progress:
        summary = run(found, datetime.now(UTC), on_progress)
    print_import(summary)
    if any(s.quarantined for s in summary.sources):
        raise typer.Exit(1)


def sources(config: Config, source: Path | None, preset: str | None = None) -> Any:
    """Sources to import: the files in `source` by a preset, which is printed, else the config's `import` section.

    Raises Failure if neither is given.
    """
    from offline.ingest import detect

    if source is not None:
        found, said = detect(source, preset)
        for text in said:
            say(f"- {text}")
        return found
    if config.sources is None:
        raise Failure(
            "nothing to import: pass a folder or file (`shelfwise import DIR`), or a --config file with an "
            "`import` section; `shelfwise import FILE --suggest > shop.yaml` suggests one"
        )
    return config.sources


def print_import(summary: Any) -> None:
    """Print the number of rows by source and outcome, the notes, and examples of rejected rows."""
    rows = [[file, outcome, f"{n:,}"] for file, outcome, n in summary.table()]
    print_table("Rows by outcome", ["source", "outcome", "rows"], rows, {2})
    for note in (*summary.notes, *(n for s in summary.sources for n in s.notes)):
        say(f"- {note}")
    for example in summary.examples:
        say(f"- {example}", "yellow")
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in summary.events.items())
    say(f"{summary.items:,} items, {summary.users:,} users, {summary.lists:,} lists; events: {kinds}")
