"""The report of an evaluation: one HTML page that a person who was not there can read, and the same content as JSON.

The page carries everything in itself: style inline, plots as inline SVG whose colours follow the page's light or dark
theme, no script and no address. It gave up interaction for that: a report is mailed, archived and read years later.
The same evaluation gives the same bytes. `docs/evaluation.md` says how to read it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template

from offline.evaluation.report import data, models, off_policy, results
from offline.evaluation.report.conclusions import significant
from offline.evaluation.report.content import DRAWN, SCHEMA, SECTIONS, plain, validate
from offline.evaluation.report.formatting import escape

__all__ = ["DRAWN", "SCHEMA", "SECTIONS", "render", "significant", "write"]


def render(evaluation: Mapping[str, object]) -> str:
    """The evaluation as one self-contained HTML page.

    evaluation: `systems` (system -> slice -> {"lists": int, metric: number}) is needed; `intervals` (system -> slice
    -> metric -> [low, high]), `title`, `created_at`, `release`, `level` (of the intervals, 0.95 is 95%) and the
    sections of `SECTIONS` are left out of the page where they are missing, None or empty. A number that is missing or
    not finite reads "-" and is not drawn. All text is escaped. Raises ValueError for another schema, without systems or
    for a comparison whose interval ends are swapped, TypeError naming the place of a value of the wrong type.
    """
    page = validate(evaluation)
    parts = [
        results.opening(page),
        results.quality(page),
        results.gained(page),
        off_policy.worth(page),
        results.examples(page),
        models.explanation(page),
        models.ranker(page),
        models.trust(page),
        models.age(page),
        models.encoder(page),
        data.data(page),
        data.steps(page),
        results.figures(page),
        f'<p class="meta">evaluation.json beside this page holds the same content (schema {SCHEMA}).</p>',
    ]
    skeleton = resources.files("offline.evaluation.report").joinpath("report.html").read_text("utf-8")
    title = escape(page.get("title") or "Evaluation")
    return Template(skeleton).substitute(title=title, body="\n".join(p for p in parts if p))


def write(evaluation: Mapping[str, object], directory: Path) -> Path:
    """The path of `report.html`, written with `evaluation.json` beside it; the directory is made if need be.

    Each file is replaced whole, and neither is touched when the evaluation cannot be rendered. In the JSON, numbers
    that are not finite are null. Raises what `render` raises, and OSError.
    """
    files = {
        "evaluation.json": json.dumps(plain(evaluation), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "report.html": render(evaluation),
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        aside = directory / f".{name}.{os.getpid()}"
        try:
            with aside.open("w", encoding="utf-8", newline="\n") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(directory / name)
        finally:
            aside.unlink(missing_ok=True)
    return directory / "report.html"
