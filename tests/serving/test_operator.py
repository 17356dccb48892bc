"""The API of the operator's page, over real HTTP and a real Valkey."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from serving.http.keys import Keys, new_key
from serving.pages.operator.page import CHANGE, FILES
from serving.release import registry
from serving.release.judgements import FILE, read_judgements, write_judgement
from serving.store import BulkStore
from serving.store.embedded import connect_url
from tests.serving.test_release import planted_items, planted_model, publish
from tests.serving.test_service import FAST, ready, served, until

PAGE = FAST.model_copy(update={"operator": True})
AT = 1_700_000_000.0
DRIFT = {f"f{k}": float(k) for k in range(10)}


def gate(candidate: str, live: str | None, verdict: str = "promote", message: str = "not worse") -> dict[str, Any]:
    difference = {"difference": 0.01, "low": -0.01, "high": 0.03}
    return {
        "candidate": candidate,
        "live": live,
        "verdict": verdict,
        "reasons": [["quality", verdict, message]],
        "figures": {"all": difference} if live else {},
    }


EVALUATION = {
    "systems": {"ranker": {"all": {"ndcg@10": 0.45}}, "popularity": {"all": {"ndcg@10": 0.35}}},
    "intervals": {"ranker": {"all": {"ndcg@10": [0.43, 0.47]}}},
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with connect_url(None, tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture
def root(url: str, tmp_path: Path) -> Path:
    """Two releases, published one after the other; the second is live. The gate passed both."""
    items = planted_items()
    two = [publish(tmp_path, model_text=planted_model(items, sign=sign)) for sign in (1.0, -1.0)]
    with redis.Redis.from_url(url) as raw, BulkStore(url) as store:
        raw.flushall()
        for k, path in enumerate(two):
            write_judgement(tmp_path, gate(path.name, two[0].name if k else None), EVALUATION, DRIFT, AT)
            registry.promote(tmp_path, store, path.name, "passed the nightly gate", action="publish")
    return tmp_path


@pytest.fixture
def client(url: str, root: Path) -> Iterator[httpx.Client]:
    with served(url, PAGE) as client:
        ready(client)
        yield client


def board(client: httpx.Client) -> dict[str, Any]:
    answer = client.get("/v1/operator/board")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def lineage(root: Path) -> list[str]:
    return registry.lineage(root)


def after_change(client: httpx.Client) -> dict[str, Any]:
    """The board once the requested change has ended."""
    until(lambda: board(client)["change"]["state"] != "running")
    return board(client)


def test_the_page_is_off_by_default(url: str, root: Path) -> None:
    with served(url, FAST) as client:
        assert client.get("/operator").status_code == 404
        assert client.get("/v1/operator/board").status_code == 404


def test_the_files_need_no_key_but_the_api_needs_scope_admin(url: str, root: Path) -> None:
    """Without a key the status is 401, with a key for other scopes 403; for promotion as well."""
    (admin, one), (rank, other) = new_key("boss", ["admin"]), new_key("shop", ["rank", "events", "metrics"])
    with served(url, PAGE, good=Keys(lines=f"{one}\n{other}")) as client:
        ready(client)
        for name in FILES:
            answer = client.get("/operator" if name == "index.html" else f"/operator/{name}")
            assert answer.status_code == 200
            assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        for method, path in (("GET", "board"), ("GET", "timeline"), ("POST", "promote"), ("POST", "rollback")):
            for key, status in ((None, 401), (rank, 403)):
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                assert client.request(method, f"/v1/operator/{path}", headers=headers).status_code == status
        client.headers["Authorization"] = f"Bearer {admin}"
        live, before = lineage(root)[-1], lineage(root)[0]
        client.post("/v1/operator/rollback", json={"live": live, "reason": "prices are wrong"}).raise_for_status()
        assert after_change(client)["change"]["state"] == "done"
        line = registry.release_history(root)[-1]
        assert (line["action"], line["release"], line["reason"]) == ("rollback", before, "prices are wrong")
        assert line["by"].startswith("boss@"), "the audit log has the name of the key"


def test_the_board_has_each_release_with_its_quality_and_gate_verdict(client: httpx.Client, root: Path) -> None:
    before, live = lineage(root)
    page = board(client)
    assert (page["live"], page["here"], page["degraded"]) == (live, live, "")
    rows = {r["release"]: r for r in page["releases"]}
    assert (rows[live]["state"], rows[before]["state"]) == ("live", "previous")
    night = rows[live]["night"]
    assert night["verdict"] == "promote"
    assert night["reasons"] == [["quality", "promote", "not worse"]]
    assert night["quality"] == {"ranker": [0.45, 0.43, 0.47], "popularity": [0.35]}
    assert night["difference"] == [0.01, -0.01, 0.03]
    assert night["drift"] == {"f9": 9.0, "f8": 8.0, "f7": 7.0, "f6": 6.0, "f5": 5.0}, (
        "the five features with the most drift"
    )
    assert night["drift_median"] == (4 + 5) / 2
    assert rows[before]["night"]["difference"] is None, "there was no release to compare the first with"
    assert [a["release"] for a in page["audit"]] == [live, before], "newest first"


def test_a_promotion_goes_live_and_is_in_the_audit_log(client: httpx.Client, root: Path) -> None:
    before, live = lineage(root)
    body = {"live": live, "release": before, "reason": "it sold more"}
    answer = client.post("/v1/operator/promote", json=body)
    assert (answer.status_code, answer.json()["state"]) == (202, "running")
    page = after_change(client)
    assert (page["live"], page["change"]["state"], page["change"]["error"]) == (before, "done", "")
    until(lambda: client.get("/health/ready").json()["release"] == before)
    assert page["audit"][0]["action"] == "promote"
    assert page["audit"][0]["reason"] == "it sold more"


def test_a_rollback_goes_only_to_the_previous_release(client: httpx.Client, root: Path) -> None:
    before, live = lineage(root)
    wrong = client.post("/v1/operator/rollback", json={"live": live, "release": live, "reason": "?"})
    assert wrong.status_code == 409
    assert before in wrong.json()["detail"]
    client.post("/v1/operator/rollback", json={"live": live, "release": before, "reason": "worse"}).raise_for_status()
    assert after_change(client)["live"] == before
    nothing = client.post("/v1/operator/rollback", json={"live": before, "reason": "further"})
    assert nothing.status_code == 409, "there is no release before the first"


def test_a_change_based_on_an_outdated_board_is_refused(client: httpx.Client, root: Path) -> None:
    """Of two operators acting at the same time, the second must not undo a change they have not seen."""
    before, live = lineage(root)
    answer = client.post("/v1/operator/promote", json={"live": before, "release": before, "reason": "x"})
    assert (answer.status_code, answer.json()["field"]) == (409, "live")
    assert lineage(root) == [before, live], "nothing must change"


def test_a_running_change_blocks_others_until_it_is_considered_dead(client: httpx.Client, url: str, root: Path) -> None:
    before, live = lineage(root)
    body = {"live": live, "release": before, "reason": "x"}
    with redis.Redis.from_url(url) as raw:
        for age, status in ((10.0, 409), (700.0, 202)):
            change = {"action": "promote", "release": live, "by": "y", "at": time.time() - age, "state": "running"}
            raw.set(f"sw:{CHANGE}", json.dumps(change))
            assert client.post("/v1/operator/promote", json=body).status_code == status
    assert after_change(client)["live"] == before


def test_of_changes_requested_at_the_same_time_one_is_made(url: str, root: Path) -> None:
    """Twelve requests to two workers: one is accepted, the others are told that another change is in progress."""
    before, live = lineage(root)
    body = {"live": live, "release": before, "reason": "x"}
    with served(url, PAGE) as one, served(url, PAGE) as two, ThreadPoolExecutor(12) as pool:
        ready(one)
        ready(two)
        answers = list(pool.map(lambda k: (one, two)[k % 2].post("/v1/operator/promote", json=body), range(12)))
        assert sorted(a.status_code for a in answers) == [202] + [409] * 11
        assert after_change(one)["live"] == before
    assert [line["action"] for line in registry.release_history(root)] == ["publish", "publish", "promote"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"release": "20200101-0000000000"}, 404),
        ({"release": "../secrets"}, 404),
        ({"release": ""}, 422),
        ({"reason": ""}, 422),
        ({"reason": None}, 422),
        ({"reason": "x" * 501}, 422),
        ({"live": 7}, 422),
        ({"residual": 1}, 422),
    ],
)
def test_an_invalid_change_is_refused_and_changes_nothing(
    client: httpx.Client, root: Path, change: dict[str, Any], status: int
) -> None:
    before, live = lineage(root)
    answer = client.post("/v1/operator/promote", json={"live": live, "release": before, "reason": "x"} | change)
    assert answer.status_code == status, answer.text
    assert answer.json()["remedy"]
    assert lineage(root) == [before, live]


def test_a_page_of_another_site_cannot_change_anything(client: httpx.Client, root: Path) -> None:
    before, live = lineage(root)
    body = {"live": live, "release": before, "reason": "x"}
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 202)):
        answer = client.post("/v1/operator/promote", json=body, headers={"Sec-Fetch-Site": site})
        assert answer.status_code == status, site
    after_change(client)


def test_promotion_of_a_damaged_release_fails_and_the_board_says_why(client: httpx.Client, root: Path) -> None:
    before, live = lineage(root)
    file = root / before / "ranker.txt"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    client.post("/v1/operator/promote", json={"live": live, "release": before, "reason": "x"}).raise_for_status()
    page = after_change(client)
    assert page["change"]["state"] == "failed"
    assert "ranker.txt" in page["change"]["error"]
    assert page["live"] == live, "the live release must not change"


def test_without_redis_the_board_is_read_from_disk_and_nothing_can_be_changed(tmp_path: Path) -> None:
    release = publish(tmp_path)
    write_judgement(tmp_path, gate(release.name, None), EVALUATION, DRIFT, AT)
    with served("redis://127.0.0.1:1", PAGE, release) as client:
        ready(client)
        page = board(client)
        assert page["degraded"]
        assert [r["release"] for r in page["releases"]] == [release.name]
        assert client.get("/v1/operator/timeline").status_code == 503
        answer = client.post("/v1/operator/rollback", json={"live": release.name, "reason": "x"})
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


def test_an_unusable_release_is_listed_with_its_problem(client: httpx.Client, root: Path) -> None:
    bad = root / "20990101-0123456789"
    bad.mkdir()
    (bad / "manifest.json").write_text("{")
    rows = {r["release"]: r for r in board(client)["releases"]}
    assert "manifest.json" in rows[bad.name]["problem"]


def test_the_last_judgement_of_a_release_counts_and_a_damaged_line_is_ignored(tmp_path: Path) -> None:
    write_judgement(tmp_path, gate("a", None, "ask"), EVALUATION, {}, AT)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"candidate": "b", "at"')
    write_judgement(tmp_path, gate("a", None, "keep", "worse"), EVALUATION, {"f": float("nan")}, AT)
    assert [(line["candidate"], line["verdict"]) for line in read_judgements(tmp_path)] == [("a", "keep")]


def test_numbers_that_are_not_finite_are_null(client: httpx.Client, root: Path) -> None:
    write_judgement(root, gate("z", None), EVALUATION, {"f": float("nan"), "g": float("inf")}, AT + 1)
    assert board(client)["nights"][-1]["drift"] == {"g": None}, "infinity is null, and NaN is left out"
