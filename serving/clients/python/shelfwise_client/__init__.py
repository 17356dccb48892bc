"""Client for the Shelfwise ranking service.

    with Shelfwise("http://localhost:8000") as shop:
        shelf = shop.recommend("u00003", limit=12)
        shop.send("click", "u00003", shelf.items[0].item_id, request_id=shelf.request_id)

`AsyncShelfwise` offers the same methods with `await`. Calls are in `calls`, their results in `answers`, exceptions in
`errors`, and the event queue is in `outbox`. `candidates_of` and `reranked` rerank the hits of a search engine.
"""

from shelfwise_client.aio import AsyncShelfwise
from shelfwise_client.answers import (
    Applied,
    Because,
    Derived,
    ErasureAnswer,
    EventsAnswer,
    ItemAnswer,
    ItemsAnswer,
    MergeAnswer,
    ObjectivePart,
    PageAnswer,
    RankAnswer,
    RankedItem,
    Reason,
    Rejected,
    Removed,
    ServiceState,
    SimilarAnswer,
    SimilarItem,
    UserAnswer,
)
from shelfwise_client.client import Shelfwise
from shelfwise_client.errors import (
    DeadlineError,
    QueueFull,
    ServiceError,
    ShelfwiseError,
    UnreachableError,
    UnsentError,
)
from shelfwise_client.forms import (
    Candidate,
    Cap,
    Columns,
    Condition,
    Diversity,
    Event,
    Exclude,
    Item,
    Lift,
    PageList,
    Pin,
    Rules,
    Variants,
)
from shelfwise_client.outbox import Counts, Sending
from shelfwise_client.retry import Retry
from shelfwise_client.search_hits import candidates_of, reranked

__all__ = [
    "Applied",
    "AsyncShelfwise",
    "Because",
    "Candidate",
    "Cap",
    "Columns",
    "Condition",
    "Counts",
    "DeadlineError",
    "Derived",
    "Diversity",
    "ErasureAnswer",
    "Event",
    "EventsAnswer",
    "Exclude",
    "Item",
    "ItemAnswer",
    "ItemsAnswer",
    "Lift",
    "MergeAnswer",
    "ObjectivePart",
    "PageAnswer",
    "PageList",
    "Pin",
    "QueueFull",
    "RankAnswer",
    "RankedItem",
    "Reason",
    "Rejected",
    "Removed",
    "Retry",
    "Rules",
    "Sending",
    "ServiceError",
    "ServiceState",
    "Shelfwise",
    "ShelfwiseError",
    "SimilarAnswer",
    "SimilarItem",
    "UnreachableError",
    "UnsentError",
    "UserAnswer",
    "Variants",
    "candidates_of",
    "reranked",
]
