"""Helpers shared by all commands: common options, loading the configuration, opening Redis, and printing.

Imports nothing heavy, so that `--help` is fast.
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

ConfigPath = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML configuration file. Default: built-in settings.")
]
Workspace = Annotated[
    Path | None, typer.Option("--workspace", "-w", help="Folder for data, runs and releases; overrides the config.")
]
EngineName = Annotated[
    str, typer.Option("--engine", help="Where to run the work: `local` in this process, `ray` on a Ray cluster.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="Address of the Ray cluster; `auto`: the cluster of this machine. Default: only this machine."),
]

_out = Console()


def load_config(path: Path | None, workspace: Path | None, **changes: Any) -> Config:
    """The configuration of a command: the file's, overridden by the command's options. Raises ConfigError."""
    from offline.config import load

    return load(path, workspace=workspace, **changes)


@contextmanager
def open_redis(config: Config) -> Iterator[str]:
    """The URL of Redis, with the shop's prefix, for the duration of the block: REDIS_URL's, else the embedded one.

    Raises Failure if Redis cannot be used, at the start of the block or during it.
    """
    from redis import RedisError

    from offline.config import redis_url
    from serving.store import AddressError, StoreAway, connect_url, with_prefix

    url_from_environment = redis_url()
    try:
        with connect_url(url_from_environment, config.embedded) as url:
            yield with_prefix(url, config.redis.prefix)
    except AddressError as e:
        raise Failure(f"REDIS_URL is not a valid address of Redis: {e}") from e
    except (RedisError, StoreAway) as e:
        where = "from REDIS_URL" if url_from_environment else f"embedded, in {config.embedded}"
        raise Failure(f"Redis ({where}) cannot be used: {e}") from e


def printable(text: str) -> str:
    """Text with control characters replaced. Titles come from outside, and could otherwise control the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def say(text: str, style: str = "") -> None:
    """Print a line as it is: no markup, and no line breaks within paths."""
    _out.print(Text(printable(text), style=style), soft_wrap=True)


def print_table(title: str, columns: list[str], rows: list[list[str]], right: Set[int] = frozenset()) -> None:
    # Text instead of markup, because a title may contain brackets.
    """Print a table. right: numbers of the right-aligned columns."""
    table = Table(title=Text(printable(title)), title_justify="left", header_style="bold")
    for k, column in enumerate(columns):
        table.add_column(column, justify="right" if k in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    _out.print(table)


def today() -> str:
    """The current date in UTC, as YYYY-MM-DD."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def seconds(budget: str) -> float:
    """Seconds of a duration such as `90s`, `10m`, `1h30m` or `90`. Raises DataError for anything else, and for zero."""
    match = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,6})m)?(?:(\d{1,8})s?)?", budget.strip(), re.ASCII)
    total = sum(int(part) * unit for part, unit in zip(match.groups("0"), (3600, 60, 1), strict=True)) if match else 0
    if total <= 0:
        raise DataError(f"budget {budget[:50]!r} is not a duration; expected, for example, 90s, 10m or 1h30m")
    return float(total)


def with_budget(config: Config, budget_s: float) -> Config:
    """The configuration with another time budget of the encoder, in seconds."""
    return config.model_copy(update={"encoder": config.encoder.model_copy(update={"budget_s": budget_s})})
