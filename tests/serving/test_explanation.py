"""Explanations of scores: additive parts, reasons without repetition or contradiction, and the similar item's event."""

from __future__ import annotations

import re
from collections.abc import Sequence

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.arrays import F32, F64
from features.context import Context
from features.history import EMPTY, History
from features.log import KINDS, Kind
from features.moment import Reasons
from features.table import Feature, features, rows
from serving.ranking.explanation import Explainer, Nearest, ScoreParts, nearest_engaged
from serving.ranking.ranking import Ranking
from tests.serving.test_release import CUT_OFF, planted_items
from tests.serving.test_service import click, client, releases, running, url

__all__ = ["client", "releases", "running", "url"]
ITEMS = planted_items()
FEATURES = features(ITEMS)
EXPLAINER = Explainer(FEATURES)
QUERY = Context(query="red thing")
USER = History(
    np.array([3, 4], np.int32),
    np.array([Kind.CLICK, Kind.CART], np.int8),
    CUT_OFF - np.array([1.0, 2.0]),
    np.array([3, 9], np.int32),
    CUT_OFF - np.array([3.0, 4.0]),
)
values = st.one_of(st.just(float("nan")), st.sampled_from([0.0, 1.0]), st.floats(-9, 9, width=32))
shares = st.one_of(st.just(0.0), st.floats(-5, 5))


def ranking_of(table: F32, contributions: F64, bonus: float = 0.0) -> Ranking:
    """A ranking of the first items with these feature rows, scored by the sum of their contributions and the bonus."""
    item = np.arange(len(table), dtype=np.int32)
    ids = [ITEMS.catalogue.item_ids[row] for row in item.tolist()]
    return Ranking(ids, item, contributions.sum(axis=1) + bonus, table, np.full(len(table), bonus))


def explain_row(
    row: Sequence[float],
    contributions: Sequence[float],
    *,
    explainer: Explainer = EXPLAINER,
    bonus: float = 0.0,
    most: int = 100,
) -> tuple[ScoreParts, float]:
    """The parts of one item's score, and the score. contributions: one per feature, then the base."""
    shap = np.array([contributions])
    ranking = ranking_of(np.array([row], np.float32), shap, bonus)
    (parts,) = explainer.explain(ranking, shap, USER, most, QUERY)
    return parts, float(ranking.score[0])


@st.composite
def explained_rows(draw: st.DrawFn) -> tuple[list[float], list[float], float]:
    """Feature values, contributions (one per feature, then the base), and the query bonus.

    As in a release, there is a bonus only if the model does not use the query features.
    """
    row = draw(st.lists(values, min_size=len(FEATURES), max_size=len(FEATURES)))
    contributions = draw(st.lists(shares, min_size=len(FEATURES) + 1, max_size=len(FEATURES) + 1))
    bonus = draw(shares)
    if bonus:
        contributions = [
            0.0 if k < len(FEATURES) and FEATURES[k].group == "query" else c for k, c in enumerate(contributions)
        ]
    return row, contributions, bonus


@settings(max_examples=40, deadline=None)
@given(explained_rows(), st.integers(0, 8))
def test_base_reasons_and_others_add_up_to_the_score(
    example: tuple[list[float], list[float], float], most: int
) -> None:
    row, contributions, bonus = example
    parts, score = explain_row(row, contributions, bonus=bonus, most=most)
    assert parts.base == contributions[-1]
    assert parts.base + sum(r.contribution for r in parts.reasons) + parts.others == pytest.approx(score, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(explained_rows(), st.integers(0, 8))
def test_reasons_are_the_strongest_ones_in_order(example: tuple[list[float], list[float], float], most: int) -> None:
    row, contributions, bonus = example
    parts, _ = explain_row(row, contributions, bonus=bonus, most=most)
    every, _ = explain_row(row, contributions, bonus=bonus)
    sizes = [abs(r.contribution) for r in every.reasons]
    assert sizes == sorted(sizes, reverse=True)
    assert parts.reasons == every.reasons[:most]


@settings(max_examples=40, deadline=None)
@given(explained_rows())
def test_no_reason_text_is_repeated_for_an_item(example: tuple[list[float], list[float], float]) -> None:
    row, contributions, bonus = example
    parts, _ = explain_row(row, contributions, bonus=bonus)
    texts = [r.text for r in parts.reasons]
    assert len(set(texts)) == len(texts)


@settings(max_examples=40, deadline=None)
@given(explained_rows())
def test_no_reason_is_contradicted_by_another_of_the_same_family(
    example: tuple[list[float], list[float], float],
) -> None:
    """Of the texts for a family (raises, lowers, zero), an item has at most one."""
    row, contributions, bonus = example
    parts, _ = explain_row(row, contributions, bonus=bonus)
    texts = {r.text for r in parts.reasons}
    for family in {f.reasons for f in FEATURES if f.reasons is not None and f.group != "query"}:
        assert len(texts & set(family)) <= 1


@settings(max_examples=40, deadline=None)
@given(explained_rows())
def test_a_feature_with_a_missing_value_is_never_a_reason(example: tuple[list[float], list[float], float]) -> None:
    row, contributions, bonus = example
    parts, _ = explain_row(row, contributions, bonus=bonus)
    value = dict(zip((f.name for f in FEATURES), row, strict=True)) | ({"query": 1.0} if bonus else {})
    assert not [r.feature for r in parts.reasons if np.isnan(value[r.feature])]


@pytest.mark.parametrize("feature", [f for f in FEATURES if f.reasons is not None], ids=lambda f: f.name)
def test_a_positive_and_a_negative_contribution_of_a_feature_have_different_texts(feature: Feature) -> None:
    """For a value other than 0, which may have a text of its own."""
    k = FEATURES.index(feature)
    texts = []
    for contribution in (0.5, -0.5):
        contributions = [0.0] * (len(FEATURES) + 1)
        contributions[k] = contribution
        parts, _ = explain_row([1.0] * len(FEATURES), contributions)
        (reason,) = parts.reasons
        assert (reason.feature, reason.contribution) == (feature.name, contribution)
        texts.append(reason.text)
    assert texts[0] != texts[1]


def test_a_family_is_one_reason_with_the_sum_of_its_contributions() -> None:
    """2 - 3 + 0.5 = -0.5, so the text is for a negative contribution; the feature is the strongest one."""
    texts = Reasons("often", "rarely")
    family = [Feature(name, "", "", "", lambda m: 0.0, reasons=texts) for name in ("a_1d", "a_7d", "a_30d")]
    parts, score = explain_row([1.0] * 3, [2.0, -3.0, 0.5, 10.0], explainer=Explainer(family))
    assert [tuple(r) for r in parts.reasons] == [("a_7d", -0.5, "rarely")]
    assert (parts.base, parts.others, score) == (10.0, 0.0, 9.5)


def test_a_feature_and_its_comparison_with_the_list_are_one_reason() -> None:
    """1 for the click rate + 2 for its rank in the list, which is the stronger one and gives the text."""
    contributions = dict.fromkeys((f.name for f in FEATURES), 0.0)
    contributions |= {"item_click_rate_30d": 1.0, "item_click_rate_30d_rank": 2.0}
    parts, _ = explain_row([0.0] * len(FEATURES), [*contributions.values(), 0.0])
    text = "often clicked when shown, compared with this list"
    assert [tuple(r) for r in parts.reasons] == [("item_click_rate_30d_rank", 3.0, text)]


def test_a_family_whose_contributions_cancel_out_is_no_reason() -> None:
    texts = Reasons("often", "rarely")
    family = [Feature(name, "", "", "", lambda m: 0.0, reasons=texts) for name in ("a_1d", "a_7d")]
    parts, _ = explain_row([1.0, 1.0], [2.0, -2.0, 10.0], explainer=Explainer(family))
    assert parts == ScoreParts(10.0, [], 0.0)


@pytest.mark.parametrize(
    ("bonus", "text"), [(0.5, 'matches "red thing"'), (-0.5, 'does not match "red thing"')], ids=["match", "no match"]
)
def test_a_query_bonus_is_a_reason_with_the_query(bonus: float, text: str) -> None:
    parts, _ = explain_row([1.0] * len(FEATURES), [0.0] * (len(FEATURES) + 1), bonus=bonus)
    assert [tuple(r) for r in parts.reasons] == [("query", bonus, text)]


ABOUT_THE_USER = re.compile(r"\b(you|your)\b(?! search)")


@settings(max_examples=40, deadline=None)
@given(st.lists(shares, min_size=len(FEATURES) + 1, max_size=len(FEATURES) + 1))
def test_a_user_without_history_gets_no_reason_about_their_history(contributions: list[float]) -> None:
    """On feature rows as the service computes them. These contributions still count towards `others`."""
    every = np.arange(len(ITEMS.catalogue), dtype=np.int32)
    table = rows(ITEMS, EMPTY, every, CUT_OFF, QUERY)
    shap = np.tile(contributions, (len(table), 1))
    ranking = ranking_of(table, shap)
    about_history = {f.name for f in FEATURES if f.of_history}
    for parts, score in zip(EXPLAINER.explain(ranking, shap, EMPTY, 100, QUERY), ranking.score, strict=True):
        assert not about_history & {r.feature for r in parts.reasons}
        assert not [r.text for r in parts.reasons if ABOUT_THE_USER.search(r.text)]
        assert parts.base + sum(r.contribution for r in parts.reasons) + parts.others == pytest.approx(score, abs=1e-9)


def test_a_feature_whose_reasons_are_about_the_user_is_declared_as_one_of_their_history() -> None:
    """Those of the catalogue's attributes, too. A few declared ones do not say it: "bought before"."""
    about = {f.name for f in FEATURES if f.reasons and ABOUT_THE_USER.search(" / ".join(f.reasons))}
    assert about < {f.name for f in FEATURES if f.of_history}
    assert {"net_weight_slope", "hue_share", "hue_residual", "price_to_habit", "text_pooled_rank"} <= about


def test_a_user_with_history_gets_reasons_about_it() -> None:
    """The counterpart of the test above: these texts exist, and are recognised."""
    table = rows(ITEMS, USER, np.array([3], np.int32), CUT_OFF)
    shap = np.ones((1, len(FEATURES) + 1))
    (parts,) = EXPLAINER.explain(ranking_of(table, shap), shap, USER, 100)
    assert [r.text for r in parts.reasons if ABOUT_THE_USER.search(r.text)]


def history_of(*events: tuple[str, Kind]) -> History:
    """A history of these (item id, kind), newest first."""
    n = len(events)
    item = ITEMS.catalogue.rows([item_id for item_id, _ in events])
    kind = np.array([kind for _, kind in events], np.int8)
    return History(item, kind, CUT_OFF - np.arange(1.0, n + 1), np.empty(0, np.int32), np.empty(0))


def nearest_to(item_id: str, history: History) -> Nearest | None:
    item = ITEMS.catalogue.rows([item_id])
    ranking = Ranking([item_id], item, np.zeros(1), np.zeros((1, 1), np.float32), np.zeros(1))
    (nearest,) = nearest_engaged(ITEMS.vectors, ranking, history)
    return nearest


@pytest.mark.parametrize("kind", [k for k in Kind if k != Kind.IMPRESSION], ids=lambda k: k.name.lower())
def test_the_similar_item_has_the_users_event_with_it(kind: Kind) -> None:
    nearest = nearest_to("red-03", history_of(("red-01", kind), ("blue-00", Kind.RATING)))
    assert nearest is not None
    assert (ITEMS.catalogue.item_ids[nearest.row], nearest.event) == ("red-01", KINDS[kind])


def test_the_similar_item_has_the_latest_of_several_events() -> None:
    nearest = nearest_to("red-03", history_of(("red-01", Kind.PURCHASE), ("red-01", Kind.VIEW)))
    assert nearest is not None
    assert nearest.event == "purchase"


def test_an_item_is_not_similar_to_itself_and_without_history_there_is_none() -> None:
    assert nearest_to("red-01", history_of(("red-01", Kind.CLICK))) is None
    assert nearest_to("red-01", history_of(("unknown", Kind.CLICK))) is None
    assert nearest_to("red-01", EMPTY) is None


@pytest.mark.parametrize("event", ["purchase", "view"])
def test_because_in_a_response_names_the_event(client: httpx.Client, event: str) -> None:
    client.post("/v1/events", json=click("red-01") | {"event": event}).raise_for_status()
    request = {"user_id": "u", "candidates": ["red-03"], "explain": True}
    (item,) = client.post("/v1/rank", json=request).json()["items"]
    assert (item["because"]["item_id"], item["because"]["event"]) == ("red-01", event)
