"""Commands of the service: run it and its embedding worker, query a release in the terminal, and create API keys."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from offline.cli.releases import live_release
from offline.cli.terminal import ConfigPath, Workspace, load_config, open_redis, print_table, say
from offline.runtime import Failure

User = Annotated[str | None, typer.Argument(help="User ID. Leave out for a user without history.")]


def serve(
    config: ConfigPath = None,
    workspace: Workspace = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on.")] = None,
    as_of_data: Annotated[
        bool, typer.Option("--as-of-data", help="Set the clock to the end of the release's log, for historical data.")
    ] = False,
    storefront: Annotated[
        bool | None,
        typer.Option("--storefront/--no-storefront", help="Serve a page for trying the release, at /storefront."),
    ] = None,
    operator: Annotated[
        bool | None, typer.Option("--operator/--no-operator", help="Serve a page for operators, at /operator.")
    ] = None,
    merchandising: Annotated[
        bool | None,
        typer.Option(
            "--merchandising/--no-merchandising",
            help="Apply the rules of merchandisers, and serve the page on which they change them, at /merchandising.",
        ),
    ] = None,
) -> None:
    """Serve rankings from the live release over HTTP, and receive events.

    The API is described at /docs. Uses the Redis of REDIS_URL, else an embedded Valkey that stores its data in the
    workspace.
    """
    from serving.kernels import use_shipped

    use_shipped()  # before anything imports numba
    from serving.app import serve as run

    c = load_config(config, workspace)
    overrides: dict[str, Any] = {} if port is None else {"port": port}
    if storefront is not None:
        overrides["storefront"] = storefront
    if operator is not None:
        overrides["operator"] = operator
    if merchandising is not None:
        overrides["merchandising"] = merchandising
    with open_redis(c) as url:
        if as_of_data:
            overrides["clock_file"] = None
            overrides["clock_offset_s"] = live_release(c, url).manifest.cut_off - datetime.now(UTC).timestamp()
        run(c.service.model_copy(update=overrides), url, c.releases, c.features.custom)


def embed(config: ConfigPath = None, workspace: Workspace = None) -> None:
    """Encode the texts of new items, so that the service can rank them within seconds.

    Reads the items written by PUT /v1/items. Run it alongside the service; stop it with Ctrl-C. Several workers can run
    and share the load.
    """
    import os
    import socket

    from offline.training import Embedder, VectorStore
    from serving.store import BulkStore

    c = load_config(config, workspace)
    with open_redis(c) as url, BulkStore(url) as store:
        say("encoding items as they are written; stop with Ctrl-C")
        with suppress(KeyboardInterrupt):
            Embedder(store, f"{socket.gethostname()}-{os.getpid()}", VectorStore(c.vector_store)).run()


def rank(
    user: User = None,
    config: ConfigPath = None,
    workspace: Workspace = None,
    candidate: Annotated[
        list[str] | None, typer.Option(help="ID of an item to rank. Repeatable. Default: all items.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of items to print.")] = 10,
    explain: Annotated[bool, typer.Option(help="Show the main reasons for each score.")] = False,
    as_of_data: Annotated[
        bool, typer.Option("--as-of-data", help="Rank as of the end of the release's log, not now.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="Device of the user, such as mobile.")] = None,
    query: Annotated[str | None, typer.Option(help="Search query of the user.")] = None,
    items: Annotated[
        list[str] | None,
        typer.Option(
            help="ID of an item on the page or in the cart. Repeatable. It is not ranked, unless a candidate."
        ),
    ] = None,
) -> None:
    """Rank items for a user with the live release, as the service would."""
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
            retention = release.manifest.retention
            history = store.read(user, release.items.catalogue, at, retention) if user else EMPTY
    catalogue, seeds = release.items.catalogue, list(dict.fromkeys(items or ()))
    if unknown := [item for item in (*(candidate or ()), *seeds) if int(catalogue.rows([item])[0]) < 0]:
        where = c.data / "items.parquet"
        raise Failure(f"item {unknown[0]!r} does not exist in release {release.id}; use an item ID from {where}")
    candidates = candidate or [item for item in catalogue.item_ids if item not in seeds]
    context = Context.parse(device, query)._replace(seeds=catalogue.rows(seeds))
    ranking = live.rank(history, candidates, at, limit, context)
    reasons = (
        [p.reasons for p in live.explain(ranking, history, 3, context)] if explain else [[] for _ in ranking.item_ids]
    )
    title = dict(zip(catalogue.item_ids, catalogue.titles, strict=True))
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
    known = f"{len(history.item)} engagements and {len(history.shown_item)} impressions known"
    print_table(
        f"For {user or 'a new user'} ({known}), release {release.id}",
        ["rank", "item", "title", "score", "reasons"],
        rows,
        {0, 3},
    )


def similar(
    item: Annotated[str, typer.Argument(help="Item ID.")],
    config: ConfigPath = None,
    workspace: Workspace = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of items to print.")] = 10,
) -> None:
    """List the items with the most similar text, by the encoder of the live release."""
    from serving.ranking import Live

    c = load_config(config, workspace)
    with open_redis(c) as url:
        release = live_release(c, url)
    catalogue = release.items.catalogue
    row = int(catalogue.rows([item])[0])
    if row < 0:
        raise Failure(f"item {item!r} is not in release {release.id}; use an item ID from {c.data / 'items.parquet'}")
    neighbours = Live.of(release).similar(row, limit, c.serving.variants.keep != "all")
    rows = [[catalogue.item_ids[r], catalogue.titles[r], f"{cosine:.3f}"] for r, cosine in neighbours]
    print_table(f"Similar to {catalogue.titles[row]}", ["item", "title", "cosine"], rows, {2})


keys_app = typer.Typer(name="keys", no_args_is_help=True, help="Create API keys, and tokens of shoppers.")


@keys_app.callback()
def keys() -> None:
    """Create API keys, and tokens of shoppers."""


@keys_app.command()
def new(
    scope: Annotated[
        str,
        typer.Option(
            help="Comma-separated: rank, explain, events, items, merge, merchandise, merchandise:read, admin, metrics."
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the key, shown in logs and error responses.")] = "storefront",
    rate: Annotated[float | None, typer.Option(help="Maximum requests per second and worker.")] = None,
    public: Annotated[bool, typer.Option("--public", help="For a web page or an app, where visitors read it.")] = False,
) -> None:
    """Create an API key. Prints the key, and the line to add to the file of `serving.keys_file`."""
    from serving.http import new_key

    key, line = new_key(name, scope.split(","), rate, public)
    typer.echo(f"key (not shown again): {key}")
    typer.echo(f"line for the key file: {line}")


@keys_app.command()
def secret(
    name: Annotated[str, typer.Option(help="Name of the secret, the `kid` of its tokens; a month, for instance.")],
) -> None:
    """Create a secret for shopper tokens. Prints the line to add to the file of `serving.shopper_secrets_file`."""
    from serving.http import new_secret

    typer.echo(new_secret(name))


@keys_app.command()
def token(
    user_id: Annotated[str, typer.Argument(help="The shopper's user ID.")],
    secrets: Annotated[Path, typer.Option(help="The file of `serving.shopper_secrets_file`.")],
    minutes: Annotated[float, typer.Option(min=0, help="How long the token is valid.")] = 60,
) -> None:
    """Print a shopper token, signed with the last secret of a file. For tests; shops make tokens in their back end."""
    from serving.http import last_secret, make_token

    typer.echo(make_token(user_id, *last_secret(secrets), minutes * 60))
