"""The section `experiments`: what it accepts, and the messages for what it refuses."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from offline.config.configuration import load
from serving.config import ServiceConfig
from tests.offline.config.test_config import error_of, write_config

ABOUT = "(Experiments by name: arms that are shown to different users at the same time.)"
ARMS = "arms: {control: {}, new: {release: r1}}"
WHOLE = """
placements: {home: {}, search: {}}
experiments:
  ranking-june:
    placements: [home, search]
    unit: session
    layer: ranking
    traffic: 0.5
    offset: 0.25
    salt: again
    start: 2026-06-01T00:00Z
    end: 2026-06-29T02:00:00+02:00
    where: {all: [{attribute: country, in: [DE, AT]}, {not: {attribute: visits, lt: 3}}]}
    arms:
      control: {share: 1}
      new: {share: 2, release: 20260601-0123456789, explore: 0.1}
      margin: {objective: {value: margin, weight: 0.3}}
      varied: {rules: {cap: [{attribute: brand, most: 2}]}}
      holdout: {share: 0.2, order: popularity}
"""


def test_a_whole_experiment_is_read_and_survives_the_json_that_workers_start_with(tmp_path: Path) -> None:
    config = load(write_config(tmp_path, WHOLE))
    one = config.experiments["ranking-june"]
    assert (one.unit, one.layer, one.traffic, one.offset, one.salt) == ("session", "ranking", 0.5, 0.25, "again")
    assert (one.start, one.end) == (datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 6, 29, tzinfo=UTC))
    assert (list(one.arms), set(one.releases)) == (
        ["control", "new", "margin", "varied", "holdout"],
        {"20260601-0123456789"},
    )
    service = config.service
    assert ServiceConfig.model_validate_json(service.model_dump_json()) == service


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (f"{{a b: {{{ARMS}}}}}", ".a b: 'a b' is not a valid name: use 1 to 64 letters, digits, and `_`, `.` or `-`"),
        ("{a: {}}", ".a.arms is missing (Arms by name. The first one is the control.)"),
        ("{a: {arms: {one: {}}}}", ".a.arms is {'one': {}}; at least 2 needed (Arms by name. The first one is the"),
        ("{a: {arms: {one: {share: 0}, two: {}}}}", ".a.arms.one.share is 0; expected a finite number > 0 and <= 1000"),
        ("{a: {arms: {one: {shares: 1}, two: {}}}}", ".a.arms.one.shares: no such key; valid keys: share, release, "),
        (
            "{a: {arms: {one: {}, interleaved: {}}}}",
            ".a.arms.interleaved: 'interleaved' is what the log calls a list of both arms: use another name",
        ),
        ("{a: {arms: {one: {}, two: {release: ../x}}}}", ".a.arms.two.release is '../x'; String should match"),
        (
            "{a: {arms: {one: {}, two: {order: shown, release: r}}}}",
            ".a.arms.two: `order` replaces the ranker, so that `release` has no effect: remove one of them",
        ),
        (
            "{a: {arms: {one: {}, two: {explore: 0.1, rules: {cap: [{attribute: brand, most: 2}]}}}}}",
            ".a.arms.two: a list with rules is never explored: remove `explore` or `rules`",
        ),
        (f"{{a: {{traffic: 0, {ARMS}}}}}", ".a.traffic is 0; expected a number > 0 and <= 1"),
        (f"{{a: {{traffic: 0.6, offset: 0.5, {ARMS}}}}}", ".a: `offset` + `traffic` is 1.1, more than 1: reduce one"),
        (f"{{a: {{unit: visitor, {ARMS}}}}}", ".a.unit is 'visitor'; expected 'user' or 'session'"),
        (f"{{a: {{start: 2026-06-01T00:00, {ARMS}}}}}", ".a.start is '2026-06-01T00:00'; Input should have timezone"),
        (
            f"{{a: {{start: 2026-06-02T00:00Z, end: 2026-06-01T00:00Z, {ARMS}}}}}",
            ".a: it ends at 2026-06-01T00:00:00+00:00, which is not after its start: use a later `end`",
        ),
        (f"{{a: {{where: {{attribute: x}}, {ARMS}}}}}", ".a.where: where: 'x' has no comparison; add one of eq, in, "),
        (
            f"{{a: {{where: {{attribute: x, lt: soon}}, {ARMS}}}}}",
            ".a.where: where.lt: 'x' is a date, but 'soon' is not; use ISO 8601",
        ),
        (f"{{a: {{where: {{of: x}}, {ARMS}}}}}", ".a.where: Object contains unknown field `of`"),
        (
            "{a: {interleave: true, arms: {one: {}, two: {}, three: {}}}}",
            ".a: it interleaves 3 arms: use two, or remove `interleave`",
        ),
        (
            "{a: {interleave: true, arms: {one: {}, two: {explore: 0.1}}}}",
            ".a: interleaved lists are not explored: remove `explore` or `interleave`",
        ),
        (
            "{a: {arms: {one: {}, two: {order: shown}}, placements: [home, basket]}}",
            f": a: 'basket' is not a placement; use one of home, search {ABOUT}",
        ),
        (
            f"{{a: {{{ARMS}}}, b: {{{ARMS}, placements: [home]}}}}",
            ": a and b both replace the release of the same lists: give them the same `layer`, so that no unit is in "
            f"both, or other `placements` {ABOUT}",
        ),
        (
            f"{{a: {{{ARMS}}}, b: {{arms: {{all: {{}}, none: {{order: popularity}}}}}}}}",
            ": a and b both replace the release of the same lists",
        ),
        (
            f"{{a: {{layer: x, traffic: 0.3, offset: 0, {ARMS}}}, b: {{layer: x, traffic: 0.2, {ARMS}}}}}",
            f": b needs an `offset`, since layer 'x' has several experiments: for example 0.3 {ABOUT}",
        ),
        (
            f"{{a: {{layer: x, traffic: 0.3, offset: 0, {ARMS}}}, b: {{layer: x, traffic: 0.2, offset: 0.2, {ARMS}}}}}",
            ": a has 0 to 0.3 and b has 0.2 to 0.4 of layer 'x': change `offset` or `traffic`, so that they do not "
            f"overlap {ABOUT}",
        ),
        (
            f"{{a: {{layer: x, traffic: 0.3, {ARMS}}}, b: {{layer: x, traffic: 0.2, unit: session, {ARMS}}}}}",
            ": a and b are in layer 'x' with different units: use the same `unit`, or layers",
        ),
        (
            "{a: {arms: {one: {release: r1}, two: {release: r2}, three: {release: r3}}}}",
            ": the arms have 3 releases, r1, r2, r3; at most 2 are loaded beside the live one: remove experiments that "
            f"have ended {ABOUT}",
        ),
    ],
)
def test_an_invalid_experiment_is_an_error_with_its_key(tmp_path: Path, content: str, expected: str) -> None:
    message = error_of(tmp_path, f"placements: {{home: {{}}, search: {{}}}}\nexperiments: {content}")
    assert message.startswith(f"experiments{expected}"), message


@pytest.mark.parametrize(
    "content",
    [
        f"{{a: {{{ARMS}, placements: [home]}}, b: {{{ARMS}, placements: [search]}}}}",
        f"{{a: {{{ARMS}, end: 2026-06-01T00:00Z}}, b: {{{ARMS}, start: 2026-06-01T00:00Z}}}}",
        f"{{a: {{{ARMS}}}, b: {{arms: {{all: {{}}, fewer: {{rules: {{cap: [{{attribute: brand, most: 2}}]}}}}}}}}}}",
        f"{{a: {{layer: x, traffic: 0.3, offset: 0, {ARMS}}}, b: {{layer: x, traffic: 0.2, offset: 0.3, {ARMS}}}}}",
        f"{{a: {{layer: x, {ARMS}, end: 2026-06-01T00:00Z}}, b: {{layer: x, {ARMS}, start: 2026-06-01T00:00Z}}}}",
    ],
    ids=["other placements", "one after the other", "rules add up", "parts of a layer", "a layer used again"],
)
def test_experiments_that_fit_together_are_accepted(tmp_path: Path, content: str) -> None:
    path = write_config(tmp_path, f"placements: {{home: {{}}, search: {{}}}}\nexperiments: {content}")
    assert list(load(path).experiments) == ["a", "b"]
