"""The command line: what each person does with Shelfwise, one command each.

Heavy imports stay inside the commands, so that `--help` is quick and `serve` never loads torch. The commands are in
files beside this one; `--help` lists them in the order in which they are named here.
"""

from __future__ import annotations

import errno
import sys

import typer
from rich.text import Text

from offline.cli import data, evaluation, keys, log, night, releases, service
from offline.cli.terminal import printable
from offline.runtime import Failure, console

_DISK_FULL = 7

app = typer.Typer(
    name="shelfwise",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Rank products for a shopper: learn by night from what was shown and chosen, answer by day in milliseconds."
    "\n\nStart with `shelfwise demo`; with your own shop: `import`, `nightly`, `serve`.",
)

app.command()(data.simulate)
app.command(name="import")(data.import_)
app.command()(data.validate)
app.command()(log.collect)
app.command()(night.nightly)
app.command()(evaluation.evaluate)
app.command()(evaluation.tune)
app.command()(evaluation.ablate)
app.command()(evaluation.staleness)
app.command()(service.serve)
app.command()(service.embed)
app.command()(service.rank)
app.command()(service.similar)
app.command()(log.skew)
app.add_typer(releases.app)
app.add_typer(keys.app)
app.command()(night.demo)


def main() -> None:
    """The console script. Errors a person can mend are one message; anything else keeps its traceback."""
    try:
        app()
    except Exception as e:
        full = isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if not full and not isinstance(e, _mendable()):
            raise
        hint = (
            ": there is no room left on the disk; make some and start again, what is finished is kept" if full else ""
        )
        console.print(Text(f"shelfwise: {printable(str(e))}{hint}", style="bold red"), soft_wrap=True)
        sys.exit(_DISK_FULL if full else getattr(e, "status", 1))


def _mendable() -> tuple[type[Exception], ...]:
    """The errors a person can mend. Imported once there is one: a page of help needs none of it."""
    from features.custom import FeatureError
    from offline.config import ConfigError
    from offline.runtime import ApprovalNeeded, ChecksFailed, DataError, ReleaseKept
    from serving.clock import ClockError
    from serving.http import KeysError
    from serving.lock import Locked
    from serving.release import ReleaseError
    from serving.store import EmbeddedError

    # Of the operating system's errors, those about a path a person named.
    paths = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)
    night = (ChecksFailed, ReleaseKept, ApprovalNeeded, Locked)
    service = (ClockError, EmbeddedError, KeysError, ReleaseError)
    return (*night, *service, Failure, ConfigError, DataError, FeatureError, *paths)


if __name__ == "__main__":
    main()
