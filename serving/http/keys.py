"""API keys: their scopes, their storage as hashes, and their rate limits.

A key is `swk_<name>_<secret>`; the secret is 256 random bits. One line is stored per key:

    page rank,events 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae public rate=500

that is, name, scopes, SHA-256 of the whole key and, optionally, `public` for a key that visitors of the shop can read,
and the maximum requests per second for each worker.
A slow hash (bcrypt, Argon2) protects passwords, which can be guessed. 256 random bits cannot be guessed, so a fast hash
is as safe and costs a request microseconds instead of a tenth of a second. Lines are looked up by name, never by
secret, and hashes are compared in constant time.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from serving.http.credentials import CredentialFile, KeysError, content_of, strictly

SCOPES = ("rank", "explain", "events", "items", "merge", "merchandise", "merchandise:read", "admin", "metrics")
"""rank: rankings, recommendations, similar items. explain: `explain` in rankings, beside rank. events: send events.
items: write the catalogue and attributes of users. merge: merge users, which makes the history of one readable as that
of another; for the shop's back end, which knows who has logged in. merchandise: change the merchandising rules.
merchandise:read: read them, and preview lists; `merchandise` includes it, and `admin` includes neither, since whoever
watches over the service need not decide what is sold. admin: erase users, and use the operator's page.
metrics: read /metrics; separate from admin, so that monitoring cannot erase users."""

_INCLUDED = {"merchandise": "merchandise:read"}
"""Scopes that another one includes."""

PUBLIC_SCOPES = frozenset({"rank", "explain", "events"})
"""Scopes that a public key may have."""

KEYS_VARIABLE = "SHELFWISE_KEYS"
"""Environment variable that may hold the lines instead of a file."""

_NAME = re.compile(r"[A-Za-z0-9-]{1,40}")
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
_HASH = re.compile(r"[0-9a-f]{64}")
_NONE = sha256(b"").hexdigest()


_FORM = "`name scopes sha256 [public] [rate=N]`"


@dataclass(frozen=True)
class Key:
    """One API key. rate: maximum requests per second for each worker process, None for the configured default.

    public: visitors of the shop can read the key, since it is in a web page or an app.
    """

    name: str
    scopes: frozenset[str]
    hash: str
    rate: float | None = None
    public: bool = False


def new_key(name: str, scopes: Iterable[str], rate: float | None = None, public: bool = False) -> tuple[str, str]:
    """Create a key. Returns (the key, to show once; the line to store). Raises KeysError for an invalid name, scope or
    rate."""
    key = f"swk_{name}_{secrets.token_urlsafe(32)}"
    limit = "" if rate is None else f" rate={rate:f}".rstrip("0").rstrip(".")
    line = f"{name} {','.join(scopes)} {_hash(key)}{' public' if public else ''}{limit}"
    _key(line, "the new key")
    return key, line


def _hash(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def _key(line: str, where: str) -> Key:
    name, *rest = line.split()
    # The invalid value is not quoted: it may be the key itself, put there by mistake.
    if not _NAME.fullmatch(name):
        raise KeysError(
            f"{where}: the name is not 1 to 40 letters, digits and hyphens; expected {_FORM}, as "
            "`shelfwise keys new` prints it"
        )
    where = f"{where}, key {name!r}"
    options = rest[2:]
    public = options[:1] == ["public"]
    if len(rest) < 2 or len(options) - public > 1 or not _HASH.fullmatch(rest[1]):
        raise KeysError(f"{where}: expected {_FORM}; `shelfwise keys new` prints such a line")
    scopes = frozenset(rest[0].split(","))
    if unknown := scopes - set(SCOPES):
        raise KeysError(f"{where}: unknown scope {', '.join(sorted(unknown))}; use {', '.join(SCOPES)}")
    if public and (private := scopes - PUBLIC_SCOPES):
        raise KeysError(
            f"{where}: a public key cannot have scope {', '.join(sorted(private))}; create another key without `public`"
        )
    scopes |= {_INCLUDED[scope] for scope in scopes & set(_INCLUDED)}
    return Key(name, scopes, rest[1], _rate(options[public], where) if len(options) > public else None, public)


def _rate(option: str, where: str) -> float:
    match = re.fullmatch(r"rate=(\d+(?:\.\d+)?)", option)
    if match is None or not 0.01 <= (rate := float(match[1])) <= 1e6:
        raise KeysError(f"{where}: expected rate=N, N requests per second from 0.01 to 1000000")
    return rate


def parse(text: str, where: str) -> dict[str, Key]:
    """Parse key lines into keys by name, ignoring empty lines and comments (from # on).

    where: the file or variable, for messages. Raises KeysError naming the line. Text without any key is also an error:
    a service must not start open because its file was emptied by mistake.
    """
    return strictly(_parse_lines, text, where)


def _parse_lines(text: str, where: str) -> tuple[dict[str, Key], list[str]]:
    """(the keys of the valid lines, what is wrong with the others)."""
    keys: dict[str, Key] = {}
    errors = []
    for number, line in enumerate(text.splitlines(), start=1):
        if content := content_of(line):
            try:
                key = _key(content, f"{where}, line {number}")
            except KeysError as e:
                errors.append(str(e))
                continue
            if key.name in keys:
                errors.append(f"{where}, line {number}: duplicate key name {key.name!r}")
            else:
                keys[key.name] = key
    if not keys and not errors:
        errors.append(f"{where} contains no keys: create one with `shelfwise keys new`")
    return keys, errors


class Keys:
    """The valid keys. Truthy if keys are required: always, if a file or lines were given, even if the file was emptied
    since. If none were given, anyone who can reach the service may call every route."""

    def __init__(self, file: Path | None = None, lines: str = "") -> None:
        """Load keys from a file, or from lines taken from a variable, but not both. Raises KeysError."""
        if file is not None and lines:
            raise KeysError(f"{KEYS_VARIABLE} and serving.keys_file ({str(file)!r}) are both set: use only one")
        self._file = None
        if file is not None:
            self._file = CredentialFile(file, _parse_lines, "keys", "serving.keys_file", "shelfwise keys new")
        self._of_lines = parse(lines, KEYS_VARIABLE) if lines else {}

    def __bool__(self) -> bool:
        return self._file is not None or bool(self._of_lines)

    def look(self) -> bool:
        """Reload the file if its content has changed: see `CredentialFile.look`. True without a file."""
        return self._file is None or self._file.look()

    def of(self, authorization: str) -> Key | None:
        """The key in an `Authorization` header, None if it is not a valid key."""
        scheme, _, given = authorization.partition(" ")
        prefix, _, rest = given.strip().partition("_")
        name, _, secret = rest.partition("_")
        if scheme.lower() != "bearer" or prefix != "swk" or not _SECRET.fullmatch(secret):
            return None
        key = (self._of_lines if self._file is None else self._file.by_name).get(name)
        same = hmac.compare_digest(_hash(f"swk_{name}_{secret}"), key.hash if key else _NONE)
        return key if same else None


class Allowance:
    """A token bucket: `rate` requests per second, with bursts of up to max(1, rate) requests.

    It is kept in the worker process and not in Redis: the limit must hold while Redis is unavailable, and must not cost
    each request a round trip. So a key with connections to several workers may use its full rate at each of them.
    """

    def __init__(self, rate: float, now: float) -> None:
        """rate: requests per second. now: seconds of a monotonic clock."""
        self.rate, self.most = rate, max(1.0, rate)
        self._left, self._at = self.most, now

    def take(self, now: float) -> float:
        """Count a request and return 0 if it is allowed; otherwise return the seconds to wait, and do not count it."""
        self._left, self._at = min(self.most, self._left + (now - self._at) * self.rate), now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / self.rate

    @property
    def left(self) -> int:
        """Number of requests that would be allowed right now."""
        return int(self._left)


def check_exposure(host: str, keys: Keys, insecure: bool) -> None:
    """Raise KeysError if a service without keys would listen beyond its own machine."""
    if keys or insecure or _loopback(host):
        return
    raise KeysError(
        f"serving.host is {host!r} and there are no keys: anyone who reaches it could read rankings and write events. "
        "Create keys (`shelfwise keys new`) and set serving.keys_file to their file, listen on 127.0.0.1, "
        "or set serving.insecure: true if something else guards the service"
    )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
