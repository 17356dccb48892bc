"""Commands that measure ranking quality: `evaluate`, `tune`, `ablate` and `staleness`."""

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
    """Print the metrics of an `evaluation.json` by system, with intervals."""
    import json

    evaluation = json.loads(path.read_text("utf-8"))
    slices = ("all", "warm_users", "cold_users")

    def cell(system: str, name: str) -> str:
        if name not in evaluation["systems"][system]:
            return "-"
        low, high = evaluation["intervals"][system][name]["ndcg@10"]
        # A single user gives no interval.
        interval = f" [{low:.4f}, {high:.4f}]" if low is not None else ""
        return f"{evaluation['systems'][system][name]['ndcg@10']:.4f}{interval}"

    lists = evaluation["systems"]["ranker"]["all"]["lists"]
    rows = [[system, *(cell(system, s) for s in slices)] for system in evaluation["systems"]]
    print_table(f"ndcg@10 on {lists:,} test lists, with 95% intervals", ["system", *slices], rows, {1, 2, 3})


def evaluate(
    config: ConfigPath = None,
    workspace: Workspace = None,
    data: Annotated[
        Path | None, typer.Option(help="Data to import and evaluate on. Default: the data set of the workspace.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write all metrics to, as JSON.")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="time-split, leave-last-out or given-lists. Default: depends on the data.")
    ] = None,
    slices: Annotated[
        list[str] | None,
        typer.Option("--slice", help="Column of items or events to report by, such as category or device. Repeatable."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Folder to write report.html and evaluation.json to.")
    ] = None,
    learning_curve: Annotated[
        bool, typer.Option("--learning-curve", help="Also train on an eighth, a quarter and half of the lists.")
    ] = False,
) -> None:
    """Measure ranking quality on the test lists.

    Runs the nightly steps up to the report, without making or publishing a release. With --data, no setup is needed:
    the data are imported into a temporary workspace, which is deleted afterwards unless --workspace is given.

    Protocols: `time-split` tests on the latest lists of the shop; `leave-last-out` tests on each user's last basket and
    ranks the whole catalogue, and is the default for data with an order of events but no timestamps; `given-lists` is a
    time split over logged lists.
    """
    from tempfile import TemporaryDirectory

    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise Failure(f"--json {json_file}: no such folder: {json_file.absolute().parent}; create it first")
    with TemporaryDirectory(prefix="shelfwise-") as temporary:
        workspace_path = workspace or (Path(temporary) if data is not None else None)
        slice_config = {"columns": list(dict.fromkeys(slices))} if slices else None
        c = with_protocol(load_config(config, workspace_path, slices=slice_config), data, protocol)
        if data is not None:
            from offline.ingest import import_data

            with progress_bar("Importing") as on_progress:
                summary = import_data(sources(c, data), c.data, datetime.now(UTC), on_progress)
            print_import(summary)
        report_path = _evaluate(c, json_file, report, learning_curve)
        if workspace_path != Path(temporary) or report is not None:
            say(f"report: {report_path}")


def with_protocol(config: Config, data: Path | None, protocol: str | None) -> Config:
    """The configuration with the given protocol, or the default one for its data, and the settings that go with it."""
    from offline.config import PROTOCOLS
    from offline.ingest import detect

    windows, lists = config.windows.model_fields_set, config.lists.model_fields_set
    if protocol is None and "protocol" not in windows and (data is not None or config.sources is not None):
        found = config.sources if data is None else detect(data)[0]
        ordered = found is not None and any(e.order_column is not None for e in found.events)
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
    """Run the evaluation and print it. Returns the path of the report."""
    import json
    import shutil

    from offline.nightly import Night
    from offline.runtime import write_json

    night = Night(config, learning_curve=learning_curve)
    evaluation_path = night.run_to("evaluate").file("evaluation.json")
    print_evaluation(evaluation_path)
    evaluation = json.loads(evaluation_path.read_text("utf-8"))
    if learning_curve:
        rows = [[f"{p['lists']:,}", f"{p['ndcg@10']:.4f}"] for p in evaluation["learning_curve"]]
        print_table("ndcg@10 of the ranker by number of training lists", ["lists", "ndcg@10"], rows, {0, 1})
    if json_file is not None:
        write_json(json_file, evaluation)
        say(f"metrics: {json_file}")
    if report is None:
        return night.run.file("report.html")
    report.mkdir(parents=True, exist_ok=True)
    for name in ("evaluation.json", "report.html"):
        shutil.copyfile(night.run.file(name), report / name)
    return report / "report.html"


def tune(
    config: ConfigPath = None,
    workspace: Workspace = None,
    budget: Annotated[str, typer.Option(help="Time budget, such as 90s, 10m or 1h30m.")] = "10m",
) -> None:
    """Tune the ranker's settings on validation lists within a time budget.

    The test lists are not used. Uses the feature rows of a nightly run and computes them if necessary. Run it again to
    continue. Prints a `ranker:` section for the config, and how certain the improvement is.
    """
    from offline.cli.terminal import seconds
    from offline.nightly import Night, ranker_config
    from offline.studies import FRAGMENT, fragment, make_folds
    from offline.studies import tune as run

    c = load_config(config, workspace)
    budget_s = seconds(budget)
    night = Night(c)
    artefacts = night.run_to("rows")
    folds, features = make_folds(artefacts)
    columns = [f.name for f in features]
    with progress_bar("Tuning (seconds)") as on_progress:
        result = run(
            folds, columns, ranker_config(artefacts), night.run.directory, budget_s, c.seed, on_progress=on_progress
        )
    best = sorted(result.trials, key=lambda t: -(t.ndcg or 0))[:10]
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
        f"Best of {len(result.trials)} trials by ndcg@10",
        ["trial", "state", "both folds", "validation", "settings"],
        rows,
        {0, 2, 3},
    )
    say(fragment(result))
    say(f"settings: {night.run.file(FRAGMENT)}")


def ablate(
    config: ConfigPath = None,
    workspace: Workspace = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of rankers trained per figure; the mean is reported.")] = 3,
) -> None:
    """Measure what each feature group contributes.

    Trains the ranker without each group, and with the groups added one by one. Reports ndcg@10 on validation lists,
    with 95% intervals. Uses the feature rows of a nightly run and computes them if necessary.
    """
    from dataclasses import asdict

    from offline.nightly import Night, ranker_config
    from offline.runtime import write_json
    from offline.studies import ablate as run
    from offline.studies import make_folds

    c = load_config(config, workspace)
    night = Night(c)
    artefacts = night.run_to("rows")
    folds, features = make_folds(artefacts)
    with progress_bar("Training without each group") as on_progress:
        result = run(folds[-1], features, ranker_config(artefacts), seeds, on_progress)
    rows = [
        [g.group, str(g.features), f"{g.left_out:.4f}", _interval(g.lost), f"{g.added:.4f}", _interval(g.gained)]
        for g in result.groups
    ]
    print_table(
        f"ndcg@10 on {result.lists:,} validation lists: {result.full:.4f} with all features",
        ["group", "features", "without it", "loss", "added", "gain"],
        rows,
        {1, 2, 3, 4, 5},
    )
    write_json(night.run.file("ablation.json"), asdict(result))
    say(f"JSON: {night.run.file('ablation.json')}")


def _interval(d: Any) -> str:
    return f"{d.difference:+.4f} [{d.low:+.4f}, {d.high:+.4f}]"


def staleness(
    config: ConfigPath = None,
    workspace: Workspace = None,
    days: Annotated[str, typer.Option(help="Model ages in days, separated by commas.")] = "1,3,7,14",
) -> None:
    """Measure how much quality older models lose.

    Trains a model of each age and ranks the same test lists with it. Takes about as long as one nightly run per age;
    models are reused later. Writes a report with a table and a plot to `workspace/staleness`.
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
        raise Failure(f"--days {days}: expected whole numbers of at least 1, separated by commas, such as 1,3,7")
    c = load_config(config, workspace)
    night = Night(c)
    night.run_to("evaluate")
    with progress_bar("Training aged models") as on_progress:
        points = run(night, ages, on_progress)
    rows = [
        [
            str(p["days"]),
            f"{p['lists']:,}",
            f"{p['ndcg@10']:.4f}",
            f"{p['lost']:+.4f} [{p['lost_low']:+.4f}, {p['lost_high']:+.4f}]",
        ]
        for p in points
    ]
    print_table("Quality lost by age", ["days old", "training lists", "ndcg@10", "lost"], rows, {0, 1, 2, 3})
    evaluation = json.loads(night.run.file("evaluation.json").read_text("utf-8"))
    say(f"report: {report.write({**evaluation, 'staleness': points}, c.workspace / 'staleness')}")
