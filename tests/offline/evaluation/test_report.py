"""The report: its sentences and sections, and that no text or number of the data breaks the page or its JSON."""

from __future__ import annotations

import copy
import json
import os
import re
import stat
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from offline.evaluation import report
from offline.evaluation.report import formatting, plots

VOID = {"meta", "link", "br", "img", "input", "hr", "path", "use", "rect"}
HOSTILE = (
    '</title><script>alert(1)</script><img src=x onerror="alert(1)"> $x^2$ {0} %s ${body} \x00\x1b \ud800 商品 \u202e'
)


def scored(systems: dict[str, dict[str, dict[str, Any]]], half: float = 0.01) -> dict[str, Any]:
    """`systems` as given, and `intervals` of `half` on both sides of each of their metrics."""
    intervals = {
        s: {p: {m: [v - half, v + half] for m, v in e.items() if m != "lists"} for p, e in parts.items()}
        for s, parts in systems.items()
    }
    return {"systems": systems, "intervals": intervals}


def compared(b: str, difference: float, half: float, part: str = "all", a: str = "ranker") -> dict[str, Any]:
    ends = {"difference": difference, "low": difference - half, "high": difference + half}
    return {"a": a, "b": b, "metric": "ndcg@10", "slice": part, "lists": 1568, **ends}


def small() -> dict[str, Any]:
    """The smallest evaluation: one system, one slice, one metric."""
    return scored({"ranker": {"all": {"lists": 40, "ndcg@10": 0.6}}})


RELIABLE = {
    "lists": 200,
    "rows": 4800,
    "predicted": 0.1,
    "observed": 0.11,
    "error": 0.01,
    "log_loss": 0.3,
    "log_loss_of_rate": 0.32,
    "bins": [{"predicted": p, "observed": 1.1 * p, "rows": 480} for p in (0.05, 0.2)],
}


def point(weight: float) -> dict[str, Any]:
    """Figures of an objective at a weight, with changes from weight 0."""
    names = [f"{prefix}{name}" for prefix in ("", "expected_") for name in ("clicks", "earned:margin", "earned:price")]
    changes = {f"change_{name}": [-3.0, -4.0, -2.0] for name in ["ndcg@10", *names]} if weight else {}
    off_policy = {f"off_policy_{name}": [1.0, 0.5, 1.5] for name in names[:3]}
    changes |= {f"change_{name}": [-1.0, -90.0, 80.0] for name in off_policy} if weight else {}
    return {"weight": weight, **{key: [2.0, 1.9, 2.1] for key in ["ndcg@10", *names]}, **changes, **off_policy}


def full() -> dict[str, Any]:
    """An evaluation with every section."""
    means = {"popularity": 0.5, "item_click_rate": 0.55, "text": 0.52, "ranker": 0.6, "best_possible": 0.75}
    estimate = {"value": 1.0, "low": 0.9, "high": 1.1, "matches": 5000, "weight": 1.01}
    window = {"from": "2026-01-01T00:00:00+00:00", "to": "2026-01-20T00:00:00+00:00", "lists": 1568}
    return {
        "schema": 2,
        "title": "A night",
        "created_at": "2026-03-14T02:11:09+00:00",
        "release": "r-7",
        "level": 0.95,
        "data": {
            "items": 4213,
            "events": 1284551,
            "users": 9120,
            "lists": 42110,
            "lists_source": "logged",
            "lists_without_gain": 18210,
            "from": window["from"],
            "to": window["to"],
            "notes": ["seed 7"],
        },
        "windows": dict.fromkeys(("encoder", "ranker", "validation", "test"), window),
        "encoder": {
            "model": "MiniLM",
            "mode": "full",
            "stopped_by": "budget",
            "examples": 900,
            "curve": [{"epoch": i, "loss": 3.0 - i, "recall@50": 0.3 + i / 10, "ndcg@10": 0.1} for i in range(3)],
        },
        "ranker": {
            "trees": 2,
            "curve": [0.5, 0.6, 0.58],
            "importance": [[f"feature_{i}", f"meaning {i}", 100.0 - i] for i in range(25)],
        },
        **scored(
            {
                name: {part: {"lists": 1568, "ndcg@10": m, "mrr": m} for part in ("all", "cold_users")}
                for name, m in means.items()
            }
        ),
        "comparisons": [
            compared("popularity", 0.1, 0.01),
            compared("item_click_rate", 0.05, 0.01),
            compared("text", 0.08, 0.09),
            compared("popularity", 0.03, 0.04, "cold_users"),
        ],
        "examples": [{"user": "u1", "liked": ["Sock"], "before": [["Pan", "sold"]], "after": [["Boot", "like Sock"]]}],
        "quality": [["events.csv", "accepted", "", 388], ["events.csv", "quarantined", "timestamp in the future", 12]],
        "calibration": {"error": 0.01, "bins": [{"predicted": 0.1, "observed": 0.09, "rows": 9}] * 2},
        "learning_curve": [{"lists": n, "ndcg@10": 0.5, "low": 0.4, "high": 0.6} for n in (100, 200)],
        "small_slices": ["cold_users"],
        "staleness": [
            {
                "days": d,
                "lists": 90,
                "ndcg@10": 0.5,
                "low": 0.4,
                "high": 0.6,
                "lost": 0.01 * d,
                "lost_low": 0.0,
                "lost_high": 0.1,
            }
            for d in (0, 7)
        ],
        "explanation": {
            "rows": 3,
            "groups": [{"group": "price", "features": 1, "mean_abs": 0.2}],
            "features": [
                {
                    "name": "item_price",
                    "about": "price",
                    "group": "price",
                    "mean_abs": 0.2,
                    "points": [[0.2, 0.9], [-0.2, 0.1], [0.1, None]],
                }
            ],
        },
        "off_policy": {
            "k": 10,
            "lists": 900,
            "left_out": 3,
            "systems": {s: dict.fromkeys(("ips", "snips", "doubly_robust"), estimate) | {"truth": 1.02} for s in means},
        },
        "outcomes": {
            "lists": 900,
            "reliability": {
                "click": dict.fromkeys(("all", "warm_users", "cold_users", "placement:home"), RELIABLE),
                "purchase": {"all": RELIABLE},
            },
        },
        "objectives": [
            {
                "value": "margin",
                "outcomes": {"purchase": 1.0},
                "floor": 0.2,
                "placements": {"cart": 0.3},
                "lists_of": "cart",
                "lists": 1568,
                "points": [point(0), point(0.5)],
            },
            {"value": "profit", "outcomes": {"click": 1.0}, "floor": 0.2, "placements": {"x": 0.1}, "problem": "none"},
        ],
        "steps": [{"name": "train_encoder", "seconds": 121.3, "peak_mb": 1810.0}],
    }


class Page(HTMLParser):
    """The tags of a page, and its text with single spaces; fails on a tag closed out of order or a repeated id."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)
        self.close()
        self.words = " ".join(self.words.split())
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert self.open == []
        assert len(ids) == len(set(ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def page() -> str:
    return report.render(full())


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty plots, for tests of the words alone: drawing takes most of the time."""
    monkeypatch.setattr(plots, "_draw", lambda *_: '<svg viewBox="0 0 1 1"></svg>')


def verdict(evaluation: dict[str, Any]) -> str:
    found = re.search(r'<p class="verdict (\w+)">(.*?)</p>', report.render(evaluation))
    assert found
    return f"{found[1]}: {found[2]}"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.01, 0.03, True),
        (-0.03, -0.01, True),
        (-0.01, 0.03, False),
        (0.0, 0.03, False),
        (-0.03, 0.0, False),
        (float("nan"), 0.03, False),
        (0.01, float("inf"), False),
        (None, None, False),
        ("0.01", "0.03", False),
        (np.float64(0.01), np.float32(0.03), True),
    ],
)
def test_significant_means_that_the_interval_excludes_zero(low: object, high: object, expected: bool) -> None:
    assert report.significant({"low": low, "high": high}) is expected


def test_an_interval_with_swapped_ends_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"'ranker' with 'text': low 0.2 is above high 0.1; swap them"):
        report.significant({"a": "ranker", "b": "text", "low": 0.2, "high": 0.1})


def test_the_verdict_comes_first_and_is_about_the_strongest_baseline(page: str) -> None:
    """item_click_rate is the strongest: the ranker gains 0.60 - 0.55 = 0.05 on it, and 0.10 and 0.08 on the others."""
    expected = (
        "The ranker is better than item click rate, the strongest of 3 baselines: ndcg@10 0.600 against 0.550, a "
        "difference of +0.0500 [+0.0400, +0.0600] over 1,568 lists. The interval excludes zero."
    )
    words = Page(page).words
    assert expected in words
    assert words.index(expected) < words.index("Ranking quality")


@pytest.mark.usefixtures("undrawn")
def test_an_interval_across_zero_is_never_called_better() -> None:
    evaluation = {**full(), "comparisons": [compared("text", 0.01, 0.02)]}
    found = verdict(evaluation)
    assert found.startswith("undecided: No clear difference between the ranker and text: ")
    assert found.endswith("The interval does not exclude zero.")


@pytest.mark.usefixtures("undrawn")
def test_a_loss_is_called_worse() -> None:
    evaluation = {**full(), "comparisons": [compared("text", -0.05, 0.02), compared("popularity", 0.1, 0.01)]}
    assert verdict(evaluation).startswith("worse: The ranker is worse than text, the strongest of 2 baselines: ")


def fallback() -> dict[str, Any]:
    """The parts of an evaluation of a simple order, and the gate's wider interval of .05 against item_click_rate."""
    own = {"slice": "all", "rival": "item_click_rate", "difference": 0.05, "low": -0.01, "high": 0.11, "lists": 1568}
    return {
        "choice": {"simple_order": "clicks", "sentence": "This release ranks by a simple order, clicks. Why."},
        "rivals": [own],
    }


@pytest.mark.usefixtures("undrawn")
def test_a_simple_order_comes_first_in_the_verdict() -> None:
    assert verdict(full() | fallback()).startswith("undecided: This release ranks by a simple order, clicks. Why. ")


@pytest.mark.usefixtures("undrawn")
def test_the_verdict_uses_the_interval_of_the_gate() -> None:
    """[.04, .06] excludes zero, but the interval that is corrected for the choice of the rival does not."""
    assert verdict(full()).startswith("better: ")
    found = verdict(full() | {"rivals": fallback()["rivals"]})
    assert found.startswith("undecided: No clear difference between the ranker and item click rate")
    assert "+0.0500 [−0.0100, +0.1100]" in found


@pytest.mark.usefixtures("undrawn")
def test_without_a_comparison_nothing_is_claimed() -> None:
    expected = "undecided: The ranker reaches ndcg@10 0.600. It was not compared with any baseline."
    assert verdict(small()) == expected


@pytest.mark.usefixtures("undrawn")
def test_without_a_ranker_the_verdict_says_so() -> None:
    evaluation = scored({"random": {"all": {"ndcg@10": 0.3}}})
    assert verdict(evaluation).startswith("undecided: No ranker was evaluated")


@pytest.mark.usefixtures("undrawn")
def test_the_verdict_ignores_the_ceiling_other_slices_and_other_metrics() -> None:
    others = [compared("best_possible", -0.15, 0.01), compared("text", -0.2, 0.01, "cold_users")]
    others.append({**compared("text", -0.3, 0.01), "metric": "mrr"})
    evaluation = {**full(), "comparisons": [*others, compared("popularity", 0.1, 0.01)]}
    assert verdict(evaluation).startswith("better: The ranker is better than popularity: ")


def test_every_other_baseline_and_slice_has_a_remark(page: str) -> None:
    words = Page(page).words
    assert "Overall: better than popularity." in words
    assert "Overall: no clear difference from text." in words
    expected = (
        "Cold users: no clear difference from popularity, the strongest baseline there: +0.0300 [−0.0100, +0.0700]"
    )
    assert expected in words


@pytest.mark.usefixtures("undrawn")
def test_a_system_that_scores_higher_and_was_not_compared_is_named() -> None:
    evaluation = full()
    evaluation["systems"]["cooccurrence"] = {"all": {"lists": 1, "ndcg@10": 0.65}}
    expected = "co-occurrence scores higher (0.650) but was not compared with the ranker."
    assert expected in Page(report.render(evaluation)).words


def test_the_share_of_the_gap_to_the_best_possible_order(page: str) -> None:
    """(0.60 - 0.50) / (0.75 - 0.50) = 40%, and (0.60 - 0.55) / (0.75 - 0.55) = 25%."""
    words = Page(page).words
    assert "The ranker closes 40% of the gap between popularity and the best possible order." in words
    assert "The ranker closes 25% of the gap between item click rate and the best possible order." in words


@pytest.mark.usefixtures("undrawn")
def test_there_is_no_share_where_the_baseline_is_at_the_ceiling() -> None:
    evaluation = full()
    evaluation["systems"]["best_possible"]["all"]["ndcg@10"] = 0.5
    assert "gap between popularity" not in Page(report.render(evaluation)).words


@pytest.mark.usefixtures("undrawn")
def test_the_page_says_that_lists_were_rebuilt_before_any_plot() -> None:
    evaluation = full()
    evaluation["data"]["lists_source"] = "rebuilt"
    text = report.render(evaluation)
    assert text.index("The lists were rebuilt, not logged.") < text.index("<figure")


@pytest.mark.usefixtures("undrawn")
def test_test_lists_of_two_kinds_have_a_table_of_figures_by_kind() -> None:
    """The best baseline is the best simple order; the shown order has an unfair advantage and is none."""
    evaluation = full()
    evaluation["data"]["lists_source"] = "mixed"
    evaluation["lists"] = {
        "source": "mixed",
        "reason": "",
        "judged": "rebuilt",
        "kinds": {
            "logged": {
                "lists": 21,
                "ndcg@10": {
                    "ranker": [0.61, 0.5, 0.7],
                    "popularity": [0.55, 0.4, 0.7],
                    "shown_order": [0.9, 0.8, 1.0],
                    "text": [None, None, None],
                },
            },
            "rebuilt": {"lists": 1568, "ndcg@10": {"ranker": [0.31, 0.3, 0.32], "text": [0.22, 0.2, 0.24]}},
        },
    }
    words = Page(report.render(evaluation)).words
    assert "All figures below are of the rebuilt lists" in words
    assert "logged lists210.610 [0.500, 0.700]popularity 0.550 [0.400, 0.700]" in words
    assert "rebuilt lists1,5680.310 [0.300, 0.320]text 0.220 [0.200, 0.240]" in words
    del evaluation["lists"]["kinds"]["logged"]
    assert "of two kinds" not in Page(report.render(evaluation)).words


def test_logged_lists_are_not_called_rebuilt(page: str) -> None:
    assert "rebuilt" not in Page(page).words


def test_the_page_is_self_contained(page: str) -> None:
    tags = Page(page).tags
    assert {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object", "a"} == set()
    links = [
        value or "" for _, attributes in tags for name, value in attributes.items() if name.endswith(("href", "src"))
    ]
    assert [link for link in links if not link.startswith("#")] == []
    assert re.findall(r"url\((?!#)|@import", page) == []


def test_plots_use_the_colours_of_the_page_in_both_themes(page: str) -> None:
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert re.findall(r"#[0-9a-f]{6}\b(?=[;\"])", drawn) == []
    assert "var(--accent)" in drawn
    assert "prefers-color-scheme: dark" in page


def test_every_plot_has_a_caption_and_a_text_alternative(page: str) -> None:
    """2 of quality, 2 of improvement, 1 off-policy, 3 of SHAP values, 2 of the ranker, 2 diagnostics, 1 of model age, 2
    of the encoder, 1 of time, 2 of probabilities, 1 of an objective = 19."""
    parsed = Page(page)
    named = [attributes for tag, attributes in parsed.tags if tag == "svg" and attributes.get("aria-label")]
    assert (parsed.count("figure"), parsed.count("figcaption"), len(named)) == (19, 19, 19)


def test_every_table_has_a_caption_and_every_header_a_scope(page: str) -> None:
    parsed = Page(page)
    assert parsed.count("caption") == parsed.count("table") > 0
    assert {attributes.get("scope") for tag, attributes in parsed.tags if tag == "th"} == {"col", "row"}


def test_the_twenty_strongest_features_are_drawn_and_all_are_listed(page: str) -> None:
    plot = next(p for p in re.findall(r"<figure>.*?</figure>", page, re.DOTALL) if "<b>Split gain.</b>" in p)
    assert plot.count(">feature_") == 20
    assert "meaning 24" in page


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("missing", [name for name in report.SECTIONS if name not in ("systems", "intervals")])
@pytest.mark.parametrize("how", ["absent", "none", "empty"])
def test_a_missing_section_is_left_out_cleanly(missing: str, how: str) -> None:
    words = {
        "comparisons": "Improvement over the baselines",
        "encoder": "Text encoder",
        "ranker": "Training curve",
        "examples": "Example lists",
        "steps": "Time and memory",
        "data": "lists without gain",
        "windows": "Windows for training",
        "quality": "Import result of every row",
        "calibration": "Calibration",
        "learning_curve": "Learning curve",
        "explanation": "Feature importance",
        "off_policy": "Off-policy estimates",
        "small_slices": "Slices marked *",
        "outcomes": "log loss of the rate",
        "objectives": "Clicks against earned margin",
        "staleness": "Model age",
        "choice": "This release ranks by a simple order",
        "rivals": "[−0.0100, +0.1100]",
    }
    evaluation = full()
    if missing in ("choice", "rivals"):
        evaluation |= fallback()
    assert words[missing] in Page(report.render(evaluation)).words
    if how == "absent":
        del evaluation[missing]
    else:
        evaluation[missing] = None if how == "none" else type(evaluation[missing])()
    page = report.render(evaluation)
    assert words[missing] not in Page(page).words
    assert re.findall(r"<h2>[^<]*</h2>\s*</section>|<(ul|p|ol|div|tbody)[^>]*>\s*</\1>", page) == []


@pytest.mark.parametrize(
    ("value", "signed", "expected"),
    [
        (-3.5494e-05, True, "0.0000"),
        (0.00005001, True, "+0.0001"),
        (-0.25, False, "−0.2500"),
        (2.5e6, False, "2.5000e+06"),
        (float("nan"), False, "-"),
        ("3", False, "-"),
    ],
)
def test_a_number_that_rounds_to_zero_has_no_sign_and_no_exponent(value: object, signed: bool, expected: str) -> None:
    assert formatting.decimal(value, 4, signed) == expected


def test_without_intervals_the_numbers_stand_alone() -> None:
    evaluation = {**full(), "intervals": None}
    assert "0.600 [-, -]" in Page(report.render(evaluation)).words


def test_systems_alone_are_enough_for_a_page() -> None:
    parsed = Page(report.render(small()))
    assert parsed.count("h2") == 2
    assert parsed.count("figure") == 1


def everywhere(value: Any, change: Callable[[Any], Any]) -> Any:
    """The value with every leaf changed."""
    if isinstance(value, dict):
        return {key: everywhere(inner, change) for key, inner in value.items()}
    return [everywhere(inner, change) for inner in value] if isinstance(value, list) else change(value)


def test_hostile_text_is_escaped_everywhere() -> None:
    """Every string of the evaluation is hostile, names of systems, slices, metrics and features too."""
    evaluation = everywhere(full(), lambda v: HOSTILE if isinstance(v, str) else v)
    evaluation["systems"][HOSTILE] = {"all": {HOSTILE: 0.2}, HOSTILE: {"ndcg@10": 0.1}}
    evaluation["systems"]["ranker"][HOSTILE] = {"lists": 3, "ndcg@10": 0.4}
    evaluation["comparisons"] = [
        {**compared(HOSTILE, 0.1, 0.2, part), "a": a} for part in ("all", HOSTILE) for a in ("ranker", HOSTILE)
    ]
    evaluation["windows"][HOSTILE] = {"from": HOSTILE, "to": HOSTILE, "lists": HOSTILE}
    evaluation["encoder"]["curve"] = [{"epoch": 1, "loss": 1.0, HOSTILE: 0.5}, {"epoch": 2, "loss": 0.9, HOSTILE: 0.6}]
    text = report.render(evaluation)
    parsed = Page(text)
    assert {tag for tag, _ in parsed.tags} & {"script", "img"} == set()
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert "<script>alert(1)" in parsed.words
    assert text.encode()
    assert "\x00" not in text


@pytest.mark.parametrize(
    "number", [float("nan"), float("inf"), -float("inf"), None, 1e300, -1e300, 10**400, "many", True]
)
def test_unusual_numbers_anywhere_do_not_break_the_page(number: object) -> None:
    changed = everywhere(full(), lambda v: number if isinstance(v, float | int) else v)
    changed["schema"] = 2
    Page(report.render(changed))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("missing", [float("nan"), float("inf"), None])
def test_a_number_that_is_not_finite_is_a_dash_on_the_page_and_null_in_the_json(
    missing: object, tmp_path: Path
) -> None:
    evaluation = small()
    evaluation["systems"]["ranker"]["all"]["mrr"] = missing
    evaluation["intervals"]["ranker"]["all"]["mrr"] = [missing, missing]
    page = report.write(evaluation, tmp_path).read_text("utf-8")
    assert '<td class="number">- [-, -]</td>' in page
    found = json.loads((tmp_path / "evaluation.json").read_text("utf-8"))
    assert found["systems"]["ranker"]["all"]["mrr"] is None
    assert found["intervals"]["ranker"]["all"]["mrr"] == [None, None]


def test_one_user_has_a_dot_without_an_interval() -> None:
    """With one cluster there is no bootstrap: the ends are NaN, but the value is finite."""
    evaluation = small()
    evaluation["intervals"]["ranker"]["all"]["ndcg@10"] = [float("nan"), float("nan")]
    assert Page(report.render(evaluation)).count("figure") == 1


def test_the_same_evaluation_gives_the_same_bytes_under_any_matplotlib_settings(page: str) -> None:
    import matplotlib

    with matplotlib.rc_context(
        {"font.size": 30, "svg.fonttype": "path", "lines.linewidth": 9, "axes.facecolor": "red"}
    ):
        before = dict(matplotlib.rcParams)
        assert report.render(full()) == page
        assert dict(matplotlib.rcParams) == before


def test_rendering_does_not_change_the_evaluation() -> None:
    evaluation = full()
    original = copy.deepcopy(evaluation)
    report.render(evaluation)
    assert evaluation == original


def test_the_json_renders_to_the_same_page_as_the_evaluation(tmp_path: Path, page: str) -> None:
    path = report.write(full(), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "report.html"
    assert path.read_text("utf-8") == page
    assert report.render(json.loads((path.parent / "evaluation.json").read_text("utf-8"))) == page


@pytest.mark.usefixtures("undrawn")
def test_numpy_values_are_written_as_plain_numbers(tmp_path: Path) -> None:
    evaluation = small()
    evaluation["systems"]["ranker"]["all"] = {"lists": np.int64(3), "ndcg@10": np.float32(0.5)}
    evaluation["ranker"] = {"curve": np.array([0.25, np.nan])}
    report.write(evaluation, tmp_path)
    found = json.loads((tmp_path / "evaluation.json").read_text("utf-8"))
    assert found["systems"]["ranker"]["all"] == {"lists": 3, "ndcg@10": 0.5}
    assert found["ranker"]["curve"] == [0.25, None]


@pytest.mark.usefixtures("undrawn")
def test_writing_leaves_exactly_two_files(tmp_path: Path) -> None:
    report.write(small(), tmp_path)
    report.write(small(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation.json", "report.html"]
    assert {bool(path.stat().st_mode & stat.S_IRUSR) for path in tmp_path.iterdir()} == {True}


@pytest.mark.usefixtures("undrawn")
def test_an_evaluation_that_cannot_be_rendered_leaves_the_old_report_in_place(tmp_path: Path) -> None:
    old = report.write(small(), tmp_path).read_bytes()
    with pytest.raises(ValueError, match="nothing to report"):
        report.write({"systems": {}}, tmp_path)
    assert (tmp_path / "report.html").read_bytes() == old


@pytest.mark.usefixtures("undrawn")
def test_a_write_that_fails_halfway_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = report.write(small(), tmp_path).read_bytes()

    def full_disk(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        report.write({**small(), "title": "new"}, tmp_path)
    assert (tmp_path / "report.html").read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation.json", "report.html"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"schema": 1}, ValueError, r"schema 1: this report reads schema 2; run the evaluation again"),
        ({"systems": None}, ValueError, r"evaluation\['systems'\] is missing or empty"),
        ({"systems": ["ranker"]}, TypeError, r"evaluation\['systems'\] is a list, expected a dict"),
        (
            {"systems": {"a": {"all": 3}}},
            TypeError,
            r"evaluation\['systems'\]\['a'\]\['all'\] is a int, expected a dict",
        ),
        (
            {"intervals": {"ranker": [3]}},
            TypeError,
            r"evaluation\['intervals'\]\['ranker'\] is a list, expected a dict",
        ),
        (
            {"intervals": {"ranker": {"all": {"ndcg@10": 0.1}}}},
            TypeError,
            r"evaluation\['intervals'\]\['ranker'\]\['all'\]\['ndcg@10'\] is a float, expected a list",
        ),
        ({"comparisons": [3]}, TypeError, r"evaluation\['comparisons'\]\[0\] is a int, expected a dict"),
        ({"title": b"bytes"}, TypeError, r"evaluation\['title'\] is a bytes, expected text, a number, a list"),
        ({"data": {3: "x"}}, TypeError, r"evaluation\['data'\]: key 3 is a int, expected str"),
    ],
)
def test_a_wrong_type_is_rejected_with_its_place(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        report.render({**small(), **change})


texts = st.text(st.characters(), max_size=20)
numbers = st.one_of(st.floats(), st.integers(), st.none())
parts = st.one_of(st.sampled_from(report.DRAWN), texts)
slices = st.dictionaries(parts, st.fixed_dictionaries({"lists": numbers, "ndcg@10": numbers}), max_size=2)
ends = st.dictionaries(parts, st.fixed_dictionaries({"ndcg@10": st.lists(numbers, max_size=3)}), max_size=2)
names = st.one_of(st.sampled_from(["ranker", "popularity", "best_possible"]), texts)


@settings(max_examples=15, deadline=None)
@given(
    systems=st.dictionaries(names, slices, min_size=1, max_size=3),
    intervals=st.dictionaries(names, ends, max_size=3),
    title=texts,
    importance=st.lists(st.tuples(texts, texts, numbers), max_size=4),
)
@example(systems={"": {}}, intervals={}, title="", importance=[("", "", 1.7e308)])
@example(systems={"": {}}, intervals={}, title="", importance=[("", "", 1.7e308), ("", "", 1.7e308), ("", "", 5e-324)])
@example(systems={"": {}}, intervals={}, title="", importance=[("", "", 5e-324), ("", "", 1.0)])
def test_any_texts_and_numbers_make_a_page_that_parses(
    systems: Any, intervals: Any, title: str, importance: Any
) -> None:
    evaluation = {"systems": systems, "intervals": intervals, "title": title, "ranker": {"importance": importance}}
    Page(report.render(evaluation))


def test_an_objective_shows_what_each_weight_earns_and_costs(page: str) -> None:
    words = Page(page).words
    assert "purchase times margin, floor 0.20" in words
    assert "Placements: cart (weight 0.30)." in words
    assert "of 1,568 lists of this placement" in words
    assert "2.000 (−3.0% [−4.0, −2.0])" in words
    assert "1.000 (−1.0% [−90.0, +80.0])" in words
    assert "The service refuses a release with this objective: none" in words
