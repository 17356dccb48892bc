"""Commands that make a release: the night, and the demo that goes the whole way."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offline.commands.evaluation import say_evaluation
from offline.progress import bar
from offline.terminal import ConfigPath, Failure, Workspace, configured, redis, say, today

if TYPE_CHECKING:
    from offline.config import Config


def nightly(
    config: ConfigPath = None,
    workspace: Workspace = None,
    publish: Annotated[bool, typer.Option(help="Make the release live when it is done.")] = True,
) -> None:
    """The night: fine-tune the encoder, replay the log, train the ranker, evaluate, release, publish.

    Killed anywhere and started again it goes on after the last finished step. The live release changes last.
    """
    c = configured(config, workspace)
    made, report = made_by_night(c, publish)
    say(f"report: {report}")
    say(f"release {made.id}: {made.path}")


def made_by_night(config: Config, publish: bool) -> tuple[Any, Path]:
    """The release, and where its report is."""
    from offline.nightly import Night

    with redis(config) as url:
        night = Night(config, url if publish else None)
        made = night()
    say_evaluation(night.run.file("evaluation.json"))
    return made, night.run.file("report.html")


def demo(
    config: ConfigPath = None,
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Where everything made is kept.")] = Path("demo"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the service.")] = 8000,
    stay: Annotated[bool | None, typer.Option(help="Keep serving afterwards; default only in a terminal.")] = None,
) -> None:
    """The whole way once: simulate a shop, run the night, serve it, and watch three clicks rearrange a list."""
    from offline.demo import ServiceDown, show
    from offline.simulate import simulate as run

    c = configured(config, workspace)
    shop = c.simulate.model_copy(update={"end": datetime.fromisoformat(f"{today()}T00:00:00+00:00")})
    with bar("Simulating a shop") as on_progress:
        run(shop, c.data, on_progress)
    with redis(c) as url:
        made, report = made_by_night(c, True)
        try:
            show(c, url, made.id, report, port, sys.stdout.isatty() if stay is None else stay)
        except ServiceDown as e:
            raise Failure(str(e)) from e
