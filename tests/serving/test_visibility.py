"""Over several worker processes: what is sent to one is known to the others, and a new item is ranked by its text."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from serving.store.embedded import connect_url
from tests.bench.visibility import Shop, running, shop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Two service processes and an embedding worker with the packaged encoder."""
    root = tmp_path_factory.mktemp("shop")
    with connect_url(None, root / "redis") as url, running(url, shop(root, time.time() - 3600)) as made:
        yield made


def test_a_click_is_in_the_next_ranking_whichever_worker_is_asked(made: Shop) -> None:
    """Asked once each, with no waiting: the user's lists are in Redis before the event is acknowledged."""
    for n in range(20):
        user, like = f"asked{n}", f"i{(n + 8) % 240:03d}"
        before = [made.scores(w, [like], user)[like] for w in (0, 1)]
        made.ask[n % 2].post("/v1/events", json={"event": "click", "user_id": user, "item_id": f"i{n:03d}"})
        after = [made.scores(w, [like], user)[like] for w in (0, 1)]
        assert after[0] != before[0]
        assert after[1] != before[1]


def test_item_state_withdrawals_and_new_items_reach_every_worker(made: Shop) -> None:
    """How soon is measured by `python -m tests.bench.visibility`; here it must come true at all."""
    assert set(made.clicked(100)) == {
        "own_list_same_worker",
        "own_list_other_worker",
        "item_state_same_worker",
        "item_state_other_worker",
    }
    assert made.withdrawn(3)
    assert made.new(5)
