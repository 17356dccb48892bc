"""The service's section of the configuration: one frozen value, built at the edge and handed down."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.rules import Rules, StandingRules

ID_CHARACTERS = 256
"""Longest id of a user, item, event, request or session. Bounds are part of the request schema, so not a setting."""


class ServiceConfig(BaseModel):
    """How the service listens, what it accepts, how long it waits.

    Secrets are not here: the address of Redis, which may carry a password, is read from `REDIS_URL` at the edge.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface.")
    port: int = Field(8000, ge=1, le=65535, description="TCP port to listen on.")
    workers: int = Field(1, ge=1, le=64, description="Processes; each follows the event stream by itself.")
    max_candidates: int = Field(1000, ge=1, le=5000, description="Most candidates of one request.")
    max_events: int = Field(1000, ge=1, le=10_000, description="Most events of one request.")
    max_body_bytes: int = Field(2_000_000, ge=1_000, le=100_000_000, description="Largest request body.")
    keys_file: Path | None = Field(None, description="Keys, as `shelfwise keys new` prints them; read when it changes.")
    insecure: bool = Field(False, description="Listen beyond this machine though there are no keys.")
    key_rate: float | None = Field(
        None, ge=0.01, le=1e6, description="Requests a second, of each worker, of a key whose line names no rate."
    )
    cors_origins: tuple[str, ...] = Field((), description="Web pages that may call from a browser: https://shop.test.")
    max_in_flight: int = Field(
        128, ge=1, le=10_000, description="Requests of a worker at once, for rankings and for writes."
    )
    max_at_once: int = Field(8, ge=1, le=1000, description="Of these, those worked on; the others stand in line.")
    max_wait_s: float = Field(2.0, gt=0, le=30, description="Expected wait past which a request is refused with 503.")
    deadline_s: float = Field(5.0, gt=0, le=60, description="Longest that a request may take, its body aside.")
    body_s: float = Field(5.0, gt=0, le=60, description="Longest that a body may take to come.")
    idle_s: int = Field(5, ge=1, le=600, description="Longest that a connection may wait for the head of a request.")
    max_connections: int = Field(1000, ge=1, le=65_535, description="Connections of a worker at once.")
    drain_s: int = Field(10, ge=1, le=600, description="Time to finish what was begun, when told to stop.")
    log: Literal["text", "json"] = Field("text", description="Lines of text, or JSON, one object a line.")
    log_requests: bool = Field(False, description="Log every request, not only those the service failed.")
    redis_timeout_s: float = Field(
        0.25, gt=0, le=30, description="Deadline of a read or write in Redis; past it, ranking goes on without."
    )
    redis_failures: int = Field(
        3, ge=1, le=100, description="Failures in a row after which Redis is left alone until it answers a look at it."
    )
    redis_pause_s: float = Field(1.0, gt=0, le=60, description="Longest pause between two such looks.")
    poll_s: float = Field(
        0.25, gt=0, le=1, description="Pause between looks at the event stream and the release pointer."
    )
    reload_s: float = Field(
        10.0, gt=0, le=3600, description="Pause before a release that could not be loaded is tried again."
    )
    future_s: float = Field(
        60.0, ge=0, le=3600, description="How far ahead a shopper's clock may run; beyond, an event is rejected."
    )
    clock_offset_s: float = Field(
        0.0,
        allow_inf_nan=False,
        description="Added to the clock: to serve a log of the past as of its end. 0 in earnest.",
    )
    clock_file: Path | None = Field(
        None, description="A file that says what time it is, in Unix seconds, for simulated days. None in earnest."
    )
    max_items: int = Field(500, ge=1, le=10_000, description="Most items of one write.")
    written_items: int = Field(
        50_000, ge=0, le=1_000_000, description="Items written since the release that are kept at a time."
    )
    log_served: bool = Field(True, description="Keep what each ranking answered, for `shelfwise collect`.")
    log_rows_share: float = Field(
        0.0, ge=0, le=1, description="Share of the served lists kept with all candidates' feature rows, for `skew`."
    )
    log_served_most: int = Field(
        200_000, ge=1, le=100_000_000, description="Served lists that wait in Redis at most; beyond, dropped, counted."
    )
    shadow_share: float = Field(
        0.1, ge=0, le=1, description="Share of the logged lists that a release in shadow scores too, after the answer."
    )
    explore: float = Field(
        0.0, ge=0, le=1, description="Share of the lists in which neighbours may change places, with known chances."
    )
    because_cosine: float = Field(
        0.35, ge=-1, le=1, description="Least cosine at which `because` names an item of the user's history."
    )
    retrieved: int = Field(
        500, ge=10, le=5000, description="Candidates that /v1/recommend retrieves and ranks; at most max_candidates."
    )
    rules: StandingRules = Field(
        Rules(),
        description="Rules for every list: filter, exclude, boost, bury, cap, diversity, pin; see docs/rules.md.",
    )
    storefront: bool = Field(
        False, description="Serve the page at /storefront, for people to try a release; it names some known shoppers."
    )
    operator: bool = Field(
        False, description="Serve the page at /operator, for whoever has a key for `admin`: releases, how it goes."
    )
    reasons: int = Field(5, ge=1, le=50, description="Contributions given for each item where `explain` is asked.")
