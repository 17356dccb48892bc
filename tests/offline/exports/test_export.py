"""Exports: the lists of the service for many users, and the users for whom a product is among the first."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.parquet as pq
import pytest
import redis
from typer.testing import CliRunner

from features.log import Kind
from offline.cli.app import app
from offline.config import Config, load
from offline.data import Storage
from offline.data.collection import collect
from offline.exports import (
    Audience,
    Destination,
    Export,
    live_at,
    merchandising_of,
    read_user_ids,
    started_at,
    write_export,
)
from offline.runtime import LOCAL, DataError, Failure
from serving.config import PlacementConfig
from serving.merchandising import Change, Document, MerchandisingRule, read_rules, write_document
from serving.ranking import Placement
from serving.release.release import load_release
from serving.rules import Condition, Rules
from serving.store import MERCHANDISING, BulkStore, Event, Merge, Pointer, Store, UserLimits, merging
from tests.offline.data.test_collection import data
from tests.offline.evaluation.test_skew import earlier_events, items_after, write_events
from tests.serving.test_release import CUT_OFF, publish
from tests.serving.test_service import FAST, ready, served, url

__all__ = ["data", "url"]
AT = CUT_OFF + 3600.0
LATER = [
    Event(f"l{n}", int(kind), user, item, CUT_OFF + 60.0 + n)
    for n, (kind, user, item) in enumerate(
        [
            (Kind.CLICK, "u1", "red-03"),
            (Kind.PURCHASE, "u1", "red-05"),
            (Kind.CLICK, "u9", "blue-02"),
            (Kind.VIEW, "u9", "red-01"),
        ]
    )
]
"""Events after the release, of a known user and of a new one."""
USERS = ["u0", "u1", "u2", "u3", "u9"]
EXCLUDE = {"exclude": [{"events": ["purchase"]}], "pin": [{"item_id": "blue-04", "position": 1}]}


class Shop(NamedTuple):
    config: Config
    store: BulkStore
    url: str
    release: Path

    def export(self, at: float = AT, users: Sequence[str] | None = None, **changed: Any) -> Export:
        """An export of five items each, in files of two users."""
        live, shoppers = live_at(self.config, load_release(self.release), self.store, at, users)
        given: dict[str, Any] = {"limit": 5, "size": 500, "users_per_file": 2}
        return Export(live, shoppers, at, **(given | changed))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("releases"), items_after(earlier_events()))


@pytest.fixture
def shop(url: str, release: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """A shop with a live release, whose log has events before and after the release, as has Redis."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "data").symlink_to(data, target_is_directory=True)
    (workspace / "releases").symlink_to(release.parent, target_is_directory=True)
    write_events(earlier_events(), data / "events.parquet")
    monkeypatch.setenv("REDIS_URL", url)
    with redis.Redis.from_url(url) as raw, BulkStore(url) as store:
        raw.flushall()
        store.write(earlier_events(), CUT_OFF)
        raw.delete("sw:events")  # events before the release are in its item state already
        store.write(LATER, AT)
        store.set_pointer(Pointer(release.name, str(release)))
        config = load(None, workspace=workspace)
        collect(config.data, store)
        yield Shop(config, store, url, release)


def to(folder: Path, **changed: Any) -> Destination:
    return Destination(Storage.of(folder), **changed)


def rows_of(folder: Path) -> list[tuple[Any, ...]]:
    """(user, position, item, score) of all files, in order."""
    parts = [pq.read_table(p) for p in sorted(folder.glob("part-*.parquet"))]
    return [tuple(row.values()) for part in parts for row in part.to_pylist()]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def answers(shop: Shop, body: dict[str, Any], settings: Any = FAST) -> list[tuple[Any, ...]]:
    """The rows that an export should have, from the answers of a service whose clock stands at AT."""
    with served(shop.url, settings, shop.release, lambda: AT) as client:
        ready(client)
        lists = {u: client.post("/v1/recommend", json={"user_id": u, "shown": False, **body}).json() for u in USERS}
    return [(u, k, i["item_id"], i["score"]) for u in USERS for k, i in enumerate(lists[u]["items"])]


def test_lists_are_those_of_the_service_at_that_time(shop: Shop, tmp_path: Path) -> None:
    expected = answers(shop, {"limit": 5})
    done = write_export(shop.export(), to(tmp_path / "out"))
    assert (done.users, done.new, done.rows, done.files, done.reused) == (5, 0, 25, 3, 0), "two users per file"
    assert rows_of(tmp_path / "out") == expected


def test_a_merged_guest_is_left_out_and_the_user_has_the_joined_history(shop: Shop, tmp_path: Path) -> None:
    """u1 logged in as u0: the service recommends to u0 by what both did, and u1 has nothing left."""
    write_export(shop.export(), to(tmp_path / "before"))
    before = [row for row in rows_of(tmp_path / "before") if row[0] == "u0"]
    shop.store.run(merging.merge_command(shop.store.layout, Merge("u0", "u1", AT - 60), UserLimits()))
    collect(shop.config.data, shop.store)
    done = write_export(shop.export(), to(tmp_path / "out"))
    assert done.users == 4
    expected = [row for row in answers(shop, {"limit": 5}) if row[0] != "u1"]
    assert rows_of(tmp_path / "out") == expected
    assert [row for row in expected if row[0] == "u0"] != before


def test_lists_follow_the_rules_of_the_configuration_and_of_the_export(shop: Shop, tmp_path: Path) -> None:
    cheap = Rules(filter=Condition(attribute="price", lt=6.0))
    expected = answers(shop, {"limit": 5, "rules": EXCLUDE}, FAST.model_copy(update={"rules": cheap}))
    write_export(shop.export(standing=cheap, rules=msgspec.convert(EXCLUDE, Rules)), to(tmp_path / "out"))
    assert rows_of(tmp_path / "out") == expected
    assert ("u1", "red-05") not in {(u, i) for u, _, i, _ in expected}, "u1 bought it"
    assert expected != answers(shop, {"limit": 5})


def test_lists_of_a_placement_have_its_sources_and_rules(shop: Shop, tmp_path: Path) -> None:
    """Its rules are after those of the configuration and before those of the export; `again` is what the user had."""
    config = PlacementConfig(sources={"again": 1.0}, rules=Rules(filter=Condition(attribute="price", lt=8.0)))
    settings = FAST.model_copy(update={"placements": {"mail": config}})
    expected = answers(shop, {"limit": 5, "rules": EXCLUDE, "placement": "mail"}, settings)
    rules = msgspec.convert(EXCLUDE, Rules)
    write_export(shop.export(placement=Placement.of("mail", config), rules=rules), to(tmp_path / "out"))
    assert rows_of(tmp_path / "out") == expected
    assert 0 < len(expected) < len(answers(shop, {"limit": 5, "rules": EXCLUDE}))


def merchandise(shop: Shop) -> None:
    """Merchandisers pin blue-04 to the second position. Other rules are over, for a placement, or cannot be served."""
    first = {"pin": [{"item_id": "blue-06", "position": 0}]}
    given: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("top", {"pin": [{"item_id": "blue-04", "position": 1}]}, {}),
        ("over", first, {"end": CUT_OFF}),
        ("cart", first, {"placement": "cart"}),
        ("style", {"filter": {"attribute": "style", "eq": "new"}}, {}),
    ]
    rules = [MerchandisingRule(n, msgspec.convert(r, Rules), created=k, **m) for k, (n, r, m) in enumerate(given)]

    async def write() -> None:
        store = Store(shop.url, 5.0)
        await write_document(store, "", Document(1, rules), Change(1, AT, "ann", "put", "", [], rules))
        await store.close()

    asyncio.run(write())


def test_lists_follow_the_rules_of_merchandisers_that_apply_at_that_time(shop: Shop, tmp_path: Path) -> None:
    merchandise(shop)
    expected = answers(shop, {"limit": 5}, FAST.model_copy(update={"merchandising": True}))
    assert {item for _, position, item, _ in expected if position == 1} == {"blue-04"}
    rules = merchandising_of(read_rules(shop.store), None, AT)
    assert [r.id for r in rules] == ["top", "style"]
    write_export(shop.export(merchandising=rules), to(tmp_path / "out"), OtherProcess())  # type: ignore[arg-type]
    assert rows_of(tmp_path / "out") == expected


def test_an_interrupted_export_goes_on_with_the_rules_of_merchandisers_that_it_began_with(
    shop: Shop, tmp_path: Path
) -> None:
    merchandise(shop)
    (tmp_path / "shop.yaml").write_text("serving: {merchandising: true}")
    common = ("--config", str(tmp_path / "shop.yaml"), "--workspace", str(shop.config.workspace), "--as-of-data")
    result = run("export", "--to", str(tmp_path / "out"), *common)
    assert result.exit_code == 0, result.output
    assert "merchandising rule style is not used: merchandising.style.filter.attribute: unknown" in result.output
    whole, summary = bytes_of(tmp_path / "out"), json.loads((tmp_path / "out" / "export.json").read_text())
    assert [rule["id"] for rule in summary["settings"]["merchandising"]] == ["top", "style"]
    (tmp_path / "out" / "part-00000.parquet").unlink()
    (tmp_path / "out" / "export.json").write_text(json.dumps(summary | {"complete": False}))
    shop.store.run([["DEL", shop.store.layout.key(MERCHANDISING)]])
    assert run("export", "--to", str(tmp_path / "out"), *common).exit_code == 0
    assert bytes_of(tmp_path / "out") == whole


def test_a_written_item_is_used_and_a_withdrawn_one_is_not(shop: Shop, tmp_path: Path) -> None:
    best = answers(shop, {"limit": 1})[0][2]
    with served(shop.url, FAST, shop.release, lambda: AT) as client:
        ready(client)
        assert client.delete(f"/v1/items/{best}").status_code == 202
        assert client.put("/v1/items", json={"item_id": "new", "title": "A new thing", "price": 3}).status_code == 202
    expected = answers(shop, {"limit": 50})
    collect(shop.config.data, shop.store)
    write_export(shop.export(limit=50), to(tmp_path / "out"))
    assert rows_of(tmp_path / "out") == expected
    items = {i for _, _, i, _ in expected}
    assert "new" in items
    assert best not in items


def test_users_without_history_get_the_list_of_a_new_user(shop: Shop, tmp_path: Path) -> None:
    done = write_export(shop.export(users=["nobody", "u1", "someone"]), to(tmp_path / "out"))
    assert (done.users, done.new, done.rows) == (3, 2, 15)
    by_user = {
        u: [(k, i, s) for v, k, i, s in rows_of(tmp_path / "out") if v == u] for u in ("nobody", "u1", "someone")
    }
    assert by_user["nobody"] == by_user["someone"] != by_user["u1"]


def test_users_whose_events_have_expired_are_left_out(shop: Shop, tmp_path: Path) -> None:
    """Lists are kept for 180 days after the newest event, which is an hour before AT, or eleven days for others."""
    in_180_days = CUT_OFF + 180 * 86400.0 + 30.0
    done = write_export(shop.export(at=in_180_days), to(tmp_path / "out"))
    assert {u for u, *_ in rows_of(tmp_path / "out")} == {"u1", "u9"}, "their newest events are after the cut-off"
    assert done.users == 2
    with pytest.raises(DataError, match="no user has an event that has not expired"):
        shop.export(at=in_180_days + 86400.0)


class Stopped(Exception):
    """Stands for the end of the process."""


def test_an_interrupted_export_continues_with_the_same_bytes(shop: Shop, tmp_path: Path) -> None:
    write_export(shop.export(), to(tmp_path / "whole"))

    def stop(done: int, total: int) -> None:
        if done >= 2:
            raise Stopped

    with pytest.raises(Stopped):
        write_export(shop.export(), to(tmp_path / "out"), on_progress=stop)
    assert sorted(bytes_of(tmp_path / "out")) == ["export.json", "part-00000.parquet"]
    assert started_at(Storage.of(tmp_path / "out")) == AT
    done = write_export(shop.export(), to(tmp_path / "out"))
    assert (done.rows, done.files, done.reused) == (25, 3, 1)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert started_at(Storage.of(tmp_path / "out")) is None, "it is finished"


class OtherProcess:
    """An engine that, like Ray, sends all that it shares to other processes."""

    parts, workers = 4, 1

    def map(self, function: Any, shared: Any, parts: Sequence[Any]) -> Iterator[Any]:
        yield from LOCAL.map(function, pickle.loads(pickle.dumps(shared)), parts)  # noqa: S301


def test_another_engine_writes_the_same_bytes(shop: Shop, tmp_path: Path) -> None:
    rules = msgspec.convert(EXCLUDE, Rules)
    write_export(shop.export(rules=rules), to(tmp_path / "here"))
    write_export(shop.export(rules=rules), to(tmp_path / "there"), OtherProcess())  # type: ignore[arg-type]
    assert bytes_of(tmp_path / "there") == bytes_of(tmp_path / "here")


def test_a_destination_with_another_export_is_refused(shop: Shop, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done:
            raise Stopped

    with pytest.raises(Stopped):
        write_export(shop.export(), to(tmp_path / "out"), on_progress=stop)
    with pytest.raises(Failure, match="an unfinished export with another limit and at"):
        write_export(shop.export(at=AT + 1, limit=6), to(tmp_path / "out"))
    assert write_export(shop.export(limit=6), to(tmp_path / "out", restart=True)).rows == 30
    with pytest.raises(Failure, match="has a finished export; write to another folder, or replace it with --restart"):
        write_export(shop.export(limit=6), to(tmp_path / "out"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    with pytest.raises(Failure, match="is not empty"):
        write_export(shop.export(), to(tmp_path / "photos"))
    assert sorted(bytes_of(tmp_path / "photos")) == ["cat.png"]


def test_the_audience_of_a_product_are_the_users_who_have_it_among_the_first(shop: Shop, tmp_path: Path) -> None:
    item = "red-07"
    place = {(u, i): k for u, k, i, _ in answers(shop, {"limit": 20})}
    last = max(place[u, item] for u in USERS)
    audience = Audience(Condition(attribute="item_id", eq=item), within=last)
    write_export(shop.export(audience=audience), to(tmp_path / "out"))
    expected = {u: place[u, item] for u in USERS if place[u, item] < last}
    assert {u: k for u, k, _, _ in rows_of(tmp_path / "out")} == expected
    assert 0 < len(expected) < len(USERS)
    assert {i for _, _, i, _ in rows_of(tmp_path / "out")} == {item}


def test_the_audience_of_a_condition_has_the_best_matching_product(shop: Shop, tmp_path: Path) -> None:
    """The condition is on the category, which is the colour; of each user, the first blue item of the list."""
    audience = Audience(Condition(attribute="category", eq="blue"), within=3)
    write_export(shop.export(audience=audience), to(tmp_path / "out"))
    first = {}
    for u, k, i, s in answers(shop, {"limit": 3}):
        if i.startswith("blue") and u not in first:
            first[u] = (u, k, i, s)
    assert rows_of(tmp_path / "out") == list(first.values())
    assert first


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_the_commands_write_csv_for_the_users_of_a_file(shop: Shop, tmp_path: Path) -> None:
    users = tmp_path / "users.csv"
    users.write_text("name,user_id\nAnn,u1\nBea,007\nAnn again, u1 \n")
    common = ("--workspace", str(shop.config.workspace), "--users", str(users), "--format", "csv", "--as-of-data")
    result = run("export", "--to", str(tmp_path / "mail"), "--limit", "3", *common)
    assert result.exit_code == 0, result.output
    assert "6 rows for 2 users, of whom 1 have no history, in 1 files" in result.output
    text = {"user_id": pa.string()}
    table = pv.read_csv(tmp_path / "mail" / "part-00000.csv", convert_options=pv.ConvertOptions(column_types=text))
    assert table["user_id"].to_pylist() == ["007"] * 3 + ["u1"] * 3
    assert table["position"].to_pylist() == [0, 1, 2] * 2
    summary = json.loads((tmp_path / "mail" / "export.json").read_text())
    assert (summary["complete"], summary["at"], summary["rows"]) == (True, CUT_OFF, 6)
    result = run("audience", "--to", str(tmp_path / "who"), "--item", table["item_id"][3].as_py(), *common)
    assert result.exit_code == 0, result.output
    found = pv.read_csv(tmp_path / "who" / "part-00000.csv", convert_options=pv.ConvertOptions(column_types=text))
    assert "u1" in found["user_id"].to_pylist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "--format", "xml"], "--format xml: expected parquet or csv"),
        (["export", "--rules", "rules.json"], "rules.json: "),
        (["export", "--users", "gone.csv"], "gone.csv: no such file"),
        (["export", "--placement", "kitchen"], "--placement kitchen: no such placement; the configuration has none"),
        (["export", "--placement", "cart", "--config", "placed.yaml"], "--placement cart: its lists need items, which"),
        (["audience"], "give either --item ID or --when FILE"),
        (["audience", "--item", "a", "--when", "b"], "give either --item ID or --when FILE"),
        (["audience", "--when", "shade.json"], "condition.attribute: unknown attribute 'shade'"),
    ],
)
def test_a_wrong_setting_is_refused_with_the_reason(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rules.json").write_text('{"filters": 1}')
    Path("shade.json").write_text('{"attribute": "shade", "eq": "dark"}')
    Path("placed.yaml").write_text("placements: {cart: {requires: [items]}}")
    result = run(*arguments, "--to", "out", "--as-of-data", "--workspace", str(shop.config.workspace))
    assert result.exit_code == 1
    assert message in str(result.exception)
    assert not Path("out").exists()


def write_users(folder: Path, kind: str, ids: Iterable[str]) -> Path:
    path = folder / f"users.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"user_id": list(ids)}), path)
    elif kind == "csv":
        path.write_text("user_id\n" + "".join(f"{i}\n" for i in ids))
    else:
        path.write_text("\ufeff" + "".join(f"{i}\n" for i in ids), "utf-8")
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "txt"])
def test_user_ids_are_read_in_canonical_form_and_once(tmp_path: Path, kind: str) -> None:
    assert read_user_ids(write_users(tmp_path, kind, ["b", " a ", "007", "a"])) == ["007", "a", "b"]


@pytest.mark.parametrize("kind", ["parquet", "csv", "txt"])
def test_an_invalid_user_id_is_refused_with_its_row(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match=r"users\.\w+, row 1: 'undefined'"):
        read_user_ids(write_users(tmp_path, kind, ["a", "undefined"]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("users.csv", b"email\na\n", "has no column 'user_id'"),
        ("users.csv", b"", "cannot be read"),
        ("users.parquet", b"PAR1", "cannot be read"),
        ("users.txt", b"\xff\xfe", "cannot be read"),
        ("users.txt", b"\n\n", "has no user ID"),
    ],
)
def test_a_file_without_user_ids_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_user_ids(tmp_path / name)


def test_scores_are_finite_and_fall(shop: Shop, tmp_path: Path) -> None:
    write_export(shop.export(limit=20), to(tmp_path / "out"))
    for user in USERS:
        score = np.array([s for u, _, _, s in rows_of(tmp_path / "out") if u == user])
        assert np.isfinite(score).all()
        assert (np.diff(score) <= 0).all()
