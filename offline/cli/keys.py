"""Commands for the API keys of the service, and for the secrets and tokens of shoppers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(name="keys", no_args_is_help=True, help="Create API keys, and tokens of shoppers.")


@app.callback()
def keys() -> None:
    """Create API keys, and tokens of shoppers."""


@app.command()
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


@app.command()
def secret(
    name: Annotated[str, typer.Option(help="Name of the secret, the `kid` of its tokens; a month, for instance.")],
) -> None:
    """Create a secret for shopper tokens. Prints the line to add to the file of `serving.shopper_secrets_file`."""
    from serving.http import new_secret

    typer.echo(new_secret(name))


@app.command()
def token(
    user_id: Annotated[str, typer.Argument(help="The shopper's user ID.")],
    secrets: Annotated[Path, typer.Option(help="The file of `serving.shopper_secrets_file`.")],
    minutes: Annotated[float, typer.Option(min=0, help="How long the token is valid.")] = 60,
) -> None:
    """Print a shopper token, signed with the last secret of a file. For tests; shops make tokens in their back end."""
    from serving.http import last_secret, make_token

    typer.echo(make_token(user_id, *last_secret(secrets), minutes * 60))
