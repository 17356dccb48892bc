"""The sections `serving` and `placements` of the configuration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from features.bounds import ATTRIBUTE_NAME, COLUMN_NAME, MAX_NUMBER, is_name
from features.retention import DAY_S, Retention
from ranker.calibration import Outcome
from serving.rules import Rules, StandingRules, Variants, VariantSettings

HostName = Annotated[str, StringConstraints(pattern=r"^(\*|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)$")]
"""A host name without scheme and port, or * for any."""
ImageOrigin = Annotated[str, StringConstraints(pattern=r"^https?://[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?$")]
"""Scheme, host and port of pictures, in lower case, without a path: it becomes a part of a header."""
PLACEMENTS = 50
"""Maximum number of placements."""


def _placement_name(name: str) -> str:
    if re.fullmatch(COLUMN_NAME, name) is None or not is_name(name):
        raise ValueError(
            f"{name[:80]!r} is not a valid name: use 1 to {ATTRIBUTE_NAME} characters, without white space and control "
            "characters"
        )
    return name


PlacementName = Annotated[str, AfterValidator(_placement_name)]
Source = Literal[
    "query",
    "query_words",
    "again",
    "co_occurrence",
    "linear",
    "text",
    "popular",
    "popular_in_category",
    "new",
    "similar",
    "bought_together",
    "goes_with",
    "next",
    "buy_again",
]
"""A candidate source: one of `features.retrieval.SOURCES`."""
_OF_COMPANIONS: frozenset[Source] = frozenset({"bought_together", "goes_with", "next", "buy_again"})
"""Sources whose tables a release has only if they are needed."""
Share = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]

Amount = Annotated[float, Field(gt=0, le=MAX_NUMBER, allow_inf_nan=False, strict=True)]


class ObjectiveConfig(BaseModel):
    """The objective of the lists of a placement: earnings, weighed against their relevance."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcomes: dict[Outcome, Share] = Field(
        default={"purchase": 1.0},
        min_length=1,
        examples=[{"purchase": 1, "cart": 0.1}],
        description="Outcomes that earn the value of an item, each with its weight.",
    )
    value: Annotated[str, StringConstraints(min_length=1, max_length=ATTRIBUTE_NAME)] | Amount = Field(
        "price",
        examples=["margin"],
        description="Value of an item: price, another numeric attribute of items, or the same number for all. An item "
        "without it has the median of the catalogue.",
    )
    weight: float = Field(
        0.0,
        ge=0,
        le=1,
        examples=[0.3],
        description="Weight of the expected value against relevance. 0: by relevance alone, as without an objective; "
        "1: by expected value alone.",
    )
    floor: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Share of the highest click probability in the list that an item needs for its value to count. "
        "Items below it come after all others, by relevance.",
    )


class ExplorationConfig(BaseModel):
    """Exploration of the lists of a placement: by swaps, or by the posterior of clicks with a quota for new items.

    A number in place of the section is the share of the mode `swaps`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["swaps", "thompson", "ucb"] = Field(
        "thompson",
        description="`swaps`: adjacent items may be swapped at random, as with `serving.explore`. Otherwise, the least "
        "known items are placed by the posterior of their clicks: `thompson`, at a place drawn from it; `ucb`, at that "
        "of its upper bound.",
    )
    share: float = Field(0.1, ge=0, le=1, description="Share of lists that are explored. A number alone is this share.")
    quota: float = Field(
        0.1, ge=0, le=0.25, description="Share of the positions of an explored list that are reserved for new items."
    )
    new_below: float = Field(
        100, gt=0, le=1e6, description="Impressions below which an item is new, decayed with a half-life of 30 days."
    )
    budget: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Maximum share of its expected clicks that an explored list may give up, by the calibrated "
        "probabilities of the ranker.",
    )

    @property
    def by_posterior(self) -> bool:
        """True if lists are explored, and not by swaps."""
        return self.mode != "swaps" and self.share > 0

    @model_validator(mode="before")
    @classmethod
    def _share_alone(cls, given: Any) -> Any:
        if isinstance(given, int | float) and not isinstance(given, bool):
            return {"mode": "swaps", "share": given}
        return given

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        # Defaults are accepted: a configuration that was read may be written with them, and read again.
        unused = [n for n in ("quota", "new_below", "budget") if getattr(self, n) != type(self).model_fields[n].default]
        if self.mode == "swaps" and unused:
            raise ValueError(f"{unused[0]} has no effect with the mode swaps: remove it, or use another mode")
        return self


class PlacementConfig(BaseModel):
    """Settings of the lists of a named spot in the shop, such as the home page or the results of a search."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: dict[Source, Share] = Field(
        default={},
        examples=[{"co_occurrence": 2, "popular": 1}],
        description="Candidate sources of /v1/recommend, with the share of turns that each takes. Sources that are not "
        "named are not used. Empty: all sources take turns equally, those of the request's items if it has any.",
    )
    requires: tuple[Literal["query", "items"], ...] = Field(
        (), examples=[["query"]], description="Parts that a request must have; without them, it is refused."
    )
    rules: StandingRules = Field(
        Rules(),
        examples=[{"cap": [{"attribute": "brand", "most": 2}]}],
        description="Rules for the lists of this placement, after those of `serving.rules` and before those of the "
        "request; see docs/rules.md.",
    )
    limit: int | None = Field(
        None, ge=1, le=500, examples=[12], description="Length of the list if the request has no `limit`."
    )
    explore: ExplorationConfig | None = Field(
        None,
        examples=[0.1],
        description="Exploration of the lists, in place of `serving.explore`: a number, which has the same meaning, or "
        "a section; see docs/exploration.md. null: `serving.explore`.",
    )

    variants: VariantSettings = Field(
        Variants(),
        examples=[{"keep": "all"}],
        description="The same as `serving.variants`, in its place; what is not set here is as there.",
    )
    objective: ObjectiveConfig | None = Field(
        None,
        examples=[{"value": "margin", "weight": 0.3}],
        description="What the lists should earn; see docs/objectives.md. null: relevance alone.",
    )

    @property
    def needs_companions(self) -> bool:
        """True if a source reads the tables of what goes with an item, or requests have to name items."""
        return "items" in self.requires or not _OF_COMPANIONS.isdisjoint(self.sources)

    @model_validator(mode="after")
    def _explores_without_rules(self) -> Self:
        explored = self.explore is not None and self.explore.share > 0
        if explored and self.rules != Rules():
            raise ValueError("a list with rules is never explored: remove `explore` or `rules`")
        by_posterior = self.explore is not None and self.explore.by_posterior
        if by_posterior and self.objective is not None and self.objective.weight > 0:
            raise ValueError(
                "`explore` places items by their clicks, and `objective` by another value: remove one of them, or use "
                "the mode swaps"
            )
        return self


Placements = dict[PlacementName, PlacementConfig]


class ServingConfig(BaseModel):
    """Settings of the service: addresses, limits, timeouts and features.

    Secrets are not settings: the address of Redis, which may contain a password, is read from `REDIS_URL` at startup.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all interfaces.")
    port: int = Field(8000, ge=1, le=65535, description="TCP port to listen on.")
    internal_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        examples=[8001],
        description="TCP port on which only /metrics, /operator and /merchandising are served, and `port` then serves "
        "none of them.",
    )
    root_path: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        examples=["/shelfwise"],
        description="Path prefix under which a proxy serves the service, such as /shelfwise.",
    )
    workers: int = Field(1, ge=1, le=64, description="Worker processes; each follows the event stream on its own.")
    max_candidates: int = Field(1000, ge=1, le=5000, description="Maximum number of candidates per request.")
    max_explained: int = Field(
        100, ge=1, le=5000, description="Maximum number of items in a response with explanations, which take most time."
    )
    max_events: int = Field(1000, ge=1, le=10_000, description="Maximum number of events per request.")
    max_body_bytes: int = Field(2_000_000, ge=1_000, le=100_000_000, description="Maximum size of a request body.")
    shopper_events_per_minute: int | None = Field(
        1000, ge=1, description="Maximum number of events of one shopper per minute and worker; null for no limit."
    )
    shopper_events_per_day: int | None = Field(
        5000, ge=1, description="Maximum number of events of one shopper per day (UTC) and worker; null for no limit."
    )
    shopper_item_engagements_per_day: int | None = Field(
        20,
        ge=1,
        description="Maximum number of events of one shopper with one item, except impressions, per day and worker; "
        "null for no limit.",
    )
    shopper_item_impressions_per_day: int | None = Field(
        100,
        ge=1,
        description="Maximum number of impressions of one item to one shopper per day and worker; null for no limit.",
    )
    keys_file: Path | None = Field(
        None, examples=["keys.txt"], description="API keys, as printed by `shelfwise keys new`; reloaded on change."
    )
    shopper_tokens: Literal["off", "optional", "required"] = Field(
        "off",
        description="Shopper tokens of public keys: ignore them, verify those that are sent, or require one for the "
        "history and the events of a user.",
    )
    shopper_secrets_file: Path | None = Field(
        None,
        examples=["secrets.txt"],
        description="Secrets that sign shopper tokens, as printed by `shelfwise keys secret`; reloaded on change.",
    )
    insecure: bool = Field(False, description="Accept connections from other machines without API keys.")
    key_rate: float | None = Field(
        None,
        ge=0.01,
        le=1e6,
        examples=[50],
        description="Requests per second and worker for a key without a rate of its own.",
    )
    hosts: tuple[HostName, ...] = Field(
        (),
        examples=[["shop.test"]],
        description="Names in the Host header that are answered besides localhost and IP addresses; * for any. By "
        "default any, but none for a service without keys that is not `insecure`.",
    )
    cors_origins: tuple[str, ...] = Field(
        (),
        examples=[["https://shop.test"]],
        description="Origins whose pages may call the service, such as https://shop.test.",
    )
    max_in_flight: int = Field(
        128,
        ge=1,
        le=10_000,
        description="Requests in progress or queued per worker; rankings and writes count separately.",
    )
    max_at_once: int = Field(8, ge=1, le=1000, description="Requests processed concurrently; the others are queued.")
    max_wait_s: float = Field(2.0, gt=0, le=30, description="Expected wait above which a request is refused with 503.")
    deadline_s: float = Field(5.0, gt=0, le=60, description="Time limit of a request, not counting the body.")
    body_s: float = Field(5.0, gt=0, le=60, description="Time limit for receiving a request body.")
    head_s: float = Field(
        5.0, gt=0, le=60, description="Time limit for receiving the head of a request, from the connection on."
    )
    write_s: float = Field(10.0, gt=0, le=600, description="Time limit for a client to read a response.")
    idle_s: float = Field(
        75.0,
        gt=0,
        le=4000,
        description="Time a connection stays open between two requests; longer than load balancers keep theirs.",
    )
    max_connections: int = Field(1000, ge=1, le=65_535, description="Maximum number of open connections per worker.")
    drain_s: int = Field(10, ge=1, le=600, description="Time to finish requests in flight on shutdown.")
    log: Literal["text", "json"] = Field(
        "text", description="Log format: plain text, or JSON with one object per line."
    )
    log_requests: bool = Field(False, description="Log every request, not only those that fail with 500.")
    redis_timeout_s: float = Field(
        0.25, gt=0, le=30, description="Timeout of a read or write in Redis; after it, rankings go on without it."
    )
    redis_failures: int = Field(
        3, ge=1, le=100, description="Consecutive failures after which Redis is not used until it answers a probe."
    )
    redis_pause_s: float = Field(1.0, gt=0, le=60, description="Maximum pause between two probes.")
    poll_s: float = Field(
        0.25, gt=0, le=1, description="Interval for polling the event stream and the release pointer."
    )
    reload_s: float = Field(10.0, gt=0, le=3600, description="Delay before retrying a release that failed to load.")
    future_s: float = Field(
        60.0,
        ge=0,
        le=3600,
        description="How far an event's time may be ahead of the service's clock; later ones are rejected.",
    )
    clock_offset_s: float = Field(
        0.0,
        allow_inf_nan=False,
        description="Added to the clock, to serve a historical log as of its end. 0 in production.",
    )
    clock_file: Path | None = Field(
        None,
        examples=["clock"],
        description="File with the current time in Unix seconds, for simulations. None in production.",
    )
    user_ttl_days: float = Field(
        180,
        gt=0,
        le=3650,
        description="Days after which a user's engagements or impressions expire, counted from the last of them. Also "
        "used in training: a change takes full effect with the next nightly run.",
    )
    anonymous_ttl_days: float = Field(
        30, gt=0, le=3650, description="The same for users whose ID has one of `anonymous_prefixes`."
    )
    anonymous_prefixes: tuple[Annotated[str, StringConstraints(min_length=1)], ...] = Field(
        ("anon-",),
        description="Beginnings of the IDs of anonymous users. The JavaScript client makes IDs that begin with anon-.",
    )
    max_users: int = Field(
        10_000_000,
        ge=1,
        le=10_000_000_000,
        description="Maximum number of users who have lists in Redis. Events of further users are refused and counted.",
    )
    max_items: int = Field(500, ge=1, le=10_000, description="Maximum number of items per write.")
    written_items: int = Field(
        50_000, ge=0, le=1_000_000, description="Maximum number of items written since the release and kept in Redis."
    )
    log_served: bool = Field(True, description="Log the list of each ranking, for `shelfwise collect`.")
    log_rows_share: float = Field(
        0.0, ge=0, le=1, description="Share of served lists logged with the feature rows of all candidates, for `skew`."
    )
    log_served_most: int = Field(
        200_000,
        ge=1,
        le=100_000_000,
        description="Maximum number of served lists waiting in Redis; further ones are dropped and counted.",
    )
    shadow_share: float = Field(
        0.1, ge=0, le=1, description="Share of logged lists that the shadow release also scores, after the response."
    )
    explore: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of lists in which adjacent items may be swapped at random, with known propensities.",
    )
    because_cosine: float = Field(
        0.35, ge=-1, le=1, description="Minimum cosine at which `because` names an item of the user's history."
    )
    retrieved: int = Field(
        500,
        ge=10,
        le=5000,
        description="Number of candidates /v1/recommend retrieves and ranks; at most max_candidates.",
    )
    rules: StandingRules = Field(
        Rules(),
        examples=[{"cap": [{"attribute": "brand", "most": 3}]}],
        description="Rules for every list: filter, exclude, boost, bury, cap, diversity, pin; see docs/rules.md.",
    )
    variants: VariantSettings = Field(
        Variants(),
        examples=[{"keep": "one", "after_purchase_days": 90}],
        description="Variants of one product in a list: `keep` one or all of them, and `after_purchase_days` for which "
        "the others are left out after a purchase of one; see docs/variants.md.",
    )
    storefront: bool = Field(
        False, description="Serve /storefront, a page to try out a release; it lists the IDs of some known users."
    )
    currency: str | None = Field(
        None,
        pattern=r"^[A-Z]{3}$",
        examples=["EUR"],
        description="Currency of prices on the storefront. null: that of the import, if it has one.",
    )
    image_origins: tuple[ImageOrigin, ...] = Field(
        (),
        examples=[["https://cdn.shop.test"]],
        description="Origins from which the storefront shows the products' own pictures (`image_url`). Other products "
        "have a drawn pattern.",
    )
    operator: bool = Field(
        False, description="Serve /operator, a page with releases and metrics; needs a key with the `admin` scope."
    )
    merchandising: bool = Field(
        False,
        description="Apply the rules of merchandisers, and serve /merchandising, the page on which they change them; "
        "needs a key with the `merchandise` scope.",
    )
    reasons: int = Field(5, ge=1, le=50, description="Number of contributions per item when a request sets `explain`.")

    @property
    def retention(self) -> Retention:
        """Retention of users' lists."""
        return Retention(self.user_ttl_days * DAY_S, self.anonymous_ttl_days * DAY_S, self.anonymous_prefixes)

    def candidates_for(self, limit: int) -> int:
        """Number of candidates to retrieve for a list of `limit` items."""
        return min(max(self.retrieved, 2 * limit), self.max_candidates)

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.internal_port == self.port:
            raise ValueError(f"internal_port is {self.port}, and so is port: use another one")
        return self
