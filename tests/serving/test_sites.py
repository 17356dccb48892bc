"""Which hosts are answered, and which pages may write."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from serving.api.problem import Problem
from serving.config import ServiceConfig
from serving.http.keys import Keys, new_key
from serving.http.sites import Sites
from tests.serving.test_keys import AWAY, bearer
from tests.serving.test_service import refused, served, url

__all__ = ["url"]
KEY, LINE = new_key("shop", ["rank", "events"])
LOCAL = ["localhost", "localhost:8000", "LOCALHOST", "127.0.0.1:8000", "10.1.2.3:8000", "[::1]:8000", "[::1]"]
FOREIGN = ["evil.test", "evil.test:8000", "localhost.evil.test", "127.0.0.1.evil.test", "evil-localhost", "", "[evil"]


def with_settings(**settings: Any) -> ServiceConfig:
    return AWAY.model_copy(update=settings)


def status(client: httpx.Client, path: str, host: str) -> int:
    return client.get(path, headers={"Host": host}).status_code


def test_without_keys_only_local_names_and_addresses_are_answered(url: str) -> None:
    """A page of evil.test that lets its name resolve to 127.0.0.1 can read nothing, also not the documentation."""
    with served(url) as client:
        for host in LOCAL:
            assert status(client, "/health/live", host) == 200, host
        for host in FOREIGN:
            for path in ("/health/live", "/docs", "/openapi.json", "/v1/similar/x", "/no-such"):
                assert status(client, path, host) == 421, host
        document = refused(client.get("/docs", headers={"Host": "evil.test"}), 421)
        assert document["detail"] == "the Host header 'evil.test' is not a name of this service"
        assert "serving.hosts" in document["remedy"]
    with pytest.raises(Problem, match="is not a name of this service"):
        Sites(AWAY, Keys()).check("GET", [(b"host", b"localhost"), (b"host", b"evil.test")])


def test_listed_hosts_are_answered_with_addresses_for_probes(url: str) -> None:
    for good in (None, Keys(lines=LINE)):
        with served(url, with_settings(hosts=("shop.test", "Other.test")), good=good) as client:
            for host in [*LOCAL, "shop.test", "SHOP.test:443", "shop.test.", "other.test"]:
                assert status(client, "/health/live", host) == 200, host
            for host in [*FOREIGN, "www.shop.test", "shop.test.evil.test"]:
                assert status(client, "/health/live", host) == 421, host


def test_any_host_is_answered_with_keys_if_insecure_or_if_configured(url: str) -> None:
    """With keys the network is not trusted; a service that is `insecure` on purpose does not know its names."""
    for settings, good in (({}, Keys(lines=LINE)), ({"insecure": True}, None), ({"hosts": ("*",)}, None)):
        with served(url, with_settings(**settings), good=good) as client:
            assert status(client, "/health/live", "evil.test") == 200


@pytest.mark.parametrize("host", ["https://shop.test", "shop.test:8000", "", "shop test", "*.shop.test"])
def test_a_host_is_a_name_without_scheme_and_port(host: str) -> None:
    with pytest.raises(ValueError, match="hosts"):
        ServiceConfig.model_validate({"hosts": [host]})


WRITES = [("POST", "/v1/events"), ("POST", "/v1/rank"), ("PUT", "/v1/items"), ("DELETE", "/v1/users/u")]


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),  # not a browser
        ({"Origin": "https://evil.test"}, False),
        ({"Origin": "null"}, False),  # a sandboxed frame, or a file
        ({"Origin": "https://evil.test", "Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "https://a.shop.test", "Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "https://shop.test", "Sec-Fetch-Site": "cross-site"}, True),  # listed
        ({"Origin": "https://shop.test"}, True),
        ({"Origin": "https://shop.test.evil.test"}, False),
        ({"Origin": "http://localhost:8000", "Host": "localhost:8000"}, True),  # a page of the service itself
        ({"Origin": "http://localhost:9000", "Host": "localhost:8000"}, False),
        ({"Origin": "https://proxy.test", "Sec-Fetch-Site": "same-origin"}, True),  # a proxy that changes Host
        ({"Sec-Fetch-Site": "none"}, True),  # by hand
    ],
)
def test_a_page_of_another_origin_cannot_write(url: str, headers: dict[str, str], allowed: bool) -> None:
    """Origin https://shop.test is in `cors_origins`. With and without keys, on every route that writes."""
    for good in (None, Keys(lines=LINE)):
        with served(url, with_settings(cors_origins=("https://shop.test",)), good=good) as client:
            for method, path in WRITES:
                answer = client.request(method, path, content=b"{", headers=bearer(KEY) | headers)
                elsewhere = answer.status_code == 403 and answer.json()["type"].endswith(":elsewhere")
                assert elsewhere is not allowed, (method, path)
            assert client.get("/health/live", headers=headers).status_code == 200, "reading is not a write"


def test_all_origins_may_write_if_all_are_allowed_by_cors(url: str) -> None:
    with served(url, with_settings(cors_origins=("*",))) as client:
        answer = client.post("/v1/rank", content=b"{", headers={"Origin": "https://evil.test"})
        assert answer.status_code == 400


def test_refused_hosts_and_origins_are_counted(url: str) -> None:
    with served(url) as client:
        client.get("/docs", headers={"Host": "evil.test"})
        client.post("/v1/rank", content=b"{", headers={"Origin": "https://evil.test"})
        counted = client.get("/metrics").text
        assert 'shelfwise_refused_total{reason="host"} 1.0' in counted
        assert 'shelfwise_refused_total{reason="elsewhere"} 1.0' in counted
