"""Commands that rank for many users at once: `export` and `audience`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from offline.cli.releases import live_release
from offline.cli.terminal import ConfigPath, EngineName, RayAddress, Workspace, load_config, open_redis, say
from offline.runtime import Failure, open_engine, progress_bar

if TYPE_CHECKING:
    from offline.exports import Audience

To = Annotated[
    str, typer.Option("--to", help="Folder to write to: a path, or a URI such as s3://bucket/mails/2026-01-31.")
]
Users = Annotated[
    Path | None,
    typer.Option(help="CSV or Parquet file with a column user_id, or a text with an ID per line. Default: all users."),
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
    users: Users = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="Number of items per user.")] = 20,
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
    _export(to, config, workspace, users, limit, rules, form, as_of_data, restart, (engine, ray_address), None)


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

    _export(to, config, workspace, users, within, rules, form, as_of_data, restart, (engine, ray_address), of)


def _export(
    to: str,
    config: Path | None,
    workspace: Path | None,
    users: Path | None,
    limit: int,
    rules: Path | None,
    form: str,
    as_of_data: bool,
    restart: bool,
    engine: tuple[str, str | None],
    audience: Callable[[], Audience] | None,
) -> None:
    from offline.data import Storage
    from offline.exports import Destination, Export, live_at, read_user_ids, started_at, write_export
    from serving.rules import Rules
    from serving.store import BulkStore

    c = load_config(config, workspace)
    destination = Destination(Storage.of(to), _format(form), restart)
    requested = None if rules is None else _read(rules, Rules)
    user_ids = None if users is None else read_user_ids(users)
    with ExitStack() as stack:
        executor = stack.enter_context(open_engine(*engine, 1, c.features.custom))
        url = stack.enter_context(open_redis(c))
        store = stack.enter_context(BulkStore(url))
        release = live_release(c, url)
        begun = None if restart else started_at(destination.storage)
        now = release.manifest.cut_off if as_of_data else datetime.now(UTC).timestamp()
        live, shoppers = live_at(c, release, store, begun or now, user_ids)
        of = None if audience is None else audience()
        size = c.serving.candidates_for(limit)
        job = Export(live, shoppers, begun or now, limit, size, c.serving.rules, requested, of)
        on_progress = stack.enter_context(progress_bar("Ranking"))
        done = write_export(job, destination, executor, on_progress)
    new = f", of whom {done.new:,} have no history" if done.new else ""
    reused = f", {done.reused:,} of them from before" if done.reused else ""
    say(f"{to}: {done.rows:,} rows for {done.users:,} users{new}, in {done.files:,} files{reused}")


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
