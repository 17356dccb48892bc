"""Objectives of placements: the order they give, their explanation, and what a release needs for them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from pydantic import ValidationError

from features.history import EMPTY, History
from features.log import Kind
from ranker.calibration import Outcome, OutcomeMap, probabilities
from serving.config import PlacementConfig, ServiceConfig
from serving.ranking.live import Live, prepare
from serving.ranking.overlay import Overlay
from serving.release import Manifest
from serving.release.manifest import ReleaseError, as_json, read_manifest
from serving.release.release import load_release
from serving.store import BulkStore, Event, ItemFields, Pointer
from serving.store.embedded import connect_url
from tests.serving.test_keys import bearer
from tests.serving.test_recommend import AT, IDS, shop
from tests.serving.test_release import planted_items, planted_model, publish
from tests.serving.test_rules import history
from tests.serving.test_service import FAST, ready, served
from tests.serving.test_shopper_tokens import BACK, KEYS, PAGE

MAPS: dict[Outcome, OutcomeMap] = {
    "click": OutcomeMap(2.0, -3.0, 0.1, 1000),
    "purchase": OutcomeMap(3.0, -5.0, 0.02, 1000),
}
MARGIN = np.array([(7.0 * k) % 5 - 1 for k in range(20)] + [np.nan])
MARGIN[3] = np.nan


def config(**objective: Any) -> PlacementConfig:
    return PlacementConfig.model_validate({"objective": {"value": "margin", **objective}})


OBJECTIVES = {
    "cart": config(weight=0.5, floor=0.0),
    "strict": config(weight=0.5, floor=0.9),
    "off": config(weight=0),
    "ruled": PlacementConfig.model_validate(
        {
            "objective": {"value": "price", "weight": 0.3},
            "rules": {"boost": [{"when": {"attribute": "brand", "eq": "x"}}]},
        }
    ),
}


def write(root: Path, **changed: Any) -> Path:
    items = shop()
    catalogue = replace(items.catalogue, values=MARGIN[:, None], value_names=["margin"])
    model = planted_model(planted_items())
    return publish(
        root, items=replace(items, catalogue=catalogue), model_text=model, **({"calibration": MAPS} | changed)
    )


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("releases"))


@pytest.fixture(scope="module")
def live(released: Path) -> Live:
    return prepare(released, None, placements=OBJECTIVES)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, released: Path) -> Iterator[httpx.Client]:
    with connect_url(None, tmp_path_factory.mktemp("valkey")) as url:
        with BulkStore(url) as store:
            store.write([Event("e", Kind.CLICK, "u", "red-01", AT - 1)], AT)
            store.set_pointer(Pointer(released.name, str(released)))
        with served(
            url, ServiceConfig(**{**dict(FAST), "placements": OBJECTIVES}), clock=lambda: AT, good=KEYS
        ) as client:
            ready(client)
            client.headers.update(bearer(BACK))
            yield client


def test_items_are_ordered_by_relevance_and_expected_value(live: Live) -> None:
    plain = live.rank(history((0, Kind.CLICK, 1)), None, AT, None)
    found = live.apply_objective(plain, "cart")
    of = probabilities(MAPS, plain.score)
    amount = np.where(np.isnan(MARGIN), np.nanmedian(MARGIN), MARGIN)[plain.item]
    # A value of average size times the rate of purchases is the expected amount of an average item.
    average = np.nanmean(np.abs(MARGIN)) * 0.02
    total = 0.5 * of["click"] / 0.1 + 0.5 * of["purchase"] * amount / average
    assert found.item_ids == [plain.item_ids[k] for k in np.argsort(-total, kind="stable")]
    assert (np.diff(found.score) <= 0).all()
    assert found.item_ids != plain.item_ids
    assert (found.score.max(), found.score.min()) == (plain.score.max(), plain.score.min())


@pytest.mark.parametrize("placement", [None, "off"])
def test_without_an_objective_or_with_weight_0_the_ranking_is_the_same_object(
    live: Live, placement: str | None
) -> None:
    plain = live.rank(history((0, Kind.CLICK, 1)), None, AT, None)
    assert live.apply_objective(plain, placement) is plain
    assert "off" not in live.objectives


def test_items_below_the_floor_stay_behind_in_the_order_of_relevance(live: Live) -> None:
    plain = live.rank(history((0, Kind.CLICK, 1)), None, AT, None)
    found = live.apply_objective(plain, "strict")
    chance = probabilities(MAPS, plain.score)["click"]
    above = int((chance >= 0.9 * chance.max()).sum())
    assert 0 < above < 20
    assert found.item_ids[above:] == plain.item_ids[above:]
    assert found.valued is not None
    assert found.valued.below_floor.tolist() == [False] * above + [True] * (20 - above)


def test_an_item_without_the_value_and_an_unknown_item_have_the_median(live: Live) -> None:
    found = live.apply_objective(live.rank(EMPTY, [*IDS, "new"], AT, None), "cart").valued
    assert found is not None
    missing = found.amount[found.assumed]
    assert missing.tolist() == [np.nanmedian(MARGIN)] * 2


def test_a_margin_written_after_the_release_counts_at_once(live: Live) -> None:
    written = ItemFields(AT, {"a:margin": 1e4})
    changed = live.with_overlay(Overlay({"blue-02": written}, {}), placements=OBJECTIVES)
    assert changed.apply_objective(changed.rank(EMPTY, None, AT, None), "cart").item_ids[0] == "blue-02"


def test_a_value_is_not_a_feature(released: Path) -> None:
    assert not any("margin" in name for name in read_manifest(released).feature_names)
    assert load_release(released).items.catalogue.value_names == ["margin"]


# --- over HTTP ---


def ranked(client: httpx.Client, key: str = BACK, **changed: Any) -> list[dict[str, Any]]:
    answer = client.post("/v1/rank", json={"user_id": "u", "explain": True, **changed}, headers=bearer(key))
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


@pytest.mark.parametrize("placement", ["cart", "strict", "ruled"])
def test_the_parts_of_an_explained_score_add_up(client: httpx.Client, placement: str) -> None:
    for item in ranked(client, placement=placement):
        parts = item["base"] + sum(r["contribution"] for r in item["reasons"]) + item["others"]
        added = item["objective"]["added"] + sum(rule["added"] for rule in item.get("rules", []))
        assert math.isclose(parts + added, item["score"], abs_tol=1e-9)


def test_an_explanation_shows_relevance_value_and_probabilities(client: httpx.Client) -> None:
    plain = {item["item_id"]: item for item in ranked(client)}
    for item in ranked(client, placement="cart"):
        found, score = item["objective"], plain[item["item_id"]]["score"]
        chance = {name: 1 / (1 + math.exp(-(m.slope * score + m.intercept))) for name, m in MAPS.items()}
        chance["purchase"] = min(chance["purchase"], chance["click"])
        assert found["probability"] == pytest.approx(chance)
        assert found["relevance"] == pytest.approx(0.5 * chance["click"] / 0.1)
        assert found["expected"] == pytest.approx(chance["purchase"] * found["amount"])
        assert found["added"] == pytest.approx(item["score"] - score)


def test_a_list_is_as_long_as_asked_and_the_best_of_all_candidates(client: httpx.Client) -> None:
    whole = [item["item_id"] for item in ranked(client, placement="cart")]
    assert [item["item_id"] for item in ranked(client, placement="cart", limit=3)] == whole[:3]
    answer = client.post("/v1/recommend", json={"user_id": "u", "placement": "cart", "limit": 3}).json()
    assert len(answer["items"]) == 3
    assert "objective" not in answer["items"][0]


@pytest.mark.parametrize("user", ["u", None])
def test_a_public_key_sees_the_order_and_no_values(client: httpx.Client, user: str | None) -> None:
    found = ranked(client, PAGE, placement="cart", user_id=user)
    assert [item["item_id"] for item in found] == [i["item_id"] for i in ranked(client, placement="cart", user_id=user)]
    for item in found:
        assert "objective" not in item
        parts = item["base"] + sum(r["contribution"] for r in item["reasons"]) + item["others"]
        assert math.isclose(parts, item["score"], abs_tol=1e-9)


def test_a_public_key_sees_no_values_on_a_page(client: httpx.Client) -> None:
    page = {"placements": [{"placement": "cart", "limit": 3}], "explain": True}
    for key, shown in ((BACK, True), (PAGE, False)):
        (answer,) = client.post("/v1/page", json=page, headers=bearer(key)).json()["lists"]
        assert [("objective" in item) == shown for item in answer["items"]] == [True] * 3


def test_an_export_orders_a_list_as_the_service_does(client: httpx.Client, live: Live) -> None:
    clicked = History(
        np.array([IDS.index("red-01")], np.int32),
        np.array([Kind.CLICK], np.int8),
        np.array([AT - 1]),
        np.empty(0, np.int32),
        np.empty(0),
    )
    exported = live.recommend(clicked, AT, 5, 500, None, placement="cart")
    asked = {"user_id": "u", "placement": "cart", "limit": 5, "shown": False}
    answered = client.post("/v1/recommend", json=asked).json()["items"]
    assert exported.item_ids == [item["item_id"] for item in answered]
    assert exported.score.tolist() == [item["score"] for item in answered]


# --- what cannot be served ---


@pytest.mark.parametrize(
    ("maps", "changed", "message"),
    [
        ({}, {}, "placements.home.objective.outcomes: the release has no probability of a click"),
        ({"click": MAPS["click"]}, {}, "has no probability of a purchase: its log had too few"),
        (MAPS, {"value": "profit"}, "'profit' is not a numeric attribute; those are price, net weight, margin"),
    ],
)
def test_a_release_that_lacks_what_an_objective_needs_is_refused(
    tmp_path: Path, maps: dict[str, OutcomeMap], changed: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, calibration=maps)
    with pytest.raises(ReleaseError, match=message.replace(".", r"\.")):
        prepare(path, None, placements={"home": config(weight=0.5, **changed)})
    assert prepare(path, None, placements={"home": config(weight=0, **changed)}).objectives == {}


def test_a_value_that_no_item_has_is_refused(tmp_path: Path) -> None:
    items = shop()
    catalogue = replace(items.catalogue, values=np.full((21, 1), np.nan), value_names=["margin"])
    path = publish(tmp_path, items=replace(items, catalogue=catalogue), calibration=MAPS)
    with pytest.raises(ReleaseError, match="no item has a value of 'margin'"):
        prepare(path, None, placements={"home": config(weight=0.5)})


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight": 1.1},
        {"floor": -0.1},
        {"outcomes": {}},
        {"outcomes": {"view": 1}},
        {"outcomes": {"click": 0}},
        {"value": 0},
    ],
)
def test_invalid_objectives_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        config(**wrong)


def test_a_manifest_from_before_calibration_is_read_as_without_any(released: Path, tmp_path: Path) -> None:
    before = write(tmp_path, calibration={})
    assert b"calibration" not in as_json(read_manifest(before))
    assert read_manifest(before).calibration is msgspec.UNSET
    assert msgspec.json.decode(as_json(read_manifest(released)), type=Manifest).calibration == MAPS
