"""The command line: what each person does with Shelfwise, one command each.

Heavy imports stay inside the commands, so that `--help` is quick and `serve` never loads torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Set
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from offline.config import Config, ConfigError, load, redis_url
from offline.progress import bar, console

app = typer.Typer(
    name="shelfwise", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
    rich_markup_mode="markdown",
    help="Rank products for a shopper: learn by night from what was shown and chosen, answer by day in milliseconds."
    "\n\nStart with `shelfwise demo`; with your own shop: `import`, `nightly`, `serve`.",
)  # fmt: skip

ConfigPath = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file; without it the defaults hold.")]
Workspace = Annotated[Path | None, typer.Option("--workspace", "-w", help="Where everything made is kept.")]
User = Annotated[str | None, typer.Argument(help="The shopper; leave out for one nobody knows.")]

_out = Console()


class _Failure(Exception):
    """What a person can mend: printed without a traceback, exit status 1."""


def main() -> None:
    """The console script. Errors a person can mend are one message; anything else keeps its traceback."""
    from features.custom import FeatureError
    from offline.quarantine import DataError
    from serving.embedded import EmbeddedError
    from serving.release import ReleaseError

    # Of the operating system's errors, those about a path a person named.
    paths = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)
    try:
        app()
    except (_Failure, ConfigError, DataError, EmbeddedError, FeatureError, ReleaseError, *paths) as e:
        console.print(Text(f"shelfwise: {_plain(str(e))}", style="bold red"), soft_wrap=True)
        sys.exit(1)


def _config(path: Path | None, workspace: Path | None, **changes: Any) -> Config:
    return load(path, workspace=workspace, **changes)


@contextmanager
def _redis(config: Config) -> Iterator[str]:
    from redis import ConnectionPool, RedisError

    from serving.embedded import connect_url
    from serving.store import StoreAway

    named = redis_url()
    try:
        if named:
            ConnectionPool.from_url(named)
    except ValueError:
        # The reason is left out: it can quote what the address holds, a password among it.
        raise _Failure(
            "REDIS_URL is no address of a Redis; expected redis://HOST:6379/0, rediss://... or unix:///path/to/socket"
        ) from None
    try:
        with connect_url(named, config.redis) as url:
            yield url
    except (RedisError, StoreAway) as e:
        where = "the one REDIS_URL names" if named else f"the embedded one in {config.redis}"
        raise _Failure(f"Redis ({where}) cannot be used: {e}") from e


def _plain(text: str) -> str:
    """Text without control characters, which could move the cursor or worse: titles come from anywhere."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _say(text: str, style: str = "") -> None:
    """One remark, as it is: no markup, and no line break in the middle of a path."""
    _out.print(Text(_plain(text), style=style), soft_wrap=True)


def _print_table(title: str, columns: list[str], rows: list[list[str]], right: Set[int] = frozenset()) -> None:
    # Text, not markup: a title may hold brackets.
    table = Table(title=Text(_plain(title)), title_justify="left", header_style="bold")
    for k, column in enumerate(columns):
        table.add_column(column, justify="right" if k in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_plain(cell)) for cell in row))
    _out.print(table)


@app.command()
def simulate(
    config: ConfigPath = None,
    workspace: Workspace = None,
    items: Annotated[int | None, typer.Option(help="Products on the opening day.")] = None,
    users: Annotated[int | None, typer.Option(help="Shoppers who may come.")] = None,
    days: Annotated[int | None, typer.Option(help="Length of the log.")] = None,
    seed: Annotated[int | None, typer.Option(help="Everything random follows from it.")] = None,
    end: Annotated[str | None, typer.Option(help="End of the last day, as 2026-06-01; default today.")] = None,
) -> None:
    """Make a shop to try things on: a catalogue with real-sounding text, shoppers with hidden tastes, their log.

    The same seed, sizes and end give the same bytes. `truth.parquet` holds the hidden utility, so that a report can say
    how far a ranker is from the best possible order.
    """
    from offline.simulate import simulate as run

    c = _config(config, workspace)
    if end is None and "end" not in c.simulate.model_fields_set:
        end = _today()
    given = {"items": items, "users": users, "days": days, "seed": seed, "end": end and f"{end}T00:00:00Z"}
    shop = {**c.simulate.model_dump(), **{k: v for k, v in given.items() if v is not None}}
    with bar("Simulating a shop") as on_progress:
        s = run(load(None, simulate=shop).simulate, c.data, on_progress)
    _say(
        f"{c.data}: {s.items:,} items, {s.users:,} shoppers, {s.lists:,} lists, {sum(s.events.values()):,} events, "
        f"click rate {s.click_rate:.1%}"
    )


@app.command(name="import")
def import_(
    source: Annotated[Path | None, typer.Argument(help="A folder in the layout, or a file; else the config's.")] = None,
    config: ConfigPath = None,
    workspace: Workspace = None,
) -> None:
    """Bring in items and events: Parquet, CSV, JSONL, Metarank's events or GA4's, through a column mapping.

    Every row is checked. Good rows go on; each bad one stands in `quarantine.parquet` with its file, row, column,
    value, the reason and what to do. The mapping is the `import` section of the config (see docs/data.md).
    """
    from offline.importer import import_data

    c = _config(config, workspace)
    with bar("Importing") as on_progress:
        summary = import_data(_sources(c, source), c.data, datetime.now(UTC), on_progress)
    _say_import(summary, c.data)


@app.command()
def validate(
    source: Annotated[Path | None, typer.Argument(help="A folder in the layout, or a file; else the config's.")] = None,
    config: ConfigPath = None,
    workspace: Workspace = None,
) -> None:
    """The checks of `import`, writing nothing; exit status 1 where a row would be refused."""
    from offline.importer import validate as run

    c = _config(config, workspace)
    with bar("Validating") as on_progress:
        summary = run(_sources(c, source), datetime.now(UTC), on_progress)
    _say_import(summary, None)
    if any(s.quarantined for s in summary.sources):
        raise typer.Exit(1)


def _sources(config: Config, source: Path | None) -> Any:
    from offline.sources import ImportConfig

    if source is not None:
        return ImportConfig.detect(source)
    if config.sources is None:
        raise _Failure(
            "nothing to import: name a folder or file (`shelfwise import DIR`), or give --config a YAML file "
            "with an `import` section"
        )
    return config.sources


def _say_import(summary: Any, made: Path | None) -> None:
    rows = [[file, what, f"{n:,}"] for file, what, n in summary.table()]
    _print_table("What happened to every row", ["source", "", "rows"], rows, {2})
    for note in (*summary.notes, *(n for s in summary.sources for n in s.notes)):
        _say(f"- {note}")
    for example in summary.examples:
        _say(f"- {example}", "yellow")
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in summary.events.items())
    _say(f"{summary.items:,} items, {summary.users:,} users, {summary.lists:,} lists; events: {kinds}")
    if made is not None:
        _say(f"The data set is in {made}; next: shelfwise nightly")


@app.command()
def nightly(
    config: ConfigPath = None,
    workspace: Workspace = None,
    publish: Annotated[bool, typer.Option(help="Make the release live when it is done.")] = True,
) -> None:
    """The night: fine-tune the encoder, replay the log, train the ranker, evaluate, release, publish.

    Killed anywhere and started again it goes on after the last finished step. The live release changes last.
    """
    c = _config(config, workspace)
    made, report = _nightly(c, publish)
    _say(f"report: {report}")
    _say(f"release {made.id}: {made.path}")


def _nightly(config: Config, publish: bool) -> tuple[Any, Path]:
    """The release, and where its report is."""
    from offline.nightly import Night

    with _redis(config) as url:
        night = Night(config, url if publish else None)
        made = night()
    _say_evaluation(night.run.file("evaluation.json"))
    return made, night.run.file("report.html")


def _say_evaluation(path: Path) -> None:
    import json

    found = json.loads(path.read_text("utf-8"))
    slices = ("all", "warm_users", "cold_users")

    def cell(system: str, name: str) -> str:
        if name not in found["systems"][system]:
            return "-"
        low, high = found["intervals"][system][name]["ndcg@10"]
        # One user alone says nothing about others: there is no interval.
        interval = f" [{low:.4f}, {high:.4f}]" if low is not None else ""
        return f"{found['systems'][system][name]['ndcg@10']:.4f}{interval}"

    lists = found["systems"]["ranker"]["all"]["lists"]
    rows = [[system, *(cell(system, s) for s in slices)] for system in found["systems"]]
    _print_table(f"ndcg@10 on {lists:,} test lists, with 95% intervals", ["system", *slices], rows, {1, 2, 3})


@app.command()
def evaluate(
    config: ConfigPath = None,
    workspace: Workspace = None,
    data: Annotated[
        Path | None, typer.Option(help="A data set to import and evaluate on; else the workspace's own.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write every number.")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="time-split, leave-last-out or given-lists; default by the data.")
    ] = None,
    learning_curve: Annotated[
        bool, typer.Option("--learning-curve", help="Train on an eighth, a quarter and half of the lists as well.")
    ] = False,
) -> None:
    """How good the ranking is: the night's steps up to the report, without making or publishing a release.

    With --data nothing needs to be set up: the folder is imported into a workspace of its own, gone afterwards unless
    --workspace names it. Protocols: `time-split`, the last lists of the shop are the test; `leave-last-out`, each
    user's last basket is and all items can be recommended, the default where only the order of events is known;
    `given-lists`, the time split over lists that were logged.
    """
    from tempfile import TemporaryDirectory

    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise _Failure(f"--json {json_file}: there is no folder {json_file.absolute().parent}; make it first")
    with TemporaryDirectory(prefix="shelfwise-") as spare:
        own = workspace or (Path(spare) if data is not None else None)
        c = _under_protocol(_config(config, own), data, protocol)
        if data is not None:
            from offline.importer import import_data

            with bar("Importing") as on_progress:
                summary = import_data(_sources(c, data), c.data, datetime.now(UTC), on_progress)
            _say_import(summary, None)
        report = _evaluate(c, json_file, learning_curve)
        if own != Path(spare):
            _say(f"report: {report}")


def _under_protocol(config: Config, data: Path | None, protocol: str | None) -> Config:
    """The configuration with a protocol, given or the one its data calls for, and what goes with it."""
    from offline.windows import PROTOCOLS

    windows, lists = config.windows.model_fields_set, config.lists.model_fields_set
    if protocol is None and "protocol" not in windows and (data is not None or config.sources is not None):
        ordered = any(e.order_column is not None for e in _sources(config, data).events)
        protocol = "leave-last-out" if ordered else None
    protocol = protocol or config.windows.protocol
    if protocol not in PROTOCOLS:
        raise _Failure(f"--protocol {protocol}: expected one of {', '.join(PROTOCOLS)}")
    changed: dict[str, Any] = {}
    if protocol == "leave-last-out":
        changed = {"source": "rebuilt", "size": config.lists.size if "size" in lists else 300}
    elif protocol == "given-lists":
        changed = {"source": "logged"}
    return config.model_copy(
        update={
            "windows": config.windows.model_copy(update={"protocol": protocol}),
            "lists": config.lists.model_copy(update=changed),
        }
    )


def _evaluate(config: Config, json_file: Path | None, learning_curve: bool) -> Path:
    """Do it; the path of the report."""
    import json

    from offline.nightly import Night
    from offline.run import write_json

    night = Night(config, None)
    night.run.do([s for s in night.steps if s.name not in ("release", "publish")])
    made = night.run.file("evaluation.json")
    _say_evaluation(made)
    found = json.loads(made.read_text("utf-8"))
    if learning_curve:
        with bar("Learning curve") as on_progress:
            found["learning_curve"] = night.learning_curve(on_progress)
        rows = [[f"{p['lists']:,}", f"{p['ndcg@10']:.4f}"] for p in found["learning_curve"]]
        _print_table("ndcg@10 of the ranker by how many lists it learned from", ["lists", "ndcg@10"], rows, {0, 1})
    if json_file is not None:
        write_json(json_file, found)
        _say(f"numbers: {json_file}")
    return night.run.file("report.html")


@app.command()
def tune(
    config: ConfigPath = None,
    workspace: Workspace = None,
    budget: Annotated[str, typer.Option(help="Time to spend, as 90s, 10m or 1h30m.")] = "10m",
) -> None:
    """Better settings for the ranker, tried on validation lists within a time budget; the test lists stay unseen.

    Needs the night's rows and makes them if they are not there. Called again it goes on where it stopped. Prints a
    `ranker:` section to paste into the config, and how sure it is that this is better.
    """
    from offline.nightly import Night
    from offline.tune import FRAGMENT, folds, fragment, seconds, with_rows
    from offline.tune import tune as run

    c = _config(config, workspace)
    budget_s = seconds(budget)
    night = Night(c, None)
    base = with_rows(night)
    parts, columns = folds(night)
    with bar("Tuning (seconds)") as on_progress:
        found = run(parts, columns, base, night.run.directory, budget_s, c.seed, on_progress=on_progress)
    best = sorted(found.trials, key=lambda t: -(t.ndcg or 0))[:10]
    rows = [
        [str(t.number), t.state, *(f"{v:.4f}" if v else "-" for v in (t.ndcg, t.validation)),
         ", ".join(f"{name} {value}" for name, value in t.settings.items())]
        for t in best
    ]  # fmt: skip
    _print_table(f"The best of {len(found.trials)} trials, by ndcg@10", ["trial", "", "both folds", "validation", ""],
                 rows, {0, 2, 3})  # fmt: skip
    _say(fragment(found))
    _say(f"settings: {night.run.file(FRAGMENT)}")


@app.command()
def ablate(
    config: ConfigPath = None,
    workspace: Workspace = None,
    seeds: Annotated[int, typer.Option(min=1, help="Rankers trained for each figure, which is their mean.")] = 3,
) -> None:
    """What each group of features is worth: the ranker trained without it, and with the groups added one by one.

    In ndcg@10 on validation lists, with 95% intervals. Needs the night's rows and makes them if they are not there.
    """
    from dataclasses import asdict

    from offline.ablate import ablate as run
    from offline.nightly import Night
    from offline.run import write_json
    from offline.tune import folds, with_rows

    c = _config(config, workspace)
    night = Night(c, None)
    base = with_rows(night)
    parts, columns = folds(night)
    with bar("Training without") as on_progress:
        found = run(parts[-1], columns, base, seeds, [f.name for f in night.custom], on_progress)
    rows = [
        [g.group, str(g.features), f"{g.left_out:.4f}", _interval(g.lost), f"{g.added:.4f}", _interval(g.gained)]
        for g in found.groups
    ]
    _print_table(
        f"ndcg@10 on {found.lists:,} validation lists: {found.full:.4f} with all features",
        ["group", "features", "without it", "so it is worth", "added", "so it adds"], rows, {1, 2, 3, 4, 5},
    )  # fmt: skip
    write_json(night.run.file("ablation.json"), asdict(found))
    _say(f"as JSON: {night.run.file('ablation.json')}")


def _interval(d: Any) -> str:
    return f"{d.difference:+.4f} [{d.low:+.4f}, {d.high:+.4f}]"


@app.command()
def serve(
    config: ConfigPath = None,
    workspace: Workspace = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on.")] = None,
    as_of_data: Annotated[
        bool, typer.Option("--as-of-data", help="Set the clock to the end of the release's log: for logs of the past.")
    ] = False,
) -> None:
    """Answer POST /v1/rank and /v1/events from the live release; the API is described at /docs.

    Redis is the one REDIS_URL names, else a Valkey of its own that keeps its data in the workspace.
    """
    from serving.app import serve as run

    c = _config(config, workspace)
    changes: dict[str, Any] = {} if port is None else {"port": port}
    with _redis(c) as url:
        if as_of_data:
            changes["clock_offset_s"] = _live(c, url).manifest.cut_off - datetime.now(UTC).timestamp()
        run(c.serving.model_copy(update=changes), url, custom=c.features.custom)


def _live(config: Config, url: str) -> Any:
    """The live release."""
    from features.custom import load as load_features
    from serving.release import load as load_release
    from serving.store import BulkStore

    with BulkStore(url) as store:
        pointer = store.pointer()
    if pointer is None:
        raise _Failure("no release is live yet: run `shelfwise nightly`")
    return load_release(Path(pointer.path), custom=load_features(config.features.custom))


@app.command()
def rank(
    user: User = None,
    config: ConfigPath = None,
    workspace: Workspace = None,
    candidate: Annotated[list[str] | None, typer.Option(help="An item to rank; may be given again.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to print.")] = 10,
    explain: Annotated[bool, typer.Option(help="Say what moved each item most.")] = False,
    as_of_data: Annotated[bool, typer.Option("--as-of-data", help="At the end of the release's log, not now.")] = False,
) -> None:
    """A ranked list for one shopper from the live release, as the service would answer it."""
    from features.history import EMPTY
    from serving.live import Live
    from serving.store import BulkStore

    c = _config(config, workspace)
    with _redis(c) as url:
        release = _live(c, url)
        live = Live.of(release)
        at = release.manifest.cut_off if as_of_data else datetime.now(UTC).timestamp()
        with BulkStore(url) as store:
            while (tail := store.tail(live.last)).item_ids:
                live.apply(tail)
            history = store.read(user, release.items.catalogue, at) if user else EMPTY
    candidates = candidate or list(release.items.catalogue.item_ids)
    ranking = live.rank(history, candidates, at, limit)
    reasons = live.contributions(ranking, 3) if explain else [[] for _ in ranking.item_ids]
    title = dict(zip(release.items.catalogue.item_ids, release.items.catalogue.titles, strict=True))
    rows = [
        [str(place), item, title.get(item, "(not in the catalogue)"), f"{score:.4f}",
         "; ".join(f"{f.about} ({added:+.2f})" for f, added in why)]
        for place, (item, score, why) in enumerate(
            zip(ranking.item_ids, ranking.score.tolist(), reasons, strict=True), 1
        )
    ]  # fmt: skip
    seen = f"{len(history.item)} engagements, {len(history.shown_item)} impressions known"
    _print_table(f"For {user or 'somebody new'} ({seen}), release {release.id}", ["", "item", "title", "score", "why"],
                 rows, {0, 3})  # fmt: skip


@app.command()
def similar(
    item: Annotated[str, typer.Argument(help="An item of the catalogue.")],
    config: ConfigPath = None,
    workspace: Workspace = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to print.")] = 10,
) -> None:
    """Items whose text is nearest to an item's, by the live release's encoder."""
    from serving.live import Live

    c = _config(config, workspace)
    with _redis(c) as url:
        release = _live(c, url)
    catalogue = release.items.catalogue
    row = int(catalogue.rows([item])[0])
    if row < 0:
        raise _Failure(f"{item!r} is not in release {release.id}: name an item of {c.data / 'items.parquet'}")
    near = Live.of(release).similar(row, limit)
    rows = [[catalogue.item_ids[r], catalogue.titles[r], f"{cosine:.3f}"] for r, cosine in near]
    _print_table(f"Like {catalogue.titles[row]}", ["item", "title", "cosine"], rows, {2})


@app.command()
def releases(config: ConfigPath = None, workspace: Workspace = None) -> None:
    """The releases there are, newest first: which is live, what its log covered, how well it ranked."""
    from serving.release import list_releases
    from serving.store import BulkStore

    c = _config(config, workspace)
    with _redis(c) as url, BulkStore(url) as store:
        pointer = store.pointer()
    rows = []
    for r in list_releases(c.releases):
        if r.manifest is None:
            rows.append([r.path.name, "unusable", "", "", r.problem])
            continue
        ndcg = r.manifest.metrics.get("ranker")
        rows.append([
            r.manifest.id, "live" if pointer and pointer.id == r.manifest.id else "",
            datetime.fromtimestamp(r.manifest.cut_off, UTC).strftime("%Y-%m-%d %H:%M"), f"{r.manifest.items:,}",
            f"{ndcg:.4f}" if isinstance(ndcg, float) else "-",
        ])  # fmt: skip
    _print_table(f"Releases in {c.releases}", ["release", "", "log until (UTC)", "items", "ndcg@10"], rows, {3, 4})


@app.command()
def demo(
    config: ConfigPath = None,
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Where everything made is kept.")] = Path("demo"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the service.")] = 8000,
    stay: Annotated[bool | None, typer.Option(help="Keep serving afterwards; default only in a terminal.")] = None,
) -> None:
    """The whole way once: simulate a shop, run the night, serve it, and watch three clicks rearrange a list."""
    from offline.demo import ServiceDown, show
    from offline.simulate import simulate as run

    c = _config(config, workspace)
    shop = c.simulate.model_copy(update={"end": datetime.fromisoformat(f"{_today()}T00:00:00+00:00")})
    with bar("Simulating a shop") as on_progress:
        run(shop, c.data, on_progress)
    with _redis(c) as url:
        made, report = _nightly(c, True)
        try:
            show(c, url, made.id, report, port, sys.stdout.isatty() if stay is None else stay)
        except ServiceDown as e:
            raise _Failure(str(e)) from e


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


if __name__ == "__main__":
    main()
