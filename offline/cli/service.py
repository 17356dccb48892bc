"""Commands that answer from a release: the service itself, and single questions at a terminal."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from offline.cli.releases import live_release
from offline.cli.terminal import ConfigPath, Workspace, load_config, open_redis, print_table, say
from offline.runtime import Failure

User = Annotated[str | None, typer.Argument(help="The shopper; leave out for one nobody knows.")]


def serve(
    config: ConfigPath = None,
    workspace: Workspace = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on.")] = None,
    as_of_data: Annotated[
        bool, typer.Option("--as-of-data", help="Set the clock to the end of the release's log: for logs of the past.")
    ] = False,
    storefront: Annotated[
        bool | None, typer.Option("--storefront/--no-storefront", help="Serve the page to try it with, at /storefront.")
    ] = None,
    operator: Annotated[
        bool | None, typer.Option("--operator/--no-operator", help="Serve the page for operators, at /operator.")
    ] = None,
) -> None:
    """Answer POST /v1/rank and /v1/events from the live release; the API is described at /docs.

    Redis is the one REDIS_URL names, else a Valkey of its own that keeps its data in the workspace.
    """
    from serving.app import serve as run

    c = load_config(config, workspace)
    changes: dict[str, Any] = {} if port is None else {"port": port}
    if storefront is not None:
        changes["storefront"] = storefront
    if operator is not None:
        changes["operator"] = operator
    with open_redis(c) as url:
        if as_of_data:
            changes["clock_file"] = None
            changes["clock_offset_s"] = live_release(c, url).manifest.cut_off - datetime.now(UTC).timestamp()
        run(c.serving.model_copy(update=changes), url, custom=c.features.custom)


def embed(config: ConfigPath = None, workspace: Workspace = None) -> None:
    """Read the text of items as they are written by PUT /v1/items, so that the service ranks new ones in seconds.

    Runs beside the service until it is told to stop. Several may run: they share the work.
    """
    import os
    import socket

    from offline.training import Embedder
    from serving.store import BulkStore

    c = load_config(config, workspace)
    with open_redis(c) as url, BulkStore(url) as store:
        say("reading items as they are written; stop with Ctrl-C")
        with suppress(KeyboardInterrupt):
            Embedder(store, f"{socket.gethostname()}-{os.getpid()}").run()


def rank(
    user: User = None,
    config: ConfigPath = None,
    workspace: Workspace = None,
    candidate: Annotated[list[str] | None, typer.Option(help="An item to rank; may be given again.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to print.")] = 10,
    explain: Annotated[bool, typer.Option(help="Say what moved each item most.")] = False,
    as_of_data: Annotated[bool, typer.Option("--as-of-data", help="At the end of the release's log, not now.")] = False,
    device: Annotated[str | None, typer.Option(help="What the shopper looks at the shop with, as mobile.")] = None,
    query: Annotated[str | None, typer.Option(help="What the shopper searches for.")] = None,
) -> None:
    """A ranked list for one shopper from the live release, as the service would answer it."""
    from features.context import Context
    from features.history import EMPTY
    from serving.ranking import Live
    from serving.store import BulkStore

    c = load_config(config, workspace)
    with open_redis(c) as url:
        release = live_release(c, url)
        live = Live.of(release)
        at = release.manifest.cut_off if as_of_data else datetime.now(UTC).timestamp()
        with BulkStore(url) as store:
            while (tail := store.tail(live.last)).item_ids:
                live.apply(tail)
            history = store.read(user, release.items.catalogue, at) if user else EMPTY
    candidates = candidate or list(release.items.catalogue.item_ids)
    context = Context.said(device, query)
    ranking = live.rank(history, candidates, at, limit, context)
    reasons = (
        [p.reasons for p in live.explain(ranking, history, 3, context)] if explain else [[] for _ in ranking.item_ids]
    )
    title = dict(zip(release.items.catalogue.item_ids, release.items.catalogue.titles, strict=True))
    rows = [
        [
            str(place),
            item,
            title.get(item, "(not in the catalogue)"),
            f"{score:.4f}",
            "; ".join(f"{r.text} ({r.contribution:+.2f})" for r in why),
        ]
        for place, (item, score, why) in enumerate(
            zip(ranking.item_ids, ranking.score.tolist(), reasons, strict=True), 1
        )
    ]
    seen = f"{len(history.item)} engagements, {len(history.shown_item)} impressions known"
    print_table(
        f"For {user or 'somebody new'} ({seen}), release {release.id}",
        ["", "item", "title", "score", "why"],
        rows,
        {0, 3},
    )


def similar(
    item: Annotated[str, typer.Argument(help="An item of the catalogue.")],
    config: ConfigPath = None,
    workspace: Workspace = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to print.")] = 10,
) -> None:
    """Items whose text is nearest to an item's, by the live release's encoder."""
    from serving.ranking import Live

    c = load_config(config, workspace)
    with open_redis(c) as url:
        release = live_release(c, url)
    catalogue = release.items.catalogue
    row = int(catalogue.rows([item])[0])
    if row < 0:
        raise Failure(f"{item!r} is not in release {release.id}: name an item of {c.data / 'items.parquet'}")
    near = Live.of(release).similar(row, limit)
    rows = [[catalogue.item_ids[r], catalogue.titles[r], f"{cosine:.3f}"] for r, cosine in near]
    print_table(f"Like {catalogue.titles[row]}", ["item", "title", "cosine"], rows, {2})
