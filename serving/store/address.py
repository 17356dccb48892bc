"""Where Redis is: one server by redis-py's addresses, or a cluster by some of its nodes.

redis://[USER:PASSWORD@]HOST:PORT[/DATABASE]      rediss:// with TLS, unix:///PATH for a socket
redis+cluster://[USER:PASSWORD@]HOST:PORT,...     rediss+cluster:// with TLS; one node that answers is enough
redis://HOST:PORT?cluster=true                    the same of one node
"""

from __future__ import annotations

import re
from typing import NamedTuple, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

from redis import ConnectionPool

Node = tuple[str, int]
"""Host and port of a cluster's node."""

_CLUSTER = re.compile(
    r"(?P<tls>rediss?)\+cluster://(?:(?P<who>[^@/]*)@)?(?P<nodes>[^/?]+)(?P<path>/[^?]*)?(?:\?(?P<query>.*))?"
)
_PORT = 6379


class Address(NamedTuple):
    """url: of one server. Of a cluster, nodes: those to begin with; empty of one server."""

    url: str
    nodes: tuple[Node, ...] = ()

    @classmethod
    def of(cls, url: str) -> Self:
        """Raises ValueError where it is no address; the message may quote what the address holds."""
        found = _CLUSTER.fullmatch(url)
        if found is None:
            parts = urlsplit(url)
            query = dict(parse_qsl(parts.query))
            if query.pop("cluster", "false").lower() not in ("true", "yes", "1"):
                ConnectionPool.from_url(url)
                return cls(url)
            who, _, node = parts.netloc.rpartition("@")
            path, scheme, named = parts.path, parts.scheme, [node]
        else:
            query = dict(parse_qsl(found["query"] or ""))
            who, path, scheme, named = found["who"] or "", found["path"] or "", found["tls"], found["nodes"].split(",")
        if scheme not in ("redis", "rediss"):
            raise ValueError(f"a cluster is reached by redis:// or rediss://, not by {scheme}://")
        if path.strip("/") not in ("", "0"):
            raise ValueError(f"a cluster has database 0 alone, the address names {path.strip('/')}")
        nodes = tuple(map(_node, named))
        address = cls(f"{scheme}://{who}{'@' * bool(who)}HOST:PORT/0{'?' * bool(query)}{urlencode(query)}", nodes)
        ConnectionPool.from_url(address.at(nodes[0]))
        return address

    @property
    def cluster(self) -> bool:
        """Whether keys are spread over many nodes."""
        return bool(self.nodes)

    def at(self, node: Node) -> str:
        """The address of one node of the cluster, with the user, password and options of all."""
        host = f"[{node[0]}]" if ":" in node[0] else node[0]
        return self.url.replace("HOST:PORT", f"{host}:{node[1]}", 1)


def _node(text: str) -> Node:
    parts = urlsplit(f"redis://{text}")
    if not parts.hostname:
        raise ValueError(f"{text!r} names no host")
    return parts.hostname, parts.port or _PORT
