"""What every command shares: the options that name a configuration, Redis, and how things are said to a person.

Nothing heavy is imported here, so that `--help` is quick.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from offline.runtime import DataError, Failure

if TYPE_CHECKING:
    from offline.config import Config

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


def load_config(path: Path | None, workspace: Path | None, **changes: Any) -> Config:
    """The configuration of a command: the file's, with the options a person gave over it. Raises ConfigError."""
    from offline.config import load

    return load(path, workspace=workspace, **changes)


@contextmanager
def open_redis(config: Config) -> Iterator[str]:
    """The address of a Redis that answers, for as long as the block runs: REDIS_URL's, else the embedded one.

    Raises Failure where it cannot be used, inside the block too.
    """
    from redis import RedisError

    from offline.config import redis_url
    from serving.store import Address, StoreAway, connect_url

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


def printable(text: str) -> str:
    """Text without control characters, which could move the cursor or worse: titles come from anywhere."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def say(text: str, style: str = "") -> None:
    """One remark, as it is: no markup, and no line break in the middle of a path."""
    _out.print(Text(printable(text), style=style), soft_wrap=True)


def print_table(title: str, columns: list[str], rows: list[list[str]], right: Set[int] = frozenset()) -> None:
    # Text, not markup: a title may hold brackets.
    table = Table(title=Text(printable(title)), title_justify="left", header_style="bold")
    for k, column in enumerate(columns):
        table.add_column(column, justify="right" if k in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    _out.print(table)


def today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def seconds(budget: str) -> float:
    """Seconds of a time such as `90s`, `10m`, `1h30m` or `90`. Raises DataError for anything else, and for none."""
    found = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,6})m)?(?:(\d{1,8})s?)?", budget.strip(), re.ASCII)
    total = sum(int(part) * unit for part, unit in zip(found.groups("0"), (3600, 60, 1), strict=True)) if found else 0
    if total <= 0:
        raise DataError(f"budget {budget[:50]!r} is no time; expected one such as 90s, 10m or 1h30m")
    return float(total)
