"""Commands that rank for many users at once: `export` and `audience`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from offline.cli.releases import live_release
from offline.cli.terminal import ConfigPath, EngineName, RayAddress, Workspace, load_config, open_redis, say
from offline.runtime import Failure, open_engine, progress_bar

if TYPE_CHECKING:
    from offline.config import Config
    from offline.exports import Audience
    from serving.merchandising import MerchandisingRule
    from serving.ranking import Live, Placement
    from serving.store import BulkStore

_LIMIT = 20

To = Annotated[
    str, typer.Option("--to", help="Folder to write to: a path, or a URI such as s3://bucket/mails/2026-01-31.")
]
Users = Annotated[
    Path | None,
    typer.Option(help="CSV or Parquet file with a column user_id, or a text with an ID per line. Default: all users."),
]
PlacementName = Annotated[
    str | None, typer.Option("--placement", help="Placement of the configuration, whose settings the lists have.")
]
RulesFile = Annotated[
    Path | None, typer.Option("--rules", help="JSON file with rules, as `rules` in a request; see docs/rules.md.")
]
FormatName = Annotated[str, typer.Option("--format", help="Format of the files: parquet or csv.")]
AsOfData = Annotated[bool, typer.Option("--as-of-data", help="Rank as of the end of the release's log, not as of now.")]
Restart = Annotated[bool, typer.Option("--restart", help="Replace the export in the folder.")]


def export(
    to: To,
    config: ConfigPath = None,
    workspace: Workspace = None,
    placement: PlacementName = None,
    users: Users = None,
    limit: Annotated[
        int | None, typer.Option(min=1, max=500, help="Number of items per user. Default: the placement's, else 20.")
    ] = None,
    rules: RulesFile = None,
    form: FormatName = "parquet",
    as_of_data: AsOfData = False,
    restart: Restart = False,
    engine: EngineName = "local",
    ray_address: RayAddress = None,
) -> None:
    """Write a ranked list for every user to files, for example for an e-mail.

    The lists are those of `/v1/recommend` with the live release and the collected log: run `shelfwise collect` first.
    Nothing is logged as shown. If interrupted, run it again to continue; the files are the same.
    """
    lists = (placement, users, limit, rules)
    _export(_Options(to, config, workspace, *lists, form, as_of_data, restart, engine, ray_address), None)


def audience(
    to: To,
    config: ConfigPath = None,
    workspace: Workspace = None,
    item: Annotated[str | None, typer.Option(help="ID of the product to find users for.")] = None,
    condition: Annotated[
        Path | None,
        typer.Option("--when", help="JSON file with a condition on products, as in a rule; see docs/rules.md."),
    ] = None,
    within: Annotated[
        int, typer.Option(min=1, max=500, help="Number of first positions of a list in which a product must be.")
    ] = 10,
    placement: PlacementName = None,
    users: Users = None,
    rules: RulesFile = None,
    form: FormatName = "parquet",
    as_of_data: AsOfData = False,
    restart: Restart = False,
    engine: EngineName = "local",
    ray_address: RayAddress = None,
) -> None:
    """Write the users for whom a product, or one of several, is among the first of their list.

    A row has the user, the best of the products and its position. As in `export`, nothing is logged, and an interrupted
    run continues.
    """
    if (item is None) == (condition is None):
        raise Failure("give either --item ID or --when FILE, to say which products the audience is for")

    def of() -> Audience:
        from offline.exports import Audience
        from serving.rules import Condition

        chosen = Condition(attribute="item_id", eq=item) if condition is None else _read(condition, Condition)
        return Audience(chosen, within)

    lists = (placement, users, within, rules)
    _export(_Options(to, config, workspace, *lists, form, as_of_data, restart, engine, ray_address), of)


class _Options(NamedTuple):
    """The options that both commands have."""

    to: str
    config: Path | None
    workspace: Path | None
    placement: str | None
    users: Path | None
    limit: int | None
    rules: Path | None
    form: str
    as_of_data: bool
    restart: bool
    engine: str
    ray_address: str | None


def _export(o: _Options, audience: Callable[[], Audience] | None) -> None:
    from offline.data import Storage
    from offline.exports import (
        Destination,
        Export,
        live_at,
        read_user_ids,
        started_at,
        started_merchandising,
        write_export,
    )
    from serving.rules import Rules
    from serving.store import BulkStore

    c = load_config(o.config, o.workspace)
    destination = Destination(Storage.of(o.to), _format(o.form), o.restart)
    of_placement = _placement(o.placement, c)
    limit = o.limit or of_placement.config.limit or _LIMIT
    requested = None if o.rules is None else _read(o.rules, Rules)
    user_ids = None if o.users is None else read_user_ids(o.users)
    with ExitStack() as stack:
        executor = stack.enter_context(open_engine(o.engine, o.ray_address, 1, c.features.custom))
        url = stack.enter_context(open_redis(c))
        store = stack.enter_context(BulkStore(url))
        release = live_release(c, url)
        begun = None if o.restart else started_at(destination.storage)
        now = release.manifest.cut_off if o.as_of_data else datetime.now(UTC).timestamp()
        live, shoppers = live_at(c, release, store, begun or now, user_ids)
        size = c.serving.candidates_for(limit)
        if begun is not None:  # it continues with the rules that it began with
            merchandising = started_merchandising(destination.storage)
        else:
            merchandising = _merchandising(c, store, live, of_placement.name, now)
        job = Export(
            live,
            shoppers,
            begun or now,
            limit,
            size,
            c.serving.rules,
            of_placement,
            requested,
            audience and audience(),
            merchandising,
            variants=c.serving.variants,
        )
        on_progress = stack.enter_context(progress_bar("Ranking"))
        done = write_export(job, destination, executor, on_progress)
    new = f", of whom {done.new:,} have no history" if done.new else ""
    reused = f", {done.reused:,} of them from before" if done.reused else ""
    say(f"{o.to}: {done.rows:,} rows for {done.users:,} users{new}, in {done.files:,} files{reused}")


def _merchandising(
    c: Config, store: BulkStore, live: Live, placement: str | None, at: float
) -> tuple[MerchandisingRule, ...]:
    """The rules of merchandisers that apply to the lists, if they are on. Reports those that cannot be used."""
    from offline.exports import merchandising_of
    from serving.merchandising import Document, compile_document, read_rules

    if not c.serving.merchandising:
        return ()
    found = merchandising_of(read_rules(store), placement, at)
    for rule_id, reason in compile_document(Document(0, list(found)), live.attributes, c.placements).set_aside.items():
        say(f"merchandising rule {rule_id} is not used: {reason}")
    return found


def _placement(name: str | None, config: Config) -> Placement:
    """The placement of this name. Raises Failure if there is none, or if its lists need a query or items."""
    from serving.ranking import NO_PLACEMENT, Placement

    if name is None:
        return NO_PLACEMENT
    if name not in config.placements:
        known = ", ".join(config.placements)
        raise Failure(
            f"--placement {name}: no such placement; "
            + (f"the placements are {known}" if known else "the configuration has none")
        )
    if config.placements[name].requires:
        needed = " and ".join({"query": "a query", "items": "items"}[part] for part in config.placements[name].requires)
        raise Failure(f"--placement {name}: its lists need {needed}, which the users of a file have not")
    return Placement.of(name, config.placements[name])


def _format(name: str) -> Literal["parquet", "csv"]:
    if name not in ("parquet", "csv"):
        raise Failure(f"--format {name}: expected parquet or csv")
    return "csv" if name == "csv" else "parquet"


def _read(path: Path, kind: Any) -> Any:
    """A JSON file as a rule or a condition. Raises Failure, naming the file and the field, if it is none."""
    import msgspec

    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise Failure(f"{path}: {e}; see docs/rules.md for the grammar") from e
