"""Limits on the size of the lists of a request, which follow from the configuration."""

from __future__ import annotations

from serving.api.page import PageRequest
from serving.api.problem import Problem
from serving.api.rankings import RankRequest, RecommendRequest
from serving.config import ServiceConfig


def check_size(request: RankRequest, catalogue: int, config: ServiceConfig) -> None:
    """Raise Problem (422) for too many candidates. catalogue: its number of items."""
    given = catalogue if request.ids is None else len(request.ids)
    if given > config.max_candidates:
        whole = "the whole catalogue, " if request.ids is None else ""
        raise Problem(
            422,
            "too-many-candidates",
            "Too many candidates",
            f"{whole}{given} candidates in one request; the maximum is {config.max_candidates}",
            "Send fewer `candidates`.",
            "candidates",
        )


def check_explained(
    request: RankRequest | RecommendRequest, limit: int | None, given: int, config: ServiceConfig
) -> None:
    """Raise Problem (422) for too many items with explanations. limit: of the list. given: number of candidates."""
    # An explanation takes several times as long as a score, and other requests wait meanwhile.
    count = min(given, limit or given)
    if request.explain and count > config.max_explained:
        raise Problem(
            422,
            "too-many-explained",
            "Too many explained items",
            f"{count} items with explanations in one response; the maximum is {config.max_explained}",
            f"Send a `limit` of at most {config.max_explained}, or leave `explain` out.",
            "limit",
        )


def check_page(request: PageRequest, items: int, config: ServiceConfig) -> None:
    """Raise Problem (422) for more items than one request may have. items: of the lists so far."""
    most = config.max_explained if request.explain else config.max_candidates
    if items > most:
        explained = " with explanations" if request.explain else ""
        raise Problem(
            422,
            "page-too-long",
            "Page too long",
            f"the lists up to this one have {items} items{explained} together; the maximum is {most}",
            "Send a smaller `limit`, or several pages.",
            "limit",
        )
