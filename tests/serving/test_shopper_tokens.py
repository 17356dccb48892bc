"""Shopper tokens, and what a public key may ask about a shopper with and without one."""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from offline.cli.app import app
from serving.api import Problem
from serving.app import create_app
from serving.http.credentials import KeysError
from serving.http.keys import Keys, new_key
from serving.http.shopper_tokens import HEADER, Policy, ShopperTokens, make_token, new_secret, parse_secrets
from shelfwise_client import Shelfwise
from tests.serving.test_keys import bearer
from tests.serving.test_service import EVERY, FAST, click, ready, refused, releases, served, until, url

__all__ = ["releases", "url"]
SCOPES = ["rank", "events", "explain"]
PAGE, PAGE_LINE = new_key("page", SCOPES, public=True)
BACK, BACK_LINE = new_key("back", SCOPES)
PLAIN, PLAIN_LINE = new_key("plain", ["rank"])
KEYS = Keys(lines="\n".join((PAGE_LINE, BACK_LINE, PLAIN_LINE)))
HISTORY = ["red-01", "red-03", "blue-02"]
"""The items of the one user with a history, `u`."""


@pytest.fixture(scope="module")
def secrets_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("secrets") / "shopper-secrets"
    file.write_text(f"# comment\n{new_secret('old')}\n{new_secret('new')}\n")
    return file


def token(file: Path, user: str = "u", name: str = "new", seconds: float = 60) -> str:
    return make_token(user, name, parse_secrets(file.read_text(), "")[0][name], seconds)


@contextmanager
def service(url: str, release: Path, policy: Policy, secrets_file: Path) -> Iterator[httpx.Client]:
    """A service with the policy, in which `u` has a history."""
    config = FAST.model_copy(update={"shopper_tokens": policy, "shopper_secrets_file": secrets_file})
    with redis.Redis.from_url(url) as raw:
        raw.flushall()
    with served(url, config, release, good=KEYS) as client:
        ready(client)
        events = [click(item, timestamp=time.time() - 60 * n) for n, item in enumerate(HISTORY)]
        assert client.post("/v1/events", json=events, headers=bearer(BACK)).status_code == 202
        yield client


@pytest.fixture(scope="module")
def required(url: str, releases: list[Path], secrets_file: Path) -> Iterator[httpx.Client]:
    with service(url, releases[0], "required", secrets_file) as client:
        yield client


@pytest.fixture(scope="module")
def optional(url: str, releases: list[Path], secrets_file: Path, required: httpx.Client) -> Iterator[httpx.Client]:
    with service(url, releases[0], "optional", secrets_file) as client:
        yield client


def rank(client: httpx.Client, key: str, token: str | None = None, **request: Any) -> httpx.Response:
    headers = bearer(key) | ({} if token is None else {HEADER: token})
    return client.post("/v1/rank", json={"user_id": "u"} | request, headers=headers)


def exclude(**more: object) -> dict[str, Any]:
    return {"exclude": [{"events": ["click"], **more}]}


# Tokens.


def test_a_token_proves_its_user_with_every_secret_of_the_file(secrets_file: Path) -> None:
    tokens = ShopperTokens("required", secrets_file)
    for name in ("old", "new"):
        assert tokens.shopper(token(secrets_file, " u1 ", name)) == "u1", "in the form of all IDs"


def test_a_removed_secret_no_longer_verifies_tokens(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_text(f"{new_secret('old')}\n{new_secret('new')}\n")
    tokens, signed = ShopperTokens("required", file), token(file, name="old")
    file.write_text(file.read_text().splitlines()[1])
    assert tokens.look()
    with pytest.raises(Problem, match="its `kid` does not name a secret"):
        tokens.shopper(signed)
    assert tokens.shopper(token(file)) == "u"


def _part(content: object) -> str:
    return urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def _invalid_tokens(secret: str) -> dict[str, str]:
    good, soon, kid = {"sub": "u", "exp": int(time.time()) + 60}, int(time.time()) + 60, {"kid": "new"}
    head, body, signature = jwt.encode(good, secret, "HS256", headers=kid).split(".")
    return {
        "it has expired": jwt.encode(good | {"exp": soon - 120}, secret, "HS256", headers=kid),
        'missing the "exp" claim': jwt.encode({"sub": "u"}, secret, "HS256", headers=kid),
        'missing the "sub" claim': jwt.encode({"exp": soon}, secret, "HS256", headers=kid),
        "Signature verification failed": f"{head}.{_part(good | {'sub': 'v'})}.{signature}",
        "alg value is not allowed": jwt.encode(good, secret * 2, "HS512", headers=kid),
        "specified alg value is not allowed": f"{_part({'alg': 'none', 'kid': 'new'})}.{body}.",
        "does not name a secret": jwt.encode(good, secret, "HS256"),
        "stands for a missing ID": jwt.encode(good | {"sub": "undefined"}, secret, "HS256", headers=kid),
        "longer than 2000 bytes": jwt.encode(good | {"more": "x" * 2000}, secret, "HS256", headers=kid),
    }


def test_a_token_is_refused_with_the_reason(secrets_file: Path) -> None:
    tokens = ShopperTokens("required", secrets_file)
    cases = _invalid_tokens(parse_secrets(secrets_file.read_text(), "")[0]["new"])
    for why, text in cases.items():
        with pytest.raises(Problem, match=why) as e:
            tokens.shopper(text)
        assert e.value.status == 401


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300) | st.lists(st.text(max_size=40), min_size=3, max_size=3).map(".".join))
def test_any_text_is_refused_as_a_token(secrets_file: Path, text: str) -> None:
    with pytest.raises(Problem, match="the shopper token is not valid"):
        ShopperTokens("required", secrets_file).shopper(text)


def test_an_invalid_line_of_the_secrets_is_named_and_never_quoted(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    good = new_secret("a")
    for text, why in (
        ("", "contains no secrets: create one with `shelfwise keys secret`"),
        ("a tooshort", "line 1: expected `name secret`"),
        (f"{good}\n{good}", "line 2: duplicate secret name 'a'"),
    ):
        file.write_text(text)
        with pytest.raises(KeysError, match=why) as e:
            ShopperTokens("optional", file)
        assert "tooshort" not in str(e.value)


def test_tokens_without_a_file_of_secrets_stop_the_service() -> None:
    config = FAST.model_copy(update={"shopper_tokens": "required"})
    with pytest.raises(KeysError, match=r"serving.shopper_tokens is 'required' and there are no secrets"):
        create_app(config, "unix:///nowhere")


def test_the_commands_make_a_secret_and_a_token_for_it(tmp_path: Path) -> None:
    run = CliRunner().invoke
    file = tmp_path / "secrets"
    file.write_text(run(app, ["keys", "secret", "--name", "2026-11"], catch_exceptions=False).output)
    made = run(app, ["keys", "token", "u1", "--secrets", str(file)], catch_exceptions=False).output.strip()
    assert ShopperTokens("required", file).shopper(made) == "u1"


# What a key may ask.


def test_an_explanation_needs_its_own_scope(required: httpx.Client) -> None:
    assert rank(required, PLAIN).status_code == 200
    document = refused(rank(required, PLAIN, explain=True), 403)
    assert document["detail"] == "key 'plain' does not have scope 'explain'"
    assert rank(required, BACK, explain=True).status_code == 200


def test_the_key_of_a_back_end_needs_no_token(required: httpx.Client) -> None:
    answer = rank(required, BACK, explain=True, rules=exclude()).json()
    assert {i["item_id"] for i in answer["items"]} == set(EVERY) - set(HISTORY)
    assert [r["count"] for r in answer["removed"]] == [3]
    assert any("because" in i for i in answer["items"])


def test_where_tokens_are_required_a_public_key_asks_only_about_the_shopper_of_the_token(
    required: httpx.Client, secrets_file: Path
) -> None:
    assert refused(rank(required, PAGE), 401)["type"].endswith("shopper-token")
    document = refused(rank(required, PAGE, token(secrets_file, "v")), 403)
    assert (document["type"].rpartition(":")[2], document["field"]) == ("another-shopper", "user_id")
    refused(rank(required, PAGE, token(secrets_file, seconds=-60)), 401)
    refused(required.post("/v1/recommend", json={"user_id": "u"}, headers=bearer(PAGE)), 401)
    page = {"user_id": "u", "placements": [{"placement": "a"}]}
    assert "field" not in refused(required.post("/v1/page", json=page, headers=bearer(PAGE)), 401)
    own = rank(required, PAGE, token(secrets_file), explain=True, rules=exclude())
    assert own.json()["items"] == rank(required, BACK, explain=True, rules=exclude()).json()["items"]
    guest = required.post("/v1/recommend", json={}, headers=bearer(PAGE))
    assert guest.status_code == 200, "a guest needs no token"


def test_where_tokens_are_required_events_of_a_public_key_are_of_the_shopper_of_the_token(
    required: httpx.Client, secrets_file: Path
) -> None:
    own, other = click(user="w"), click(user="x")
    refused(required.post("/v1/events", json=own, headers=bearer(PAGE)), 401)
    headers = bearer(PAGE) | {HEADER: token(secrets_file, "w")}
    answer = required.post("/v1/events", json=[own, other], headers=headers).json()
    assert (answer["accepted"], answer["rejected"]) == (
        1,
        [{"index": 1, "field": "user_id", "message": "is not the shopper of the token"}],
    )
    assert refused(required.post("/v1/events", json=other, headers=headers), 422)["field"] == "user_id"


def test_without_a_token_a_public_key_learns_nothing_of_a_history_from_explanations_and_rules(
    optional: httpx.Client, secrets_file: Path
) -> None:
    """No rule by history, so no bisection by `within_days`; no `because` and no `removed`; the reasons of a guest."""
    for rules in (exclude(), exclude(within_days=1)):
        assert refused(rank(optional, PAGE, rules=rules), 403)["field"] == "rules.exclude"
    days = {"after_purchase_days": 1}
    assert refused(rank(optional, PAGE, variants=days), 403)["field"] == "variants.after_purchase_days"
    lists = {"user_id": "u", "placements": [{"placement": "a"}, {"placement": "a", "variants": days}]}
    document = refused(optional.post("/v1/page", json=lists, headers=bearer(PAGE)), 403)
    assert document["field"] == "placements[1].variants.after_purchase_days"
    red = {"attribute": "item_id", "in": ["red-00", "red-04"]}
    rules = {"filter": {"not": {"attribute": "item_id", "in": ["red-02"]}}, "boost": [{"when": red, "by": 2}]}
    asked = rank(optional, PAGE, explain=True, rules=rules).json()
    of_guest = rank(optional, BACK, user_id=None, explain=True, rules=rules).json()
    assert "removed" in of_guest
    assert "removed" not in asked
    guest = {i["item_id"]: i for i in of_guest["items"]}
    for item in asked["items"]:
        assert "because" not in item
        assert item.get("reasons") == guest[item["item_id"]].get("reasons")
        total = item["base"] + item["others"] + sum(r["contribution"] for r in item.get("reasons", ()))
        total += sum(rule["added"] for rule in item.get("rules", ()))
        assert item["score"] == pytest.approx(total, abs=1e-9)
    own = rank(optional, PAGE, token(secrets_file), explain=True, rules=rules).json()
    assert any("because" in i for i in own["items"])
    assert "removed" in own


def test_the_python_client_sends_the_token_of_its_shopper(required: httpx.Client, secrets_file: Path) -> None:
    """A function is asked for the current token, also by the thread that delivers events."""
    asked: list[str] = []

    def current() -> str:
        asked.append(token(secrets_file, "z"))
        return asked[-1]

    with Shelfwise(str(required.base_url), PAGE, shopper_token=current) as shop:
        shop.send("click", "z", "red-01")
        shop.flush()
        assert shop.counts.accepted == 1
        assert shop.recommend("z", limit=3).items
    assert len(asked) == 2


def test_a_changed_file_of_secrets_is_used_without_a_restart(
    url: str, releases: list[Path], tmp_path: Path, required: httpx.Client
) -> None:
    file = tmp_path / "secrets"
    file.write_text(new_secret("one"))
    with service(url, releases[0], "required", file) as client:
        before = token(file, name="one")
        assert rank(client, PAGE, before).status_code == 200
        file.write_text(new_secret("two"))
        until(lambda: rank(client, PAGE, before).status_code == 401)
        assert rank(client, PAGE, token(file, name="two")).status_code == 200
