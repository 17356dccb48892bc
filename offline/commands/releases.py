"""Commands about releases: which there are, and which is live."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline.terminal import ConfigPath, Failure, Workspace, configured, print_table, redis

if TYPE_CHECKING:
    from offline.config import Config


def releases(config: ConfigPath = None, workspace: Workspace = None) -> None:
    """The releases there are, newest first: which is live, what its log covered, how well it ranked."""
    from serving.release import list_releases
    from serving.store import BulkStore

    c = configured(config, workspace)
    with redis(c) as url, BulkStore(url) as store:
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
    print_table(f"Releases in {c.releases}", ["release", "", "log until (UTC)", "items", "ndcg@10"], rows, {3, 4})


def live_release(config: Config, url: str) -> Any:
    """The live release."""
    from features.custom import load as load_features
    from serving.release import load as load_release
    from serving.store import BulkStore

    with BulkStore(url) as store:
        pointer = store.pointer()
    if pointer is None:
        raise Failure("no release is live yet: run `shelfwise nightly`")
    return load_release(Path(pointer.path), custom=load_features(config.features.custom))
