"""The evaluation report: one self-contained HTML page, and the same content as JSON.

Styles are inline, and plots are inline SVG whose colours follow the page's light or dark theme. The page has no scripts
and no external addresses, so it can be mailed, archived and read years later; the price is that it is not interactive.
The same evaluation gives the same bytes. `docs/evaluation.md` explains how to read it.

The modules of this package turn an evaluation into plain values; only `templates/` has HTML, and it escapes all text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from offline.evaluation.report import data, formatting, models, off_policy, outcomes, plots, results
from offline.evaluation.report.conclusions import significant
from offline.evaluation.report.content import DRAWN, HEADLINE, SCHEMA, SECTIONS, level, plain, validate
from offline.runtime import write_text

__all__ = ["DRAWN", "SCHEMA", "SECTIONS", "environment", "formatting", "plots", "render", "significant", "write"]


def environment(*packages: str) -> Environment:
    """The templates of these packages, and those of this one, which they may extend and import."""
    loaders = [PackageLoader(package) for package in (*packages, "offline.evaluation.report")]
    found = Environment(
        loader=ChoiceLoader(loaders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=formatting.printable,
    )
    found.filters.update(thousands=formatting.count, decimal=formatting.decimal, moment=formatting.moment)
    return found


_TEMPLATES = environment()


def render(evaluation: Mapping[str, object]) -> str:
    """The evaluation as one self-contained HTML page.

    evaluation: `systems` (system -> slice -> {"lists": int, metric: number}) is required. `intervals` (system -> slice
    -> metric -> [low, high]), `title`, `created_at`, `release`, `level` (of the intervals; 0.95 is 95%) and the other
    `SECTIONS` are left out of the page where they are missing, None or empty. A number that is missing or not finite is
    shown as "-" and is not drawn. All text is escaped. Raises ValueError for another schema, for an evaluation without
    systems, or for an interval whose ends are swapped; TypeError, naming the place, for a value of the wrong type.
    """
    page = validate(evaluation)
    return _TEMPLATES.get_template("page.html").render(
        title=page.get("title") or "Evaluation",
        headline=HEADLINE,
        level=level(page),
        schema=SCHEMA,
        opening=results.opening(page),
        quality=results.quality(page),
        improvement=results.improvement(page),
        off_policy=off_policy.estimates(page),
        probabilities=outcomes.probabilities(page),
        objectives=outcomes.objectives(page),
        examples=results.examples(page),
        explanation=models.explanation(page),
        ranker=models.ranker(page),
        diagnostics=models.diagnostics(page),
        age=models.age(page),
        encoder=models.encoder(page),
        data=data.data(page),
        steps=data.steps(page),
        metrics=results.metrics(page),
    )


def write(evaluation: Mapping[str, object], directory: Path) -> Path:
    """Write `report.html` and `evaluation.json` to `directory`, which is created if needed; the path of `report.html`.

    Each file is replaced whole, and neither is touched when the evaluation cannot be rendered. In the JSON, numbers
    that are not finite are null. Raises what `render` raises, and OSError.
    """
    files = {
        "evaluation.json": json.dumps(plain(evaluation), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "report.html": render(evaluation),
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_text(directory / name, content)
    return directory / "report.html"
