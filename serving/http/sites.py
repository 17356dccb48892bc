"""Checks of the headers that a browser sends for a page: the host it believes to talk to, and the origin of the page.

A browser sends requests to any address for any page that its user opens. Two attacks follow for a service that trusts
whoever reaches it, such as one without keys on a developer's machine:

- *DNS rebinding*: a page of evil.test lets its name resolve to 127.0.0.1, and then reads the service as its own origin.
  The browser still sends `Host: evil.test`, so an unknown name is refused.
- *Cross-site requests*: a page posts a body without asking first, as forms may. It cannot read the response, but the
  write would be done. Browsers send `Sec-Fetch-Site` and `Origin`, which a page cannot change.

Other clients send neither of the last two, and may set any `Host`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from serving.api import Problem
from serving.config import ServiceConfig
from serving.http.keys import Keys

_READS = ("GET", "HEAD", "OPTIONS")


class Sites:
    """The hosts that the service answers for, and the origins whose pages may write.

    Addresses and localhost are always answered: a page cannot have them as its name unless it comes from there. Other
    names are checked if `serving.hosts` lists some, or if the service has no keys and only its own machine reaches it.
    """

    def __init__(self, config: ServiceConfig, keys: Keys) -> None:
        any_host = "*" in config.hosts or (not config.hosts and (bool(keys) or config.insecure))
        self._hosts = None if any_host else frozenset(name.lower() for name in config.hosts)
        self._origins = frozenset(config.cors_origins)

    def check(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raise Problem (421, 403) for an unknown host, and for a write from a page of another origin."""
        writes = method not in _READS
        if self._hosts is None and not writes:
            return
        host = origin = site = None
        for name, value in headers:
            if name == b"host":
                host = value.decode("latin-1").lower() if host is None else ""  # a second one makes both invalid
            elif name == b"origin":
                origin = value.decode("latin-1")
            elif name == b"sec-fetch-site":
                site = value.decode("latin-1")
        if host is not None and self._hosts is not None and not self._answers(_name(host)):
            raise Problem(
                421,
                "host",
                "Unknown host",
                f"the Host header {host[:100]!r} is not a name of this service",
                "Use localhost or its IP address, or add the name to `serving.hosts`.",
                headers={"Connection": "close"},
            )
        if writes and not self._may_write(host, origin, site):
            raise Problem(
                403,
                "elsewhere",
                "Cross-site request",
                f"the request was sent by a page of another site ({(origin or site or '')[:100]!r})",
                "Add the origin of the page to `serving.cors_origins`, or use a client other than a browser.",
                headers={"Connection": "close"},
            )

    def _answers(self, name: str) -> bool:
        if name == "localhost" or name in (self._hosts or ()):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _may_write(self, host: str | None, origin: str | None, site: str | None) -> bool:
        if site in ("same-origin", "none") or (origin is None and site is None):
            return True
        if origin in self._origins or "*" in self._origins:
            return True
        # Browsers without Sec-Fetch-Site, and pages over plain HTTP, for which browsers omit it.
        return site is None and origin is not None and origin.partition("://")[2].lower() == host


def _name(host: str) -> str:
    """The name or address in a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")
