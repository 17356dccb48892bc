"""Commands for the API keys of the service."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(name="keys", no_args_is_help=True, help="Create API keys for the service.")


@app.callback()
def keys() -> None:
    """Create API keys for the service."""


@app.command()
def new(
    scope: Annotated[str, typer.Option(help="Scopes, separated by commas: rank, events, items, admin, metrics.")],
    name: Annotated[str, typer.Option(help="Name of the key, shown in logs and error responses.")] = "storefront",
    rate: Annotated[float | None, typer.Option(help="Maximum requests per second and worker.")] = None,
) -> None:
    """Create an API key. Prints the key, and the line to add to the file of `serving.keys_file`."""
    from serving.http import new_key

    key, line = new_key(name, scope.split(","), rate)
    typer.echo(f"key (not shown again): {key}")
    typer.echo(f"line for the key file: {line}")
