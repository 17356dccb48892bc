"""Commands about API keys: who may ask the service what."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(name="keys", no_args_is_help=True, help="Make API keys for the service.")


@app.callback()
def keys() -> None:
    """Make API keys for the service."""


@app.command()
def new(
    scope: Annotated[str, typer.Option(help="What it is good for: rank, events, items, admin, metrics; with commas.")],
    name: Annotated[str, typer.Option(help="Whose it is; in logs and problem documents.")] = "storefront",
    rate: Annotated[float | None, typer.Option(help="Requests a second that each worker takes from it.")] = None,
) -> None:
    """Print a new key, once, and the line to keep in the file that `serving.keys_file` names."""
    from serving.http import new_key

    key, line = new_key(name, scope.split(","), rate)
    typer.echo(f"key, shown this once: {key}")
    typer.echo(f"line for the file:    {line}")
