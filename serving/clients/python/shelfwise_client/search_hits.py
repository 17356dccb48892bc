"""Reranking of a search engine's answer: hits of OpenSearch or Elasticsearch to candidates, and a ranking back to hits.

found = engine.search(index="products", query={"match": {"title": text}}, size=100)
ranking = shop.rank(user_id, candidates_of(found, {"stock": "stock"}), query=text)
page = reranked(found, ranking)[:24]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shelfwise_client.answers import RankAnswer
from shelfwise_client.forms import Candidate

_SCALARS = (bool, int, float, str)


def candidates_of(
    response: Mapping[str, Any],
    fields: Mapping[str, str] | None = None,
    *,
    score: str = "score",
    item_id: str | None = None,
) -> list[Candidate]:
    """The hits of an answer as candidates of `rank`, in the engine's order.

    fields: further columns, from the column's name to the field of the hit, such as `{"stock": "warehouse.stock"}`. A
    field is read from `_source`, or from `fields` if the query asked for these. A missing field is a missing value.
    score: name of the column with the engine's score; it is missing in an answer that was sorted by something else.
    item_id: field with the item's ID; `_id` if None. Raises ValueError for a hit without an ID.
    """
    out = list[Candidate]()
    for place, hit in enumerate(_hits(response)):
        id_ = _id(hit, item_id)
        if id_ is None:
            raise ValueError(f"hit {place} has no {item_id or '_id'}: pass `item_id`, the field with the item's ID")
        columns = {name: _field(hit, path) for name, path in (fields or {}).items()}
        out.append({"id": id_, score: hit.get("_score"), **columns})
    return out


def reranked(
    response: Mapping[str, Any], ranking: RankAnswer, *, item_id: str | None = None
) -> list[Mapping[str, Any]]:
    """The hits in the order of a ranking of them, each with everything that the engine returned.

    Hits that the ranking lacks, such as those that a rule removed, are left out, and so are further hits of an item.
    item_id: as in `candidates_of`.
    """
    hits: dict[str, Mapping[str, Any]] = {}
    for hit in _hits(response):
        if (id_ := _id(hit, item_id)) is not None:
            hits.setdefault(id_, hit)
    return [hits[item.item_id] for item in ranking.items if item.item_id in hits]


def _hits(response: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    hits: Sequence[Mapping[str, Any]] = response["hits"]["hits"]
    return hits


def _id(hit: Mapping[str, Any], item_id: str | None) -> str | None:
    value = hit.get("_id") if item_id is None else _field(hit, item_id)
    return None if value is None else str(value)


def _field(hit: Mapping[str, Any], path: str) -> bool | float | str | None:
    """A field by its dotted path; None if it is missing, or has several values."""
    value: Any = (hit.get("fields") or {}).get(path)  # `fields` has whole paths as keys, and lists as values
    if value is None:
        value = hit.get("_source")
        for key in (path,) if isinstance(value, Mapping) and path in value else path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, _SCALARS) else None
