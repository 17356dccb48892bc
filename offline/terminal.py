"""What every command shares: the options that name a configuration, Redis, and how things are said to a person.

Nothing heavy is imported here, so that `--help` is quick.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from offline.config import Config
    from offline.engine import Engine

ConfigPath = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file; without it the defaults hold.")]
Workspace = Annotated[Path | None, typer.Option("--workspace", "-w", help="Where everything made is kept.")]
EngineName = Annotated[
    str, typer.Option("--engine", help="Where the work is done: local, in this process; ray, on a Ray cluster.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="The Ray cluster; auto: the one this machine belongs to. Default: this machine alone."),
]

_out = Console()


class Failure(Exception):
    """What a person can mend: printed without a traceback, exit status 1."""


def configured(path: Path | None, workspace: Path | None, **changes: Any) -> Config:
    """The configuration of a command: the file's, with the options a person gave over it. Raises ConfigError."""
    from offline.config import load

    return load(path, workspace=workspace, **changes)


@contextmanager
def engine_of(name: str, ray_address: str | None, ray_workers: int = 1, own: Sequence[str] = ()) -> Iterator[Engine]:
    """The engine of that name while the block runs; as in `offline.ray_engine.connected`.

    Raises Failure for an unknown one and EngineError where Ray is not there.
    """
    from offline.engine import LOCAL

    if name not in ("local", "ray"):
        raise Failure(f"--engine {name}: no such engine; known: local, ray")
    if name == "local":
        if ray_address is not None or ray_workers > 1:
            raise Failure("--ray-address and --ray-workers go with --engine ray; the engine is local")
        yield LOCAL
        return
    from offline.ray_engine import connected

    with connected(ray_address, own, ray_workers) as engine:
        yield engine


@contextmanager
def redis(config: Config) -> Iterator[str]:
    """The address of a Redis that answers, for as long as the block runs: REDIS_URL's, else the embedded one.

    Raises Failure where it cannot be used, inside the block too.
    """
    from redis import RedisError

    from offline.config import redis_url
    from serving.embedded import connect_url
    from serving.store import Address, StoreAway

    named = redis_url()
    try:
        if named:
            Address.of(named)
    except ValueError:
        # The reason is left out: it can quote what the address holds, a password among it.
        raise Failure(
            "REDIS_URL is no address of a Redis; expected redis://HOST:6379/0, rediss://..., unix:///path/to/socket, "
            "or redis+cluster://HOST:6379 for a cluster"
        ) from None
    try:
        with connect_url(named, config.redis) as url:
            yield url
    except (RedisError, StoreAway) as e:
        where = "the one REDIS_URL names" if named else f"the embedded one in {config.redis}"
        raise Failure(f"Redis ({where}) cannot be used: {e}") from e


def plain(text: str) -> str:
    """Text without control characters, which could move the cursor or worse: titles come from anywhere."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def say(text: str, style: str = "") -> None:
    """One remark, as it is: no markup, and no line break in the middle of a path."""
    _out.print(Text(plain(text), style=style), soft_wrap=True)


def print_table(title: str, columns: list[str], rows: list[list[str]], right: Set[int] = frozenset()) -> None:
    # Text, not markup: a title may hold brackets.
    table = Table(title=Text(plain(title)), title_justify="left", header_style="bold")
    for k, column in enumerate(columns):
        table.add_column(column, justify="right" if k in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    _out.print(table)


def today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")
