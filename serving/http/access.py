"""Limits on what a request may ask about a shopper, by its key and its shopper token.

A key that is not public belongs to the shop's back end, which may ask about every shopper. A public key can be read by
every visitor, so it proves nothing about who sends the request: only a shopper token does.
"""

from __future__ import annotations

from typing import NamedTuple

from starlette.requests import Request

from serving.api import PageRequest, Problem, RankAnswer, RankRequest, RecommendRequest, page
from serving.http.keys import Key
from serving.http.shopper_tokens import Policy, token_problem


class Access(NamedTuple):
    """The access of a request. key: its key, None for a service without keys. shopper: the user ID that its token
    proves, None without a token. Tokens count only for public keys."""

    key: Key | None = None
    policy: Policy = "off"
    shopper: str | None = None

    def check_ranking(self, asked: RankRequest | RecommendRequest) -> bool:
        """True if the answer may show the user's history. Raises Problem (401, 403) for what must not be asked."""
        if asked.explain and self.key is not None and "explain" not in self.key.scopes:
            raise lacks_scope(self.key, "explain")
        if self.key is None or not self.key.public or asked.user_id is None:
            return True
        if self.shopper is None:
            self._check_unproven(asked)
            return False
        if self.shopper != asked.user_id:
            raise Problem(
                403,
                "another-shopper",
                "Another shopper",
                "`user_id` is not the shopper of the token",
                "Send the user ID for which the shop's back end made the token.",
                "user_id",
            )
        return True

    def check_page(self, asked: PageRequest) -> bool:
        """The same for every list of a page."""
        shows_history = self.check_ranking(RecommendRequest(user_id=asked.user_id, explain=asked.explain))
        for number, one in enumerate(asked.requests()):
            with page.within_list(number):
                self.check_ranking(one)
        return shows_history

    def without_values(self, answer: RankAnswer) -> RankAnswer:
        """The answer as this key may see it: a public key does not see the values of items, such as margins."""
        if self.key is not None and self.key.public:
            for item in answer.items:
                if item.objective is not None:
                    item.others, item.objective = (item.others or 0.0) + item.objective.added, None
        return answer

    def _check_unproven(self, asked: RankRequest | RecommendRequest) -> None:
        if self.policy == "required":
            raise token_problem("a public key needs a shopper token for the history of a user, and none was sent")
        if asked.rules is not None and asked.rules.exclude:
            raise Problem(
                403,
                "history-rule",
                "Rule reads a history",
                "a public key may exclude items by a user's history only with the shopper token of the user",
                "Leave out `rules.exclude`, set the rule in the configuration of the service, or send a shopper token.",
                "rules.exclude",
            )
        if asked.variants is not None and asked.variants.after_purchase_days is not None:
            raise Problem(
                403,
                "history-rule",
                "Rule reads a history",
                "a public key may set `variants.after_purchase_days` only with the shopper token of the user",
                "Leave it out, set it in the configuration of the service, or send a shopper token.",
                "variants.after_purchase_days",
            )


def lacks_scope(key: Key, scope: str) -> Problem:
    """A problem (403): the key lacks a scope."""
    return Problem(
        403,
        "scope",
        "Key lacks the required scope",
        f"key {key.name!r} does not have scope {scope!r}",
        f"Use a key with scope {scope!r}.",
        headers={"Connection": "close"},
    )


def access_of(request: Request) -> Access:
    """The access of a request that the guard has let through."""
    found: Access = request.state.access
    return found
