"""Who may ask what: API keys with scopes, hashed at rest, and how often each may ask.

A key is `swk_<name>_<secret>`; the secret is 256 random bits. What is kept is one line a key:

    storefront rank,events 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae rate=500

that is, name, scopes, SHA-256 of the whole key and, where there is one, the requests a second a worker takes from it.
A slow hash (bcrypt, Argon2) protects passwords, which can be guessed; nobody guesses 256 random bits, so a fast one is
as safe and costs a request microseconds instead of a tenth of a second. The name finds the line, so that no secret is
ever looked up in a table, and the hashes are compared in constant time.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

log = logging.getLogger(__name__)

SCOPES = ("rank", "events", "items", "admin", "metrics")
"""rank: rankings, recommendations, items alike. events: to send them. items: to write the catalogue. admin: to erase
users. metrics: to read /metrics; apart from admin, so that whoever watches the service cannot erase anybody."""

KEYS_VARIABLE = "SHELFWISE_KEYS"
"""The variable of the environment that may hold such lines instead of a file."""

_NAME = re.compile(r"[A-Za-z0-9-]{1,40}")
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
_HASH = re.compile(r"[0-9a-f]{64}")
_NONE = sha256(b"").hexdigest()


class KeysError(Exception):
    """Keys cannot be read, or the service would be open to everybody; the message says where, why, and what to do."""


@dataclass(frozen=True)
class Key:
    """One who may ask. rate: requests a second of each worker process, None for no limit of its own."""

    name: str
    scopes: frozenset[str]
    hash: str
    rate: float | None = None


def new_key(name: str, scopes: Iterable[str], rate: float | None = None) -> tuple[str, str]:
    """(the key, to be shown once; the line to be kept). Raises KeysError for a name, scope or rate that cannot be."""
    key = f"swk_{name}_{secrets.token_urlsafe(32)}"
    limit = "" if rate is None else f" rate={rate:f}".rstrip("0").rstrip(".")
    line = f"{name} {','.join(scopes)} {_hash(key)}{limit}"
    _key(line, "the new key")
    return key, line


def _hash(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def _key(line: str, where: str) -> Key:
    name, *rest = line.split()
    # What is wrong is not quoted: somebody may have put the key itself in its place.
    if not _NAME.fullmatch(name):
        raise KeysError(
            f"{where}: the name is not 1 to 40 letters, digits and hyphens; expected `name scopes sha256 [rate=N]`, as "
            "`shelfwise keys new` prints it"
        )
    if len(rest) not in (2, 3) or not _HASH.fullmatch(rest[1]):
        raise KeysError(
            f"{where}, key {name!r}: expected `name scopes sha256 [rate=N]`; `shelfwise keys new` prints such a line"
        )
    scopes = frozenset(rest[0].split(","))
    if not scopes <= set(SCOPES):
        unknown = ", ".join(sorted(scopes - set(SCOPES)))
        raise KeysError(f"{where}, key {name!r}: no such scope: {unknown}; there are {', '.join(SCOPES)}")
    rate = None
    if len(rest) == 3:
        said = re.fullmatch(r"rate=(\d+(?:\.\d+)?)", rest[2])
        if said is None or not 0.01 <= (rate := float(said[1])) <= 1e6:
            raise KeysError(f"{where}, key {name!r}: expected rate=N with N between 0.01 and 1000000 requests a second")
    return Key(name, scopes, rest[1], rate)


def parse(text: str, where: str) -> dict[str, Key]:
    """Keys by name, from lines as above; empty lines and what follows a # are passed over.

    where: named in errors, a file or a variable. Raises KeysError naming the line, also where there is no key at all:
    a file emptied by mistake must not open the service.
    """
    keys: dict[str, Key] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if content := line.split("#")[0].strip():
            key = _key(content, f"{where}, line {number}")
            if key.name in keys:
                raise KeysError(f"{where}, line {number}: the name {key.name!r} is taken by a line before it")
            keys[key.name] = key
    if not keys:
        raise KeysError(f"{where} holds no key: make one with `shelfwise keys new`")
    return keys


class Keys:
    """The keys that are good now. Truthy where there are any; without any, whoever reaches the service may ask all."""

    def __init__(self, file: Path | None = None, lines: str = "") -> None:
        """Keys of a file, or of lines that some variable held; not of both. Raises KeysError."""
        if file is not None and lines:
            raise KeysError(f"{KEYS_VARIABLE} is set and serving.keys_file is {str(file)!r}: keep keys in one of them")
        self._file, self._of, self._read = file, parse(lines, KEYS_VARIABLE) if lines else {}, (0, 0)
        if file is not None:
            self._read_file(file)

    def __bool__(self) -> bool:
        return bool(self._of)

    def look(self) -> None:
        """Read the file again if it has changed; what cannot be read is logged, and the keys from before stay good."""
        if self._file is None:
            return
        try:
            self._read_file(self._file)
        except KeysError as e:
            log.error("the keys stay as they were: %s", e)

    def _read_file(self, file: Path) -> None:
        try:
            said = file.stat()
            stamp = said.st_mtime_ns, said.st_size
            if stamp == self._read:
                return
            self._read, text = stamp, file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise KeysError(f"the keys in {str(file)!r} cannot be read: {e}") from e
        self._of = parse(text, str(file))

    def of(self, authorization: str) -> Key | None:
        """The key that an `Authorization` header brings, None where it brings none of ours."""
        scheme, _, given = authorization.partition(" ")
        prefix, _, rest = given.strip().partition("_")
        name, _, secret = rest.partition("_")
        if scheme.lower() != "bearer" or prefix != "swk" or not _SECRET.fullmatch(secret):
            return None
        key = self._of.get(name)
        same = hmac.compare_digest(_hash(f"swk_{name}_{secret}"), key.hash if key else _NONE)
        return key if same else None


class Allowance:
    """A token bucket: `rate` requests a second, and as many at once after a second of rest, at least one.

    It lives in the worker process and not in Redis: a limit must hold when Redis is away, and must not cost each
    request a round trip. So a key with connections to several workers may ask each of them at its rate.
    """

    def __init__(self, rate: float, now: float) -> None:
        """rate: requests a second. now: seconds of any clock that only goes forward."""
        self.rate, self.most = rate, max(1.0, rate)
        self._left, self._at = self.most, now

    def take(self, now: float) -> float:
        """0 where one more is allowed, and it is counted; else seconds until one will be, and it is not."""
        self._left, self._at = min(self.most, self._left + (now - self._at) * self.rate), now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / self.rate

    @property
    def left(self) -> int:
        """Whole requests that would be allowed at once."""
        return int(self._left)


def check_exposure(host: str, keys: Keys, insecure: bool) -> None:
    """Raises KeysError where a service without keys would listen to more than its own machine."""
    if keys or insecure or _loopback(host):
        return
    raise KeysError(
        f"serving.host is {host!r} and there are no keys: anyone who reaches it could read rankings and write events. "
        "Make keys (`shelfwise keys new`) and name their file as serving.keys_file, listen on 127.0.0.1, "
        "or set serving.insecure: true where something else guards it"
    )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
