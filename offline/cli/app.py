"""The `shelfwise` command line, with one command per task.

Heavy imports stay inside the commands, so that `--help` is fast and `serve` never loads torch. `--help` lists the
commands in the order in which they are registered here.
"""

from __future__ import annotations

import errno
import importlib.metadata
import sys
from typing import Annotated

import typer
from rich.text import Text

from offline.cli import data, evaluation, experiments, exports, log, night, releases, service
from offline.cli.terminal import printable
from offline.runtime import Failure, console

_DISK_FULL = 7
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PATH_ERRORS = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)
"""Of the operating system's errors, only those about a path that the user passed."""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"shelfwise {importlib.metadata.version('shelfwise')}")
        raise typer.Exit


app = typer.Typer(
    name="shelfwise",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Rank products for every shopper: train nightly on what was shown and clicked, and serve in milliseconds."
    "\n\nStart with `shelfwise demo`. For your own shop, run `import`, `nightly` and `serve`.",
)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None: ...


app.command()(data.simulate)
app.command()(data.visit)
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
app.command()(exports.export)
app.command()(exports.audience)
app.command()(log.skew)
app.command()(log.earnings)
app.add_typer(releases.app)
app.add_typer(experiments.app)
app.add_typer(service.keys_app)
app.command()(night.demo)


def main() -> None:
    """The console script. Prints expected errors as one message; any other error keeps its traceback."""
    try:
        app()
    except Exception as e:
        message = _system_message(e) if isinstance(e, OSError) else None
        if message is None and not isinstance(e, _expected_errors()):
            raise
        console.print(Text(f"shelfwise: {printable(message or str(e))}", style="bold red"), soft_wrap=True)
        sys.exit(_DISK_FULL if isinstance(e, OSError) and e.errno in _FULL else getattr(e, "status", 1))


def _system_message(e: OSError) -> str | None:
    """The message for an error of the operating system that the user can fix; None for any other."""
    if e.errno in _FULL:
        return f"{e}: the disk is full; free some space and run again; finished steps are kept"
    if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and e.filename is not None:
        reason = "the file system is read-only" if e.errno == errno.EROFS else "permission denied"
        return f"{e.filename}: {reason}; change the permissions, or use another folder with --workspace"
    if isinstance(e, _PATH_ERRORS) and e.errno is not None and e.filename is not None:
        reason = e.strerror.lower() if e.strerror else "cannot be used"
        return f"{e.filename}: {reason}; check the path in the options and in the configuration"
    return None


def _expected_errors() -> tuple[type[Exception], ...]:
    """Errors whose message tells the user what to do. Imported only when an error occurs, to keep `--help` fast."""
    from features.custom import FeatureError
    from offline.config import ConfigError
    from offline.runtime import ApprovalNeeded, ChecksFailed, DataError, ReleaseKept
    from serving.clock import ClockError
    from serving.http import KeysError
    from serving.kernels import KernelsError
    from serving.lock import Locked
    from serving.release import ReleaseError
    from serving.store import EmbeddedError, EvictionError
    from text_encoder.errors import EncoderError

    nightly_errors = (ChecksFailed, ReleaseKept, ApprovalNeeded, Locked)
    service_errors = (ClockError, EmbeddedError, EvictionError, KernelsError, KeysError, ReleaseError)
    errors = (Failure, ConfigError, DataError, EncoderError, FeatureError)
    return (*nightly_errors, *service_errors, *errors, *_PATH_ERRORS)


if __name__ == "__main__":
    main()
