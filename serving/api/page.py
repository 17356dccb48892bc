"""Requests and responses of `POST /v1/page`: the lists of several placements at once, without repeats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from serving.api.columns import ColumnsIn, merged
from serving.api.decoding import Device, Id, Query, check_texts, decode, request_id
from serving.api.problem import Problem
from serving.api.rankings import PlacementIn, RankAnswer, RecommendRequest, SeedsIn, seed_ids
from serving.rules import Rules, Variants

LISTS = 20
"""Maximum number of lists of a page."""


class PageList(Struct, forbid_unknown_fields=True, kw_only=True):
    """A list of a page; its fields are those of /v1/recommend.

    columns: in addition to those of the page, and in their place where both have a column.
    """

    placement: PlacementIn
    limit: (
        Annotated[
            int, Meta(ge=1, le=500, description="Maximum number of items; by default the placement's, otherwise 10.")
        ]
        | UnsetType
    ) = UNSET
    query: Query | None = None
    rules: Rules | None = None
    columns: ColumnsIn = {}
    items: SeedsIn = []
    variants: Variants | None = None


class PageRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """The lists of several placements for one shopper, without repeats: in the order in which the page shows them.

    An item is in the first of the lists that would have it, and so is its product, if only one of its variants may be
    shown. A list is that of /v1/recommend without the items of the lists before it. device, session_id,
    columns, explain, shown: as in `RecommendRequest`, for all lists.
    """

    placements: Annotated[list[PageList], Meta(min_length=1, max_length=LISTS)]
    user_id: Id | None = None
    device: Device | None = None
    session_id: Id | None = None
    columns: ColumnsIn = {}
    explain: bool = False
    shown: bool = True

    def requests(self) -> list[RecommendRequest]:
        """The request for each list, as if it were alone."""
        return [
            RecommendRequest(
                user_id=self.user_id,
                device=self.device,
                session_id=self.session_id,
                explain=self.explain,
                shown=self.shown,
                **{name: getattr(one, name) for name in one.__struct_fields__ if name != "columns"},
                columns={**self.columns, **one.columns},
            )
            for one in self.placements
        ]


class PageAnswer(Struct):
    """The lists of a page, in the order of the request. Each has a request ID of its own: send it with the events of
    that list. degraded: as in `RankAnswer`."""

    release: str
    degraded: bool
    lists: list[RankAnswer]
    took_ms: float


_PAGE = msgspec.json.Decoder(PageRequest)


def page_request(body: bytes) -> PageRequest:
    """Decode and validate a request. Raises Problem naming the field, such as `placements[2].limit`."""
    request: PageRequest = decode(_PAGE, body)
    check_texts(body, device=request.device, **{f"placements[{k}].query": p.query for k, p in _numbered(request)})
    if request.user_id is not None:
        request.user_id = request_id("user_id", request.user_id)
    if request.session_id is not None:
        request.session_id = request_id("session_id", request.session_id)
    if request.columns:
        request.columns = merged(body, request.columns, {}, None)
    for k, one in _numbered(request):
        with within_list(k):
            one.items = seed_ids(one.items)
            if one.columns:
                one.columns = merged(body, {**request.columns, **one.columns}, {}, None)
    return request


def _numbered(request: PageRequest) -> Iterator[tuple[int, PageList]]:
    return enumerate(request.placements)


@contextmanager
def within_list(number: int) -> Iterator[None]:
    """Name the list in a Problem that is raised inside the block. number: of the list in the request."""
    try:
        yield
    except Problem as problem:
        path, document = f"placements[{number}]", problem.document
        field: Any = document.get("field")
        document["field"] = path if field is None else f"{path}.{field}"
        raise
