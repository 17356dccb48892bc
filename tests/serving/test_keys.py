"""API keys: scopes, storage, reloading and rate limits."""

from __future__ import annotations

import os
import re
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from offline.cli.app import app
from serving.app import create_app
from serving.config import ServiceConfig
from serving.http.credentials import KeysError
from serving.http.guard import needs, rules_of
from serving.http.keys import KEYS_VARIABLE, SCOPES, Allowance, Keys, check_exposure, new_key, parse
from tests.serving.test_service import refused, served, until, url

__all__ = ["url"]
HASH = sha256(b"x").hexdigest()
AWAY = ServiceConfig(poll_s=0.5, redis_timeout_s=0.2)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_new_key_has_its_scopes_and_its_line_does_not_contain_it() -> None:
    key, line = new_key("shop-1", ["rank", "events"], 50)
    assert re.fullmatch(r"swk_shop-1_[\w-]{43}", key), "32 random bytes are 43 base64 characters"
    assert key not in line
    assert line == f"shop-1 rank,events {sha256(key.encode()).hexdigest()} rate=50"
    found = Keys(lines=line).of(f"Bearer {key}")
    assert found is not None
    assert (found.name, found.scopes, found.rate) == ("shop-1", frozenset({"rank", "events"}), 50)
    assert new_key("shop-1", ["rank"])[0] != key
    for rate, text in ((1e6, "rate=1000000"), (0.015, "rate=0.015")):
        assert new_key("a", ["rank"], rate)[1].endswith(text)
    for rate in (0.0, -1.0, float("nan"), float("inf"), 2e6):
        with pytest.raises(KeysError, match="expected rate=N"):
            new_key("a", ["rank"], rate)


@given(st.text() | st.from_regex(r"(Bearer|bearer|Basic) swk_[a-z]{0,3}_[\w-]{40,45}", fullmatch=True))
@settings(max_examples=60, deadline=None)
def test_an_unknown_key_is_not_accepted(header: str) -> None:
    assert Keys(lines=new_key("a", ["rank"])[1]).of(header) is None


def test_a_key_is_valid_only_under_its_own_name() -> None:
    (key, line), (_, other) = new_key("a", ["rank"]), new_key("b", ["admin"])
    keys = Keys(lines=f"{line}\n{other}")
    assert keys.of(f"bearer {key}") is not None, "the scheme's case does not matter"
    for wrong in (key.replace("swk_a", "swk_b"), key[:-1], key + "A", key.upper(), key[4:], f"Bearer {key}"):
        assert keys.of(f"Bearer {wrong}") is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "here contains no keys: create one with `shelfwise keys new`"),
        ("# nothing\n\n", "here contains no keys"),
        (f"a rank {HASH}\na rank {HASH}", "here, line 2: duplicate key name 'a'"),
        (f"a rank,all {HASH}", "here, line 1, key 'a': unknown scope all; use rank, explain, events, items"),
        ("a rank", "here, line 1, key 'a': expected `name scopes sha256"),
        ("a rank swk_a_secret", "here, line 1, key 'a': expected `name scopes sha256"),
        (f"ä rank {HASH}", "here, line 1: the name is not 1 to 40 letters, digits and hyphens; expected `name scopes"),
        ("swk_a_secret", "here, line 1: the name is not 1 to 40 letters, digits and hyphens"),
        (f"a rank {HASH} rate=0", "expected rate=N, N requests per second from 0.01 to 1000000"),
        (f"a rank {HASH} rate=nan", "expected rate=N"),
        (f"a rank {HASH} fast", "expected rate=N"),
    ],
)
def test_an_invalid_line_is_named_with_the_remedy_and_never_quoted(text: str, why: str) -> None:
    """The line may contain the key itself instead of its hash."""
    with pytest.raises(KeysError, match=re.escape(why)) as e:
        parse(text, "here")
    assert "secret" not in str(e.value)


def test_a_key_is_valid_only_while_its_line_is_in_the_file(tmp_path: Path) -> None:
    """However the other lines or the file change; and no change of the file opens the service."""
    file = tmp_path / "keys"
    (one, line_one), (two, line_two) = new_key("one", ["rank"]), new_key("two", ["rank"])
    file.write_text(line_one)
    keys = Keys(file)
    for text, good in (
        (f"{line_one}\n{line_two}  # a second", (True, True)),
        (line_two, (False, True)),
        (f"rubbish\n{line_one}", (True, False)),
        (f"{line_two}\none rank", (False, True)),
        (f"{line_one}\none rank,events {HASH}", (True, False)),
        ("", (False, False)),
        (line_one, (True, False)),
        (f"# {line_one}", (False, False)),
        (line_two, (False, True)),
        ("rubbish", (False, False)),
        (line_one, (True, False)),
    ):
        file.write_text(text)
        keys.look()
        assert (keys.of(f"Bearer {one}") is not None, keys.of(f"Bearer {two}") is not None) == good, text
        assert keys, "keys are still required"


@pytest.mark.parametrize("how", ["truncated", "deleted", "replaced", "overwritten", "not text", "folder deleted"])
def test_all_keys_are_revoked_however_the_file_is_emptied(tmp_path: Path, how: str) -> None:
    """Overwritten: with the same size and modification time, as by `rsync --times` and some editors."""
    file = tmp_path / "folder" / "keys"
    file.parent.mkdir()
    key, line = new_key("one", ["rank"])
    file.write_text(line)
    keys, status = Keys(file), file.stat()
    if how == "truncated":
        os.truncate(file, 0)
    elif how == "deleted":
        file.unlink()
    elif how == "replaced":
        (tmp_path / "new").write_text("# none\n")
        (tmp_path / "new").replace(file)
    elif how == "overwritten":
        file.write_text("#" * len(line))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif how == "not text":
        file.write_bytes(b"\xff\xfe" + line.encode())
    else:
        file.unlink()
        file.parent.rmdir()
    keys.look()
    assert keys.of(f"Bearer {key}") is None
    assert keys, "keys are still required"


def test_a_file_that_exists_but_cannot_be_read_keeps_its_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """For example on a network file system that does not respond: it says nothing about the keys."""
    file = tmp_path / "keys"
    key, line = new_key("one", ["rank"])
    file.write_text(line)
    keys = Keys(file)
    file.unlink()
    file.mkdir()
    keys.look()
    assert keys.of(f"Bearer {key}") is not None
    assert "keys not reloaded, the previous keys stay valid: cannot read the keys in" in caplog.text


def test_a_running_service_refuses_a_revoked_key_and_does_not_become_open(url: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    key, line = new_key("one", ["rank"])
    file.write_text(line)
    with served(url, good=Keys(file)) as client:
        assert client.post("/v1/rank", content=b"{", headers=bearer(key)).status_code == 400, "the key is valid"
        file.write_text("")
        until(lambda: client.post("/v1/rank", content=b"{", headers=bearer(key)).status_code == 401)
        assert refused(client.post("/v1/rank", content=b"{"), 401)["detail"] == "no key was sent"


def test_keys_that_cannot_be_read_at_startup_are_an_error(tmp_path: Path) -> None:
    line = new_key("one", ["rank"])[1]
    with pytest.raises(KeysError, match=r"none': No such file .* `shelfwise keys new`, .* with serving\.keys_file$"):
        Keys(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(KeysError, match="cannot read the keys"):
        Keys(tmp_path / "binary")
    (tmp_path / "keys").write_text(line)
    with pytest.raises(KeysError, match="are both set: use only one"):
        Keys(tmp_path / "keys", line)


@given(rate=st.floats(0.01, 1e4), steps=st.lists(st.floats(0, 3), max_size=60))
@settings(max_examples=100, deadline=None)
def test_a_rate_limit_allows_at_most_a_burst_plus_the_rate(rate: float, steps: list[float]) -> None:
    """In any period, at most max(1, rate) plus `rate` per second; after the given wait, a request is allowed."""
    now = allowed = 0.0
    bucket = Allowance(rate, now)
    for step in steps:
        now += step
        wait = bucket.take(now)
        allowed += wait == 0
        assert allowed <= max(1, rate) + rate * now + 1e-6
        if wait:
            now += wait + 1e-6
            assert bucket.take(now) == 0
            allowed += 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "shop.test", ""])
def test_without_keys_the_service_listens_only_to_its_own_machine(host: str) -> None:
    """Unless `insecure` is set."""
    with pytest.raises(KeysError, match=re.escape(f"serving.host is {host!r} and there are no keys")):
        check_exposure(host, Keys(), insecure=False)
    check_exposure(host, Keys(), insecure=True)
    check_exposure(host, Keys(lines=new_key("a", ["rank"])[1]), insecure=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_on_its_own_machine_the_service_needs_no_keys(host: str) -> None:
    check_exposure(host, Keys(), insecure=False)


def test_each_route_needs_its_scope_and_public_routes_need_none(url: str) -> None:
    keys = {scope: new_key(scope.replace(":", "-"), [scope]) for scope in SCOPES}
    good = Keys(lines="\n".join(line for _, line in keys.values()))
    wanted = {
        ("POST", "/v1/rank"): "rank",
        ("GET", "/v1/similar/x"): "rank",
        ("POST", "/v1/events"): "events",
        ("POST", "/v1/users/ann/merge"): "merge",
        ("GET", "/metrics"): "metrics",
    }
    with served(url, good=good) as client:
        for (method, path), needed in wanted.items():
            anonymous = client.request(method, path)
            assert refused(anonymous, 401)["detail"] == "no key was sent"
            assert anonymous.headers["www-authenticate"] == 'Bearer realm="shelfwise"'
            for scope, (key, _) in keys.items():
                name, answer = scope.replace(":", "-"), client.request(method, path, headers=bearer(key))
                assert (answer.status_code != 403) is (scope == needed)
                if scope != needed:
                    assert refused(answer, 403)["detail"] == f"key {name!r} does not have scope {needed!r}"
                else:
                    assert answer.status_code in (200, 400, 503), "a route answered"
        wrong = client.post("/v1/rank", headers=bearer(keys["rank"][0][:-1] + "!"))
        assert refused(wrong, 401)["detail"] == "the key is not valid"
        twice = client.post("/v1/rank", headers=[("Authorization", f"Bearer {keys['rank'][0]}")] * 2)
        refused(twice, 401)
        for path in ("/health/live", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200
        assert client.get("/health/ready").status_code in (200, 503)


def test_the_documentation_names_the_scope_of_every_route() -> None:
    document = create_app(AWAY, "unix:///nowhere").openapi()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, methods in document["paths"].items():
        for operation in methods.values():
            named = [scope for one in operation["security"] for scope in one["key"]]
            assert named == [] if path.startswith("/health") else set(named) <= set(SCOPES)
            assert named or path.startswith("/health")


def test_a_route_without_a_valid_scope_is_refused_at_startup() -> None:
    service = create_app(AWAY, "unix:///nowhere")
    service.get("/v1/new")(lambda: None)
    with pytest.raises(ValueError, match="/v1/new does not declare the scope it needs"):
        rules_of(service.routes)
    mounted = create_app(AWAY, "unix:///nowhere")
    mounted.mount("/files", create_app(AWAY, "unix:///nowhere"))
    with pytest.raises(ValueError, match="is not a plain route and cannot be guarded"):
        rules_of(mounted.routes)
    with pytest.raises(ValueError, match="unknown scope 'root'; use one of rank"):
        needs("root")


def test_a_key_is_limited_to_its_rate_and_responses_say_what_is_left(url: str) -> None:
    (slow, line), (other, more) = new_key("slow", ["rank"], 3), new_key("other", ["rank"])
    with served(url, good=Keys(lines=f"{line}\n{more}")) as client:
        answers = [client.post("/v1/rank", content=b"{", headers=bearer(slow)) for _ in range(5)]
        over = [a for a in answers if a.status_code == 429]
        assert over, "a burst of three, then three per second"
        assert [a.status_code for a in answers[:3]] == [400] * 3
        assert [a.headers["ratelimit"] for a in answers[:2]] == ['"key";r=2;t=1', '"key";r=1;t=1']
        assert answers[0].headers["ratelimit-policy"] == '"key";q=3;w=1'
        assert refused(over[0], 429)["detail"] == "key 'slow' is limited to 3 requests per second"
        assert over[0].headers["retry-after"] == "1"
        free = client.post("/v1/rank", content=b"{", headers=bearer(other))
        assert (free.status_code, "ratelimit" in free.headers) == (400, False)


def test_only_configured_origins_may_call_from_a_browser(url: str) -> None:
    config = AWAY.model_copy(update={"cors_origins": ("https://shop.test",)})
    key, line = new_key("page", ["rank"])
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with served(url, config, good=Keys(lines=line)) as client:
        for origin, allowed in (("https://shop.test", "https://shop.test"), ("https://evil.test", None)):
            before = client.options("/v1/rank", headers=preflight | {"Origin": origin})
            answer = client.post("/v1/rank", content=b"{", headers=bearer(key) | {"Origin": origin})
            assert before.headers.get("access-control-allow-origin") == allowed
            assert answer.headers.get("access-control-allow-origin") == allowed
        assert answer.status_code == 403, "a write from a page of another origin is refused, even with a valid key"
    with served(url) as client:
        assert (
            "access-control-allow-origin"
            not in client.get("/health/live", headers={"Origin": "https://shop.test"}).headers
        )


def test_the_command_prints_a_key_and_its_line() -> None:
    command = ["keys", "new", "--name", "shop", "--scope"]
    lines = CliRunner().invoke(app, [*command, "rank,events"]).output.splitlines()
    key, line = (text.split(":", 1)[1].strip() for text in lines)
    found = Keys(lines=line).of(f"Bearer {key}")
    assert found is not None
    assert found.scopes == {"rank", "events"}
    with pytest.raises(KeysError, match="unknown scope all"):
        CliRunner().invoke(app, [*command, "all"], catch_exceptions=False)


def test_the_serve_command_refuses_to_be_open_to_everyone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.yaml").write_text("serving: {host: 0.0.0.0}\n")
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    with pytest.raises(KeysError, match="there are no keys"):
        CliRunner().invoke(app, ["serve", "-c", str(tmp_path / "c.yaml"), "-w", str(tmp_path)], catch_exceptions=False)


def test_a_problem_has_the_request_id_of_its_header(url: str) -> None:
    with served(url) as client:
        answer: httpx.Response = client.post("/v1/rank", content=b"{")
        assert refused(answer, 400)["instance"] == f"urn:shelfwise:request:{answer.headers['x-request-id']}"
