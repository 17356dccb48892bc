"""The document of merchandising rules without HTTP: changes and undo, bounds, times, and what cannot be served."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.merchandising import (
    BoundError,
    Change,
    Compiled,
    Document,
    Followed,
    MerchandisingRule,
    Stored,
    UndoError,
    changed,
    check_bounds,
    compile_document,
    read_changes,
    read_document,
    restored,
    stored,
    with_rule,
    without_rule,
    write_document,
)
from serving.merchandising.copied import FILE, read_copy, write_copy
from serving.rules import Attributes, Plan, Rules
from serving.store import Store
from serving.store.embedded import connect_url
from tests.serving.test_release import planted_items

ATTRIBUTES = Attributes(planted_items())
HOUR = 3600.0


def rule(rule_id: str, created: int = 1, when: dict[str, Any] | None = None, **rules: Any) -> MerchandisingRule:
    given_rules = rules or {"pin": [{"item_id": "red-05", "position": 0}]}
    return MerchandisingRule(rule_id, msgspec.convert(given_rules, Rules), created=created, **(when or {}))


def changes_of(steps: list[tuple[str, str, int]]) -> tuple[list[Document], list[Change]]:
    """The documents after each step, beginning with the empty one, and the changes, newest first."""
    documents, changes = [Document()], list[Change]()
    for action, rule_id, number in steps:
        before = documents[-1]
        if action == "put":
            old = before.rule(rule_id)
            created = before.version + 1 if old is None else old.created
            after = with_rule(before, rule(rule_id, created, {"note": str(number)}))
        elif action == "delete":
            after = without_rule(before, rule_id)
        else:
            after = restored(before, changes, number % (before.version + 1))
        changes.insert(0, Change(after.version, 0.0, "x", "put", "", *changed(before, after)))
        documents.append(after)
    return documents, changes


steps = st.lists(
    st.tuples(st.sampled_from(["put", "put", "delete", "undo"]), st.sampled_from("abc"), st.integers(0, 9)), max_size=12
)


@given(steps)
@settings(max_examples=80, deadline=None)
def test_every_earlier_version_can_be_restored_with_the_same_rules_in_the_same_order(
    given_steps: list[tuple[str, str, int]],
) -> None:
    documents, changes = changes_of(given_steps)
    newest = documents[-1]
    for version, document in enumerate(documents):
        assert document.version == version
        back = restored(newest, changes, version)
        assert (back.version, back.rules) == (newest.version + 1, document.rules)


def test_a_version_whose_changes_are_no_longer_kept_cannot_be_restored() -> None:
    documents, changes = changes_of([("put", "a", 1), ("put", "b", 2), ("delete", "a", 0)])
    with pytest.raises(UndoError, match="the oldest that can be restored is 2"):
        restored(documents[-1], changes[:1], 1)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([rule(f"r{k}", when={"start": k * HOUR, "end": (k + 1) * HOUR}) for k in range(201)], "more than 200 rules"),
        ([rule(f"r{k}", when={"note": "x" * 500, "start": float(k)}) for k in range(200)] * 2, "more than 200 rules"),
        (
            [
                rule(f"r{k}", pin=[{"item_id": f"{k}-{n}", "position": n} for n in range(26)], when={"placement": at})
                for k, at in enumerate([None, "home"])
            ],
            "for placement 'home', 52 pins would apply at the same time, more than 50",
        ),
        (
            [rule(f"r{k}", cap=[{"attribute": "hue", "most": 1}] * 5) for k in range(2)],
            "for all lists, 10 caps would apply at the same time, more than 8",
        ),
        (
            [rule(f"r{k}", filter={"any": [{"attribute": "hue", "eq": "red"}] * 100}) for k in range(2)],
            "202 conditions would apply",
        ),
        ([rule("r", filter={"attribute": "item_id", "in": ["x" * 250] * 900})], "bytes, more than 200000"),
    ],
)
def test_a_document_beyond_a_bound_is_refused(rules: list[MerchandisingRule], message: str) -> None:
    with pytest.raises(BoundError, match=message):
        check_bounds(Document(1, rules))


def test_rules_one_after_the_other_or_of_different_placements_do_not_add_up() -> None:
    pins = [{"item_id": str(n), "position": n} for n in range(50)]
    check_bounds(
        Document(1, [rule(f"r{k}", pin=pins, when={"start": k * HOUR, "end": (k + 1) * HOUR}) for k in range(9)])
    )
    check_bounds(Document(1, [rule(name, pin=pins, when={"placement": name}) for name in ("home", "cart")]))
    check_bounds(Document())


moments = st.none() | st.integers(0, 6).map(float)
timed = st.builds(
    lambda name, placement, start, end: rule(name, when={"placement": placement, "start": start, "end": end}),
    st.text("abcdef", min_size=1, max_size=4),
    st.sampled_from([None, "home", "cart"]),
    moments,
    moments,
)


@given(st.lists(timed, max_size=6, unique_by=lambda r: r.id), st.lists(st.floats(-1, 8), max_size=8))
@settings(max_examples=80, deadline=None)
def test_a_rule_applies_from_its_start_until_just_before_its_end_in_whatever_order_times_are_asked(
    rules: list[MerchandisingRule], times: list[float]
) -> None:
    """For all lists first, then for the placement. Each pins the same item, so the last one takes precedence."""
    compiled = compile_document(Document(1, rules), ATTRIBUTES, ["home", "cart"])
    for at in [*times, *(float(k) for k in range(7))]:
        for placement in (None, "home", "cart"):
            lists = (None,) if placement is None else (None, placement)
            active = [r for name in lists for r in rules if r.placement == name and r.applies(at)]
            plan = compiled.after(None, placement, at)
            expected = [f"merchandising.{active[-1].id}.pin[0]"] if active else []
            assert [path for path, _ in (plan.pins if plan else ())] == expected


def test_without_an_active_rule_the_plan_of_the_configuration_is_the_same_object() -> None:
    configured = Plan.of(
        msgspec.convert({"cap": [{"attribute": "hue", "most": 1}]}, Rules), ATTRIBUTES, "serving.rules"
    )
    compiled = compile_document(Document(1, [rule("later", when={"start": 9.0})]), ATTRIBUTES, ["home"])
    assert compiled.after(configured, "home", 1.0) is configured
    assert compiled.after(None, None, 1.0) is None


def test_a_rule_that_the_release_or_the_configuration_cannot_serve_is_set_aside_alone() -> None:
    rules = [
        rule("style", filter={"attribute": "style", "eq": "new"}),
        rule("kitchen", when={"placement": "kitchen"}),
        rule("good"),
    ]
    compiled = compile_document(Document(1, rules), ATTRIBUTES, ["home"])
    assert [r.id for r, _ in compiled.plans] == ["good"]
    assert compiled.set_aside["style"].startswith("merchandising.style.filter.attribute: unknown attribute 'style'")
    assert compiled.set_aside["kitchen"] == "placement 'kitchen' is not configured"


def test_attributes_are_offered_with_their_most_frequent_values_and_ranges() -> None:
    items = planted_items()
    about = {a.name: a for a in ATTRIBUTES.about(1)}
    assert set(about) == {"hue", "net weight", "category", "brand", "price", "available_from"}
    assert (about["hue"].kind, about["hue"].values) == ("text", ["blue"]), "ten blue and ten red: the first by name"
    assert (about["price"].low, about["price"].high) == (
        np.nanmin(items.catalogue.price),
        np.nanmax(items.catalogue.price),
    )
    assert about["available_from"].kind == "date"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with connect_url(None, tmp_path_factory.mktemp("valkey")) as url:
        yield url


def test_the_history_is_bounded_and_one_of_two_writers_wins(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most three changes are kept; and of the two that are largest, only the newest, as they exceed 1,000 bytes."""
    monkeypatch.setattr(stored, "CHANGES", 3)
    monkeypatch.setattr(stored, "CHANGES_BYTES", 1000)

    async def write(note: str, at: Stored) -> Stored | None:
        document = with_rule(at.document, rule("a", when={"note": note}))
        change = Change(document.version, 0.0, "x", "put", "", *changed(at.document, document))
        return await write_document(store, at.stamp, document, change)

    async def run() -> None:
        last = await read_document(store)
        assert last == Stored("", Document())
        for n in range(5):
            new = await write(f"n{n}", last)
            assert new is not None
            assert await write("too late", last) is None
            last = new
        assert await read_document(store) == last
        assert [c.version for c in await read_changes(store, 5)] == [5, 4, 3]
        for _ in range(2):
            new = await write("x" * 400 + str(last.document.version), last)
            assert new is not None
            last = new
        assert [c.version for c in await read_changes(store, 7)] == [7]
        await store.close()

    store = Store(url, 1.0)
    asyncio.run(run())


def test_the_copy_on_disk_is_used_until_redis_answers(tmp_path: Path) -> None:
    document = Document(7, [rule("a")])
    write_copy(tmp_path, document)
    assert read_copy(tmp_path) == document
    followed = Followed(Store("redis://127.0.0.1:1", 0.1), ["home"])
    assert followed.problem.startswith("merchandising rules are not known")
    followed.read_copy(tmp_path)
    assert followed.document == document
    assert "version 7 are used from the copy on disk" in followed.problem
    (tmp_path / FILE).write_text("{")
    other = Followed(Store("redis://127.0.0.1:1", 0.1), ["home"])
    other.read_copy(tmp_path)
    assert other.document == Document(), "a damaged copy is not used"


def test_an_emptied_redis_does_not_remove_the_rules(tmp_path: Path) -> None:
    followed = Followed(Store("redis://127.0.0.1:1", 0.1), ["home"])
    followed.adopt(Stored("7-x", Document(7, [rule("a")])))
    assert followed.problem == ""
    asyncio.run(followed.follow(""))
    assert followed.lost
    assert followed.document.version == 7
    assert "save any rule to write all of them back" in followed.problem
    asyncio.run(followed.follow("8-y"))  # cannot be read: Redis is away again
    assert followed.document.version == 7


def test_the_compiled_document_is_made_again_for_other_items() -> None:
    compiled = compile_document(Document(1, [rule("a")]), ATTRIBUTES, ["home"])
    again: Compiled = compiled.again(Attributes(planted_items()))
    assert again.document is compiled.document
    assert again.placements == {"home"}
