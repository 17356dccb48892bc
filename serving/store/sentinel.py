"""Sentinels: the arguments to connect to the primary that they name.

The clients of redis-py ask the sentinels for the primary whenever they open a connection, and close their connections
when it has changed. A sentinel that does not answer is skipped.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from redis.connection import parse_url

from serving.store.address import Address, Node

_LOGIN = {"sentinel_username": "username", "sentinel_password": "password"}
"""Options of the address for sentinels that ask for a user or password of their own."""


class Watch(NamedTuple):
    """Arguments of redis-py. sentinels: their hosts and ports. sentinel: options of the connections to them. primary:
    options of the connections to the primary."""

    sentinels: list[Node]
    sentinel: dict[str, Any]
    primary: dict[str, Any]


def watch(address: Address, timeout_s: float) -> Watch:
    """The arguments for an address with sentinels. timeout_s: time within which the primary has to be found, even if
    only the last of the sentinels answers."""
    options: dict[str, Any] = parse_url(address.at(address.nodes[0]))  # type: ignore[no-untyped-call]
    primary = {k: v for k, v in options.items() if k not in ("host", "port", "connection_class", *_LOGIN)}
    tls = {"ssl": "connection_class" in options, **{k: v for k, v in options.items() if k.startswith("ssl_")}}
    each_s = timeout_s / (len(address.nodes) + 1)
    login = {argument: options[option] for option, argument in _LOGIN.items() if option in options}
    sentinel = {"socket_timeout": each_s, "socket_connect_timeout": each_s, **login, **tls}
    return Watch(list(address.nodes), sentinel, primary | tls)
