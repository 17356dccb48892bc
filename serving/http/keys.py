"""API keys: their scopes, their storage as hashes, and their rate limits.

A key is `swk_<name>_<secret>`; the secret is 256 random bits. One line is stored per key:

    storefront rank,events 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae rate=500

that is, name, scopes, SHA-256 of the whole key and, optionally, the maximum requests per second for each worker.
A slow hash (bcrypt, Argon2) protects passwords, which can be guessed. 256 random bits cannot be guessed, so a fast hash
is as safe and costs a request microseconds instead of a tenth of a second. Lines are looked up by name, never by
secret, and hashes are compared in constant time.
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
"""rank: rankings, recommendations, similar items. events: send events. items: write the catalogue. admin: erase users,
and use the operator's page. metrics: read /metrics; separate from admin, so that monitoring cannot erase users."""

KEYS_VARIABLE = "SHELFWISE_KEYS"
"""Environment variable that may hold the lines instead of a file."""

_NAME = re.compile(r"[A-Za-z0-9-]{1,40}")
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
_HASH = re.compile(r"[0-9a-f]{64}")
_NONE = sha256(b"").hexdigest()


class KeysError(Exception):
    """Invalid keys, or a service that would be open to everyone. The message says where, why and how to fix it."""


@dataclass(frozen=True)
class Key:
    """One API key. rate: maximum requests per second for each worker process, None for the configured default."""

    name: str
    scopes: frozenset[str]
    hash: str
    rate: float | None = None


def new_key(name: str, scopes: Iterable[str], rate: float | None = None) -> tuple[str, str]:
    """Create a key. Returns (the key, to show once; the line to store). Raises KeysError for an invalid name, scope or
    rate."""
    key = f"swk_{name}_{secrets.token_urlsafe(32)}"
    limit = "" if rate is None else f" rate={rate:f}".rstrip("0").rstrip(".")
    line = f"{name} {','.join(scopes)} {_hash(key)}{limit}"
    _key(line, "the new key")
    return key, line


def _hash(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def _key(line: str, where: str) -> Key:
    name, *rest = line.split()
    # The invalid value is not quoted: it may be the key itself, put there by mistake.
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
        raise KeysError(f"{where}, key {name!r}: unknown scope {unknown}; use {', '.join(SCOPES)}")
    rate = None
    if len(rest) == 3:
        match = re.fullmatch(r"rate=(\d+(?:\.\d+)?)", rest[2])
        if match is None or not 0.01 <= (rate := float(match[1])) <= 1e6:
            raise KeysError(f"{where}, key {name!r}: expected rate=N, N requests per second from 0.01 to 1000000")
    return Key(name, scopes, rest[1], rate)


def parse(text: str, where: str) -> dict[str, Key]:
    """Parse key lines into keys by name, ignoring empty lines and comments (from # on).

    where: the file or variable, for messages. Raises KeysError naming the line. Text without any key is also an error:
    a service must not start open because its file was emptied by mistake.
    """
    keys, errors = _parse_lines(text, where)
    if errors:
        raise KeysError(errors[0])
    return keys


def _parse_lines(text: str, where: str) -> tuple[dict[str, Key], list[str]]:
    """(the keys of the valid lines, what is wrong with the others)."""
    keys: dict[str, Key] = {}
    errors = []
    for number, line in enumerate(text.splitlines(), start=1):
        if content := line.split("#")[0].strip():
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
        self._file, self._of = file, parse(lines, KEYS_VARIABLE) if lines else {}
        self._required = file is not None or bool(lines)
        self._content = b""
        self._valid, self._unreadable = True, False
        if file is not None:
            try:
                self._content = file.read_bytes()
                self._of = parse(self._content.decode(), str(file))
            except (OSError, UnicodeDecodeError) as e:
                raise KeysError(f"cannot read the keys in {str(file)!r}: {e}") from e

    def __bool__(self) -> bool:
        return self._required

    def look(self) -> bool:
        """Reload the file if its content has changed. A key is valid only while its line is in the file.

        An invalid line is logged once and ignored, so that it cannot keep another key valid that was removed. An empty
        or missing file has no keys. Only if the file exists but cannot be read do the previous keys stay valid.

        Returns True if every line of the file is a key in use, or if there is no file.
        """
        if self._file is None:
            return True
        where = str(self._file)
        try:
            # Compared by content: a file may be changed without a change of its time and size.
            content = self._file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            content = b""
        except OSError as e:
            if not self._unreadable:
                log.error("keys not reloaded, the previous keys stay valid: cannot read the keys in %r: %s", where, e)
            self._unreadable = True
            return False
        self._unreadable = False
        if content != self._content:
            self._of, errors = _parse_lines(content.decode(errors="replace"), where)
            self._content = content
            self._valid = not errors
            for error in errors:
                log.error("keys reloaded, but %s", error)
            if not self._of:
                log.error("no key is valid: requests that need one are refused until %r contains keys", where)
        return self._valid

    def of(self, authorization: str) -> Key | None:
        """The key in an `Authorization` header, None if it is not a valid key."""
        scheme, _, given = authorization.partition(" ")
        prefix, _, rest = given.strip().partition("_")
        name, _, secret = rest.partition("_")
        if scheme.lower() != "bearer" or prefix != "swk" or not _SECRET.fullmatch(secret):
            return None
        key = self._of.get(name)
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
