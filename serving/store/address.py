"""The address of Redis: a single server, as a redis-py URL, or a cluster, by some of its nodes.

redis://[USER:PASSWORD@]HOST:PORT[/DATABASE]      rediss:// for TLS, unix:///PATH for a socket
redis+cluster://[USER:PASSWORD@]HOST:PORT,...     rediss+cluster:// for TLS; one reachable node is enough
redis://HOST:PORT?cluster=true                    a cluster, given by one node
"""

from __future__ import annotations

import re
from typing import NamedTuple, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

from redis import ConnectionPool

Node = tuple[str, int]
"""Host and port of a cluster node."""

_CLUSTER = re.compile(
    r"(?P<tls>rediss?)\+cluster://(?:(?P<user>[^@/]*)@)?(?P<nodes>[^/?]+)(?P<path>/[^?]*)?(?:\?(?P<query>.*))?"
)
_PORT = 6379


class Address(NamedTuple):
    """A parsed address. url: URL of the server; of a cluster, a template for the URL of a node. nodes: known nodes of
    the cluster; empty for a single server."""

    url: str
    nodes: tuple[Node, ...] = ()

    @classmethod
    def of(cls, url: str) -> Self:
        """Parse a URL. Raises ValueError if it is not a valid address; the message may quote parts of it."""
        match = _CLUSTER.fullmatch(url)
        if match is None:
            parts = urlsplit(url)
            query = dict(parse_qsl(parts.query))
            if query.pop("cluster", "false").lower() not in ("true", "yes", "1"):
                ConnectionPool.from_url(url)
                return cls(url)
            user, _, node = parts.netloc.rpartition("@")
            path, scheme, hosts = parts.path, parts.scheme, [node]
        else:
            query = dict(parse_qsl(match["query"] or ""))
            user, path, scheme = match["user"] or "", match["path"] or "", match["tls"]
            hosts = match["nodes"].split(",")
        if scheme not in ("redis", "rediss"):
            raise ValueError(f"a cluster needs a redis:// or rediss:// address, not {scheme}://")
        if path.strip("/") not in ("", "0"):
            raise ValueError(f"a cluster only has database 0, but the address has {path.strip('/')}")
        nodes = tuple(map(_node, hosts))
        address = cls(f"{scheme}://{user}{'@' * bool(user)}HOST:PORT/0{'?' * bool(query)}{urlencode(query)}", nodes)
        ConnectionPool.from_url(address.at(nodes[0]))
        return address

    @property
    def cluster(self) -> bool:
        """Whether the address is of a cluster."""
        return bool(self.nodes)

    def at(self, node: Node) -> str:
        """The URL of one node, with the cluster's user, password and options."""
        host = f"[{node[0]}]" if ":" in node[0] else node[0]
        return self.url.replace("HOST:PORT", f"{host}:{node[1]}", 1)


def _node(text: str) -> Node:
    parts = urlsplit(f"redis://{text}")
    if not parts.hostname:
        raise ValueError(f"{text!r} has no host")
    return parts.hostname, parts.port or _PORT
