"""Commands for releases: list and compare them, and change the live one."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offline.cli.terminal import ConfigPath, Workspace, load_config, open_redis, print_table, say
from offline.runtime import Failure

if TYPE_CHECKING:
    from offline.config import Config
    from serving.release import Manifest

app = typer.Typer(name="releases", invoke_without_command=True)
ReleaseId = Annotated[str, typer.Argument(help="Release ID, as listed by `shelfwise releases`.")]
Why = Annotated[str, typer.Option("--reason", help="Reason, recorded in the audit log.")]


@app.callback()
def releases(context: typer.Context, config: ConfigPath = None, workspace: Workspace = None) -> None:
    """List releases and change the live one."""
    if context.invoked_subcommand is None:
        list_(config, workspace)


@app.command("list")
def list_(config: ConfigPath = None, workspace: Workspace = None) -> None:
    """List releases, newest first, with their state, the end of their log, items and ndcg@10."""
    from serving.release import list_releases, live_pointer, previous_release
    from serving.store import BulkStore

    c = load_config(config, workspace)
    with open_redis(c) as url, BulkStore(url) as store:
        pointer, in_shadow = live_pointer(c.releases, store), store.shadow()
    state: dict[str | None, str] = {in_shadow.id: "in shadow"} if in_shadow else {}
    if pointer:
        state |= {
            previous_release(c.releases, pointer.id): "previous",
            pointer.id: "live, pinned" if pointer.pinned else "live",
        }
    rows = []
    for r in list_releases(c.releases):
        if r.manifest is None:
            rows.append([r.path.name, "unusable", "", "", r.problem])
            continue
        ndcg = r.manifest.metrics.get("ranker")
        rows.append(
            [
                r.manifest.id,
                state.get(r.manifest.id, ""),
                datetime.fromtimestamp(r.manifest.cut_off, UTC).strftime("%Y-%m-%d %H:%M"),
                f"{r.manifest.items:,}",
                f"{ndcg:.4f}" if isinstance(ndcg, float) else "-",
            ]
        )
    print_table(f"Releases in {c.releases}", ["release", "state", "data up to (UTC)", "items", "ndcg@10"], rows, {3, 4})


@app.command()
def diff(
    one: ReleaseId,
    other: Annotated[str | None, typer.Argument(help="Release ID. Default: the live release.")] = None,
    config: ConfigPath = None,
    workspace: Workspace = None,
) -> None:
    """Show the differences between two releases: data, windows, metrics, features, encoder and size."""
    from serving.release import read_manifest

    c = load_config(config, workspace)
    manifests = [read_manifest(c.releases / name) for name in (one, other or _live_id(c))]
    a, b = (_facts(m) for m in manifests)
    rows = [[name, a.get(name, "-"), b.get(name, "-")] for name in {**a, **b} if a.get(name) != b.get(name)]
    print_table("Differences", ["", manifests[0].id, manifests[1].id], rows, {1, 2})


def _facts(m: Manifest) -> dict[str, str]:
    def at(seconds: float) -> str:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")

    facts = {
        "data up to (UTC)": at(m.cut_off),
        "items": f"{m.items:,}",
        "parent": m.parent or "none",
        "encoder": m.encoder_fingerprint[:12],
        "dimensions": str(m.dimension),
        "feature schema": m.schema_hash,
        "size": f"{sum(f.bytes for f in m.files.values()) / 1e6:,.1f} MB",
    }
    for name, window in m.window.items():
        facts[f"window {name}"] = f"{window.get('from')} to {window.get('to')}"
    facts |= {f"ndcg@10 {s}": f"{v:.4f}" if isinstance(v, float) else str(v) for s, v in m.metrics.items()}
    return facts | {f"feature {name}": "yes" for name in m.feature_names}


@app.command()
def promote(
    release: ReleaseId,
    reason: Why = "by hand",
    config: ConfigPath = None,
    workspace: Workspace = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Also replace the live release of another shop with the same prefix.")
    ] = False,
) -> None:
    """Make a release live. All workers switch within seconds, and no request fails."""
    from serving.release import promote as run

    manifest = _apply(
        config, workspace, lambda c, store, custom: run(c.releases, store, release, reason, custom, take_over=take_over)
    )
    say(f"live: {manifest.id}")


@app.command()
def rollback(reason: Why = "by hand", config: ConfigPath = None, workspace: Workspace = None) -> None:
    """Make the previous release live again. Nightly runs do not publish the rolled-back one again."""
    from serving.release import rollback as run

    manifest = _apply(config, workspace, lambda c, store, custom: run(c.releases, store, reason, custom))
    say(f"live: {manifest.id}")


@app.command()
def pin(
    release: Annotated[str | None, typer.Argument(help="Release ID. Default: the live release.")] = None,
    reason: Why = "by hand",
    config: ConfigPath = None,
    workspace: Workspace = None,
) -> None:
    """Make a release live and pin it: nightly runs make releases but publish none until it is unpinned."""
    from serving.release import promote as run

    manifest = _apply(
        config,
        workspace,
        lambda c, store, custom: run(c.releases, store, release or _id(c, store), reason, custom, "pin"),
    )
    say(f"live and pinned: {manifest.id}")


@app.command()
def unpin(reason: Why = "by hand", config: ConfigPath = None, workspace: Workspace = None) -> None:
    """Let nightly runs replace the live release again."""
    from serving.release import unpin as run

    say(f"live: {_apply(config, workspace, lambda c, store, custom: run(c.releases, store, reason)).id}")


@app.command()
def shadow(release: ReleaseId, reason: Why = "by hand", config: ConfigPath = None, workspace: Workspace = None) -> None:
    """Also score a share of the lists with this release, after each response; see `serving.shadow_share`."""
    from serving.release import start_shadow as run

    manifest = _apply(config, workspace, lambda c, store, custom: run(c.releases, store, release, reason, custom))
    say(f"in shadow: {manifest.id}")


@app.command()
def unshadow(reason: Why = "by hand", config: ConfigPath = None, workspace: Workspace = None) -> None:
    """Stop shadow scoring."""
    from serving.release import stop_shadow as run

    manifest = _apply(config, workspace, lambda c, store, custom: run(c.releases, store, reason))
    say(f"no longer in shadow: {manifest.id}")


@app.command()
def compare(
    release: Annotated[
        str | None, typer.Argument(help="ID of a release that was in shadow. Default: the latest one.")
    ] = None,
    config: ConfigPath = None,
    workspace: Workspace = None,
    json: Annotated[Path | None, typer.Option("--json", help="File to write all figures to, as JSON.")] = None,
) -> None:
    """Compare a shadow release with the live one on served lists: agreement, latency and quality.

    Uses data collected by `shelfwise collect`; run that first.
    """
    from offline.evaluation import SHADOW_METRIC, to_json
    from offline.evaluation import compare_shadow as run
    from offline.runtime import write_json

    c = load_config(config, workspace)
    comparison = run(c.data, release, c.features.attributes, c.lists.attribution_s, c.log)
    low, middle, high = comparison.correlation
    rows = [
        ["correlation of scores, all candidates", f"{middle:.3f}", f"{low:.3f} to {high:.3f} in 90% of lists"],
        ["overlap of the first 10 items", f"{comparison.overlap:.1%}", ""],
    ]
    for name, (median, p95) in zip(("live", "shadow"), comparison.ms, strict=True):
        rows.append([f"ms to rank, {name}", f"{median:.2f}", f"95th percentile {p95:.2f}"])
    if comparison.quality is not None:
        d = comparison.quality.difference
        rows.append([f"{SHADOW_METRIC} on {d.lists:,} clicked lists, live", f"{comparison.quality.live:.4f}", ""])
        rows.append(
            [
                f"{SHADOW_METRIC} on {d.lists:,} clicked lists, shadow",
                f"{comparison.quality.shadow:.4f}",
                f"{d.difference:+.4f} [{d.low:+.4f}, {d.high:+.4f}]",
            ]
        )
    for name, e in comparison.worth.items():
        rows.append(
            [f"estimated gain per list (from propensities), {name}", f"{e.value:.4f}", f"[{e.low:.4f}, {e.high:.4f}]"]
        )
    print_table(
        f"Shadow release {comparison.release} compared with {', '.join(comparison.live)} on {comparison.lists:,} lists",
        ["metric", "value", "range"],
        rows,
        {1},
    )
    if comparison.quality is None:
        say("quality cannot be compared yet: these lists have no clicks from two or more shoppers")
    if json is not None:
        write_json(json, to_json(comparison))


@app.command()
def audit(config: ConfigPath = None, workspace: Workspace = None) -> None:
    """Show every change of the live release and every removed release: when, by whom and why."""
    from serving.release import release_history

    c = load_config(config, workspace)
    columns = ["at", "action", "release", "before", "by", "reason"]
    rows = [[str(line.get(name) or "") for name in columns] for line in release_history(c.releases)]
    print_table(f"Audit of {c.releases}", columns, rows)


def _apply(config: Path | None, workspace: Path | None, change: Any) -> Any:
    from features.custom import load as load_features
    from serving.store import BulkStore

    c = load_config(config, workspace)
    with open_redis(c) as url, BulkStore(url) as store:
        return change(c, store, load_features(c.features.custom))


def _live_id(config: Config) -> str:
    from serving.store import BulkStore

    with open_redis(config) as url, BulkStore(url) as store:
        return _id(config, store)


def _id(config: Config, store: Any) -> str:
    from serving.release import live_pointer

    pointer = live_pointer(config.releases, store)
    if pointer is None:
        raise Failure("no release is live yet: run `shelfwise nightly`")
    return str(pointer.id)


def live_release(config: Config, url: str) -> Any:
    """The live release, loaded. Raises Failure if there is none."""
    from features.custom import load as load_features
    from serving.release import live_pointer, load_release
    from serving.store import BulkStore

    with BulkStore(url) as store:
        pointer = live_pointer(config.releases, store)
    if pointer is None:
        raise Failure("no release is live yet: run `shelfwise nightly`")
    return load_release(Path(pointer.path), custom=load_features(config.features.custom))
