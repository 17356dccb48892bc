"""Answers of OpenSearch and Elasticsearch become candidates, and a ranking becomes hits again."""

from __future__ import annotations

from typing import Any

import pytest

from shelfwise_client import RankAnswer, RankedItem, candidates_of, reranked

ANSWER: dict[str, Any] = {
    "took": 3,
    "timed_out": False,
    "hits": {
        "total": {"value": 3, "relation": "eq"},
        "max_score": 7.5,
        "hits": [
            {"_index": "p", "_id": "a", "_score": 7.5, "_source": {"title": "Mug", "stock": 4, "at": {"km": 1.5}}},
            {"_index": "p", "_id": "b", "_score": 2.0, "_source": {"title": "Jug", "at.km": 9, "stock": [1, 2]}},
            {"_index": "p", "_id": "c", "_score": 1.25, "fields": {"stock": [0], "at.km": [3.5], "sku": [77]}},
        ],
    },
}


def answer(*item_ids: str) -> RankAnswer:
    return RankAnswer("r", "release", False, tuple(RankedItem(i, 0.0) for i in item_ids), 1.0)


def test_hits_are_candidates_in_the_order_of_the_engine() -> None:
    """With the score, and with fields of `_source` or `fields`. A field with several values has none."""
    assert candidates_of(ANSWER) == [{"id": "a", "score": 7.5}, {"id": "b", "score": 2.0}, {"id": "c", "score": 1.25}]
    assert candidates_of(ANSWER, {"stock": "stock", "distance": "at.km", "colour": "colour"}, score="bm25") == [
        {"id": "a", "bm25": 7.5, "stock": 4, "distance": 1.5, "colour": None},
        {"id": "b", "bm25": 2.0, "stock": None, "distance": 9, "colour": None},
        {"id": "c", "bm25": 1.25, "stock": 0, "distance": 3.5, "colour": None},
    ]


def test_an_answer_sorted_by_a_field_has_no_scores() -> None:
    sorted_hits = {"hits": {"hits": [{"_id": "a", "_score": None, "sort": [3]}]}}
    assert candidates_of(sorted_hits) == [{"id": "a", "score": None}]
    assert candidates_of({"hits": {"hits": []}}) == []


def test_the_item_id_may_be_a_field() -> None:
    """Where a document is a variant or an offer. A hit without it cannot be ranked."""
    variants = {"hits": {"hits": [ANSWER["hits"]["hits"][2]]}}
    assert candidates_of(variants, item_id="sku") == [{"id": "77", "score": 1.25}]
    assert reranked(variants, answer("77"), item_id="sku") == variants["hits"]["hits"]
    with pytest.raises(ValueError, match="hit 0 has no sku: pass `item_id`"):
        candidates_of(ANSWER, item_id="sku")


def test_a_ranking_orders_the_hits() -> None:
    """Each as the engine returned it. Hits that a rule removed are left out, and further hits of an item too."""
    hits = ANSWER["hits"]["hits"]
    again = {"hits": {"hits": [*hits, {"_id": "a", "_score": 0.1}]}}
    assert reranked(again, answer("c", "a")) == [hits[2], hits[0]]
