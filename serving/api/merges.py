"""The body and the answer of a merge of two users."""

from __future__ import annotations

from msgspec import Struct, field, json

from serving.api.decoding import Id, decode, request_id
from serving.api.problem import Problem


class MergeIn(Struct, forbid_unknown_fields=True):
    """The events of the anonymous shopper become the history of the user in the path. from: the anonymous user ID."""

    from_id: Id = field(name="from")


class MergeAnswer(Struct):
    """The users are merged. at: Unix seconds of the merge.

    moved: number of events in the lists of the anonymous user that now belong to the user; 0 if there were none, as
    after an earlier merge.
    """

    at: float
    moved: int


_MERGE = json.Decoder(MergeIn)


def merge_users(user_id: str, body: bytes) -> tuple[str, str]:
    """The IDs (of the user, of the anonymous user) of a request, in canonical form. Raises Problem (400, 422)."""
    user, anonymous = request_id("user_id", user_id), request_id("from", decode(_MERGE, body).from_id)
    if user == anonymous:
        raise Problem(
            422,
            "same-user",
            "Same user",
            "`from` is the user of the path",
            "Send the ID that the shopper had before login as `from`.",
            "from",
        )
    return user, anonymous
