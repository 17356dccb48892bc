"""Commands about the log of a running service: bring it in, and hold what was served against what is replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offline.cli.terminal import ConfigPath, Workspace, load_config, open_redis, print_table, say
from offline.runtime import progress_bar


def collect(config: ConfigPath = None, workspace: Workspace = None) -> None:
    """Move events and answered lists from Redis into the data set, exactly once, and forget erased users.

    Run it before `nightly`. What it brings stands in `data/events` and `data/served`, a folder a day of arrival, and is
    read together with `events.parquet`. Killed and started again it goes on where it was.
    """
    from offline.data import collect as run
    from serving.store import BulkStore

    c = load_config(config, workspace)
    with open_redis(c) as url, BulkStore(url) as store, progress_bar("Collecting") as on_progress:
        found = run(c.data, store, c.releases, on_progress, c.log, c.retention.log_days)
    say(
        f"{c.data}: {found.events:,} events and {found.served:,} served lists, {found.items:,} written items, "
        f"{found.erased:,} users erased"
    )


def skew(
    config: ConfigPath = None,
    workspace: Workspace = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a feature's values that may differ beyond the tolerance.")
    ] = 0.01,
    tolerance: Annotated[float, typer.Option(min=0, help="Relative difference that is none.")] = 1e-5,
    limit: Annotated[int, typer.Option(min=1, help="Lists to compare: the newest.")] = 1000,
    json: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
) -> None:
    """Compare the feature rows that were served with rows replayed from the log, feature by feature.

    Needs lists with rows: `serving.log_rows_share` above 0, then `collect`. Exit status 1 where a feature is skewed.
    """
    from features.custom import load as load_features
    from offline.evaluation import compare_rows
    from offline.runtime import write_json

    c = load_config(config, workspace)
    with progress_bar("Replaying what was served") as on_progress:
        found = compare_rows(c.data, c.releases, load_features(c.features.custom), tolerance, limit, on_progress, c.log)
    rows = [
        [f.name, f"{f.values:,}", f"{f.differ:.2%}", f"{f.beyond:.2%}", f"{f.largest:.3g}", f.verdict(threshold)]
        for f in found.features
        if f.differ or len(found.features) <= 20
    ]
    title = f"{found.lists:,} lists, {found.rows:,} rows, {len(found.features)} features"
    print_table(
        f"{title}: those that differ", ["feature", "values", "differ", "beyond", "largest", ""], rows, {1, 2, 3, 4}
    )
    for reason, count in found.left_out.items():
        say(f"- {count:,} lists left out: {reason}")
    if json is not None:
        write_json(json, found.as_json(threshold))
    skewed = [f.name for f in found.features if f.beyond > threshold]
    if skewed:
        say(f"skewed: {', '.join(skewed)}", "bold red")
        raise typer.Exit(1)
    say(f"no feature is skewed: {sum(f.differ == 0 for f in found.features)} are equal to the bit")
