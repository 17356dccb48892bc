"""API schemas: the structs that decode, encode and document requests, responses, events, items and problem documents.

This subpackage does not depend on routes or on ranking.
"""

from __future__ import annotations

from serving.api import columns, decoding, events, items, limits, merges, page, problem, rankings, request_id
from serving.api.columns import UserAnswer, UserIn
from serving.api.decoding import Refusal
from serving.api.events import Accepted, Derived, ErasureAnswer, EventIn, EventsAnswer, Rejected
from serving.api.items import ItemAnswer, ItemsAnswer, accept_item
from serving.api.merges import MergeAnswer, MergeIn
from serving.api.page import PageAnswer, PageRequest
from serving.api.problem import Problem
from serving.api.rankings import (
    DEFAULT_LIMIT,
    DegradedReason,
    ObjectivePart,
    RankAnswer,
    RankedItem,
    RankRequest,
    RecommendRequest,
)

__all__ = [
    "DEFAULT_LIMIT",
    "Accepted",
    "DegradedReason",
    "Derived",
    "ErasureAnswer",
    "EventIn",
    "EventsAnswer",
    "ItemAnswer",
    "ItemsAnswer",
    "MergeAnswer",
    "MergeIn",
    "ObjectivePart",
    "PageAnswer",
    "PageRequest",
    "Problem",
    "RankAnswer",
    "RankRequest",
    "RankedItem",
    "RecommendRequest",
    "Refusal",
    "Rejected",
    "UserAnswer",
    "UserIn",
    "accept_item",
    "columns",
    "decoding",
    "events",
    "items",
    "limits",
    "merges",
    "page",
    "problem",
    "rankings",
    "request_id",
]
