"""Commands that say how good the ranking is, and what would make it better."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offline.cli.data import print_import, sources
from offline.cli.terminal import ConfigPath, Workspace, load_config, print_table, say
from offline.runtime import Failure, progress_bar

if TYPE_CHECKING:
    from offline.config import Config


def print_evaluation(path: Path) -> None:
    """Print the systems of an `evaluation.json`, with intervals."""
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
    print_table(f"ndcg@10 on {lists:,} test lists, with 95% intervals", ["system", *slices], rows, {1, 2, 3})


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
    slices: Annotated[
        list[str] | None,
        typer.Option("--slice", help="A column of items or events to report by, as category or device; repeatable."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="A folder for report.html and evaluation.json.")
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
        raise Failure(f"--json {json_file}: there is no folder {json_file.absolute().parent}; make it first")
    with TemporaryDirectory(prefix="shelfwise-") as spare:
        own = workspace or (Path(spare) if data is not None else None)
        columns = {"columns": list(dict.fromkeys(slices))} if slices else None
        c = with_protocol(load_config(config, own, slices=columns), data, protocol)
        if data is not None:
            from offline.ingest import import_data

            with progress_bar("Importing") as on_progress:
                summary = import_data(sources(c, data), c.data, datetime.now(UTC), on_progress)
            print_import(summary)
        made = _evaluate(c, json_file, report, learning_curve)
        if own != Path(spare) or report is not None:
            say(f"report: {made}")


def with_protocol(config: Config, data: Path | None, protocol: str | None) -> Config:
    """The configuration with a protocol, given or the one its data calls for, and what goes with it."""
    from offline.config import PROTOCOLS

    windows, lists = config.windows.model_fields_set, config.lists.model_fields_set
    if protocol is None and "protocol" not in windows and (data is not None or config.sources is not None):
        ordered = any(e.order_column is not None for e in sources(config, data).events)
        protocol = "leave-last-out" if ordered else None
    protocol = protocol or config.windows.protocol
    if protocol not in PROTOCOLS:
        raise Failure(f"--protocol {protocol}: expected one of {', '.join(PROTOCOLS)}")
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


def _evaluate(config: Config, json_file: Path | None, report: Path | None, learning_curve: bool) -> Path:
    """Do it; the path of the report."""
    import json
    import shutil

    from offline.nightly import Night
    from offline.runtime import write_json

    night = Night(config, learning_curve=learning_curve)
    made = night.run_to("evaluate").file("evaluation.json")
    print_evaluation(made)
    found = json.loads(made.read_text("utf-8"))
    if learning_curve:
        rows = [[f"{p['lists']:,}", f"{p['ndcg@10']:.4f}"] for p in found["learning_curve"]]
        print_table("ndcg@10 of the ranker by how many lists it learned from", ["lists", "ndcg@10"], rows, {0, 1})
    if json_file is not None:
        write_json(json_file, found)
        say(f"numbers: {json_file}")
    if report is None:
        return night.run.file("report.html")
    report.mkdir(parents=True, exist_ok=True)
    for name in ("evaluation.json", "report.html"):
        shutil.copyfile(night.run.file(name), report / name)
    return report / "report.html"


def tune(
    config: ConfigPath = None,
    workspace: Workspace = None,
    budget: Annotated[str, typer.Option(help="Time to spend, as 90s, 10m or 1h30m.")] = "10m",
) -> None:
    """Better settings for the ranker, tried on validation lists within a time budget; the test lists stay unseen.

    Needs the night's rows and makes them if they are not there. Called again it goes on where it stopped. Prints a
    `ranker:` section to paste into the config, and how sure it is that this is better.
    """
    from offline.cli.terminal import seconds
    from offline.nightly import Night, ranker_config
    from offline.studies import FRAGMENT, fragment, make_folds
    from offline.studies import tune as run

    c = load_config(config, workspace)
    budget_s = seconds(budget)
    night = Night(c)
    made = night.run_to("rows")
    parts, features = make_folds(made)
    columns = [f.name for f in features]
    with progress_bar("Tuning (seconds)") as on_progress:
        found = run(parts, columns, ranker_config(made), night.run.directory, budget_s, c.seed, on_progress=on_progress)
    best = sorted(found.trials, key=lambda t: -(t.ndcg or 0))[:10]
    rows = [
        [
            str(t.number),
            t.state,
            *(f"{v:.4f}" if v else "-" for v in (t.ndcg, t.validation)),
            ", ".join(f"{name} {value}" for name, value in t.settings.items()),
        ]
        for t in best
    ]
    print_table(
        f"The best of {len(found.trials)} trials, by ndcg@10",
        ["trial", "", "both folds", "validation", ""],
        rows,
        {0, 2, 3},
    )
    say(fragment(found))
    say(f"settings: {night.run.file(FRAGMENT)}")


def ablate(
    config: ConfigPath = None,
    workspace: Workspace = None,
    seeds: Annotated[int, typer.Option(min=1, help="Rankers trained for each figure, which is their mean.")] = 3,
) -> None:
    """What each group of features is worth: the ranker trained without it, and with the groups added one by one.

    In ndcg@10 on validation lists, with 95% intervals. Needs the night's rows and makes them if they are not there.
    """
    from dataclasses import asdict

    from offline.nightly import Night, ranker_config
    from offline.runtime import write_json
    from offline.studies import ablate as run
    from offline.studies import make_folds

    c = load_config(config, workspace)
    night = Night(c)
    made = night.run_to("rows")
    parts, features = make_folds(made)
    with progress_bar("Training without") as on_progress:
        found = run(parts[-1], features, ranker_config(made), seeds, on_progress)
    rows = [
        [g.group, str(g.features), f"{g.left_out:.4f}", _interval(g.lost), f"{g.added:.4f}", _interval(g.gained)]
        for g in found.groups
    ]
    print_table(
        f"ndcg@10 on {found.lists:,} validation lists: {found.full:.4f} with all features",
        ["group", "features", "without it", "so it is worth", "added", "so it adds"],
        rows,
        {1, 2, 3, 4, 5},
    )
    write_json(night.run.file("ablation.json"), asdict(found))
    say(f"as JSON: {night.run.file('ablation.json')}")


def _interval(d: Any) -> str:
    return f"{d.difference:+.4f} [{d.low:+.4f}, {d.high:+.4f}]"


def staleness(
    config: ConfigPath = None,
    workspace: Workspace = None,
    days: Annotated[str, typer.Option(help="Ages of models, in days, with commas.")] = "1,3,7,14",
) -> None:
    """What is lost by a model some days old: each age is trained, and orders the same test lists.

    Takes about a night for each age the first time, and finds what is made afterwards. The report is in
    `workspace/staleness`, with a table and a plot.
    """
    import json

    from offline.evaluation import report
    from offline.nightly import Night
    from offline.studies import measure_staleness as run

    try:
        ages = [int(d) for d in days.split(",")]
    except ValueError:
        ages = []
    if not ages or min(ages) < 1:
        raise Failure(f"--days {days}: expected whole numbers from 1, with commas, as 1,3,7")
    c = load_config(config, workspace)
    night = Night(c)
    night.run_to("evaluate")
    with progress_bar("Training aged models") as on_progress:
        found = run(night, ages, on_progress)
    rows = [
        [
            str(p["days"]),
            f"{p['lists']:,}",
            f"{p['ndcg@10']:.4f}",
            f"{p['lost']:+.4f} [{p['lost_low']:+.4f}, {p['lost_high']:+.4f}]",
        ]
        for p in found
    ]
    print_table("What age costs", ["days old", "lists learnt from", "ndcg@10", "lost"], rows, {0, 1, 2, 3})
    evaluation = json.loads(night.run.file("evaluation.json").read_text("utf-8"))
    say(f"report: {report.write({**evaluation, 'staleness': found}, c.workspace / 'staleness')}")
