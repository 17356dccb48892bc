"""The command line: what each person does with Shelfwise, one command each.

Heavy imports stay inside the commands, so that `--help` is quick and `serve` never loads torch. The commands are in
`offline/commands/`; `--help` lists them in the order in which they are named here.
"""

from __future__ import annotations

import sys

import typer
from rich.text import Text

from offline.commands import data, evaluation, keys, log, night, releases, service
from offline.progress import console
from offline.terminal import Failure, plain

app = typer.Typer(
    name="shelfwise", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
    rich_markup_mode="markdown",
    help="Rank products for a shopper: learn by night from what was shown and chosen, answer by day in milliseconds."
    "\n\nStart with `shelfwise demo`; with your own shop: `import`, `nightly`, `serve`.",
)  # fmt: skip

app.command()(data.simulate)
app.command(name="import")(data.import_)
app.command()(data.validate)
app.command()(log.collect)
app.command()(night.nightly)
app.command()(evaluation.evaluate)
app.command()(evaluation.tune)
app.command()(evaluation.ablate)
app.command()(service.serve)
app.command()(service.embed)
app.command()(service.rank)
app.command()(service.similar)
app.command()(log.skew)
app.command()(releases.releases)
app.add_typer(keys.app)
app.command()(night.demo)


def main() -> None:
    """The console script. Errors a person can mend are one message; anything else keeps its traceback."""
    try:
        app()
    except Exception as e:
        if not isinstance(e, _mendable()):
            raise
        console.print(Text(f"shelfwise: {plain(str(e))}", style="bold red"), soft_wrap=True)
        sys.exit(1)


def _mendable() -> tuple[type[Exception], ...]:
    """The errors a person can mend. Imported once there is one: a page of help needs none of it."""
    from features.custom import FeatureError
    from offline.config import ConfigError
    from offline.quarantine import DataError
    from serving.embedded import EmbeddedError
    from serving.keys import KeysError
    from serving.release import ReleaseError

    # Of the operating system's errors, those about a path a person named.
    paths = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)
    return (Failure, ConfigError, DataError, EmbeddedError, FeatureError, KeysError, ReleaseError, *paths)


if __name__ == "__main__":
    main()
