"""The address of Redis: a single server, as a redis-py URL, a cluster, by some of its nodes, or the primary that
sentinels name.

redis://[USER:PASSWORD@]HOST:PORT[/DATABASE]      rediss:// for TLS, unix:///PATH for a socket
redis+cluster://[USER:PASSWORD@]HOST:PORT,...     rediss+cluster:// for TLS; one reachable node is enough
redis://HOST:PORT?cluster=true                    a cluster, given by one node
redis+sentinel://[USER:PASSWORD@]HOST:PORT,.../PRIMARY[/DATABASE]    rediss+sentinel:// for TLS; the hosts of sentinels

User and password are percent-encoded. The option `prefix` is the first part of every key, if it is not `sw`.
"""

from __future__ import annotations

import re
from typing import NamedTuple, NoReturn, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

from redis import ConnectionPool

from serving.store.layout import PREFIX

Node = tuple[str, int]
"""Host and port of a cluster node or a sentinel."""

PREFIX_PATTERN = r"^[A-Za-z0-9._-]{1,32}$"
"""A prefix of keys. It has no colon, which ends it, and no character with a meaning in patterns and hash tags."""

_URL = re.compile(
    r"(?P<scheme>redis|rediss|unix)(?:\+(?P<kind>cluster|sentinel))?://(?:(?P<login>[^@]*)@)?(?P<hosts>[^/?]*)"
    r"(?P<path>/[^?]*)?(?:\?(?P<query>.*))?"
)
_PORT = {None: 6379, "cluster": 6379, "sentinel": 26379}
_FORMS = (
    "expected redis://HOST:6379/0, rediss://..., unix:///path/to/socket, redis+cluster://HOST:6379 for a cluster, or "
    "redis+sentinel://HOST:26379/PRIMARY for sentinels"
)


class AddressError(ValueError):
    """An address of Redis is not valid. The message quotes neither user nor password."""


class Address(NamedTuple):
    """A parsed address. url: URL of the server; of a cluster or with sentinels, a template for the URL of a node.

    nodes: known nodes of the cluster, or the sentinels; empty for a single server. primary: the name by which the
    sentinels know the primary; empty without sentinels. prefix: first part of every key.
    """

    url: str
    nodes: tuple[Node, ...] = ()
    primary: str = ""
    prefix: str = PREFIX

    @classmethod
    def of(cls, url: str) -> Self:
        """Parse a URL. Raises AddressError if it is not a valid address."""
        _check_encoding(url)
        match = _URL.fullmatch(url)
        if match is None:
            _refuse("it does not have the form of an address")
        scheme, kind, login, path = match["scheme"], match["kind"], match["login"] or "", match["path"] or ""
        options = dict(parse_qsl(match["query"] or ""))
        prefix = options.pop("prefix", PREFIX)
        if not re.match(PREFIX_PATTERN, prefix):
            _refuse("its prefix is not 1 to 32 letters, digits, dots, hyphens and underscores")
        if options.pop("cluster", "false").lower() in ("true", "yes", "1"):
            kind = "cluster"
        if scheme == "unix" and kind:
            _refuse(f"a {kind} needs redis:// or rediss://, not unix://")
        user = f"{login}{'@' * bool(match['login'])}"
        query = f"{'?' * bool(options)}{urlencode(options)}"
        if kind is None:
            if scheme != "unix":
                _database(path.removeprefix("/"))
            return cls(_valid(f"{scheme}://{user}{match['hosts']}{path}{query}"), prefix=prefix)
        nodes = tuple(_node(host, _PORT[kind]) for host in match["hosts"].split(","))
        primary, _, database = path.strip("/").partition("/") if kind == "sentinel" else ("", "", path.strip("/"))
        if kind == "sentinel" and not primary:
            _refuse("it does not name the primary that the sentinels watch, as in redis+sentinel://HOST:26379/PRIMARY")
        if kind == "cluster" and database not in ("", "0"):
            _refuse(f"a cluster only has database 0, but the address has {database}")
        address = cls(f"{scheme}://{user}HOST:PORT/{_database(database)}{query}", nodes, primary, prefix)
        _valid(address.at(nodes[0]))
        return address

    @property
    def cluster(self) -> bool:
        """True if the address is of a cluster."""
        return bool(self.nodes) and not self.primary

    def at(self, node: Node) -> str:
        """The URL of one node, with the address's user, password and options."""
        host = f"[{node[0]}]" if ":" in node[0] else node[0]
        return self.url.replace("HOST:PORT", f"{host}:{node[1]}", 1)


def with_prefix(url: str, prefix: str) -> str:
    """The address with this prefix of keys. Raises AddressError if it is not valid or has a prefix of its own."""
    if (own := Address.of(url).prefix) != PREFIX:
        raise AddressError(f"it has the prefix {own!r}: set `redis.prefix` in the configuration instead")
    return url if prefix == PREFIX else f"{url}{'&' if '?' in url else '?'}prefix={prefix}"


def _refuse(reason: str) -> NoReturn:
    raise AddressError(f"{reason}; {_FORMS}")


def _check_encoding(url: str) -> None:
    """Refuse a user or password with characters that end it early. Anything could be part of it, so quote nothing."""
    rest = url.partition("://")[2]
    login, at, _ = rest.rpartition("@")
    if "#" in rest or (at and re.search(r"[/?@]", login)):
        raise AddressError(
            "the user name or password has a character that must be percent-encoded: write @ as %40, / as %2F, ? as "
            "%3F and # as %23"
        )


def _database(text: str) -> int:
    if text and not re.fullmatch(r"[0-9]{1,5}", text):
        _refuse(f"{text!r} is not the number of a database")
    return int(text or 0)


def _valid(url: str) -> str:
    """A URL that redis-py accepts."""
    try:
        ConnectionPool.from_url(url)
    except (ValueError, TypeError):
        # Leave out the reason: of an address without a host, it quotes the password as the port.
        raise AddressError(f"its host, port or one of its options is not valid; {_FORMS}") from None
    return url


def _node(text: str, port: int) -> Node:
    try:
        parts = urlsplit(f"redis://{text}")
        if parts.hostname:
            return parts.hostname, parts.port or port
    except ValueError:
        pass
    _refuse("one of its hosts is not HOST or HOST:PORT")
