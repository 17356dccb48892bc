"""Shopper tokens: proof that a request is from the shopper it names.

A token is a JSON Web Token (RFC 7519), signed by the shop's back end with a secret that it shares with the service:

    header  {"alg": "HS256", "kid": "2026-11"}    kid: name of the secret
    claims  {"sub": "u00003", "exp": 1764500000}  sub: user ID, exp: end of validity in Unix seconds

The file of secrets has one line per secret, its name and the secret, a text of 43 characters (256 random bits) whose
bytes are the key of the HMAC. To replace a secret, add a line, have the back end sign with the new one, and remove the
old line when the last token that it signed has expired.
"""

from __future__ import annotations

import re
import secrets
import time
from pathlib import Path
from typing import Literal

import jwt

from features.bounds import IdError, clean_id
from serving.api import Problem
from serving.http.credentials import CredentialFile, KeysError, content_of

HEADER = "X-Shopper-Token"
Policy = Literal["off", "optional", "required"]

_NAME = re.compile(r"[A-Za-z0-9._-]{1,40}")
_SECRET = re.compile(r"[A-Za-z0-9_-]{43,}")
_ALGORITHM = "HS256"
_LEEWAY_S = 30
"""How far the clocks of the back end and of the service may differ."""
_MOST_BYTES = 2000


def new_secret(name: str) -> str:
    """A line with a new secret. Raises KeysError for an invalid name."""
    line = f"{name} {secrets.token_urlsafe(32)}"
    _secret(line, "the new secret")
    return line


def _secret(line: str, where: str) -> tuple[str, str]:
    # The invalid value is not quoted: it may be the secret.
    name, _, secret = line.partition(" ")
    if not _NAME.fullmatch(name) or not _SECRET.fullmatch(secret.strip()):
        raise KeysError(
            f"{where}: expected `name secret`, a name of 1 to 40 letters, digits, dots, hyphens and underscores, and a "
            "secret of at least 43 letters, digits, hyphens and underscores; `shelfwise keys secret` prints such a line"
        )
    return name, secret.strip()


def parse_secrets(text: str, where: str) -> tuple[dict[str, str], list[str]]:
    """(secrets by name, what is wrong with the other lines). Empty lines and comments (from # on) are ignored."""
    found: dict[str, str] = {}
    errors = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not (content := content_of(line)):
            continue
        try:
            name, secret = _secret(content, f"{where}, line {number}")
        except KeysError as e:
            errors.append(str(e))
            continue
        if name in found:
            errors.append(f"{where}, line {number}: duplicate secret name {name!r}")
        else:
            found[name] = secret
    if not found and not errors:
        errors.append(f"{where} contains no secrets: create one with `shelfwise keys secret`")
    return found, errors


def last_secret(file: Path) -> tuple[str, str]:
    """The name and text of the last secret of a file. Raises KeysError if the file cannot be used."""
    return list(_secrets(file, "--secrets").by_name.items())[-1]


def _secrets(file: Path, setting: str) -> CredentialFile[str]:
    return CredentialFile(file, parse_secrets, "shopper secrets", setting, "shelfwise keys secret")


def make_token(user_id: str, name: str, secret: str, seconds: float) -> str:
    """A token for a user, as a shop's back end makes it. name: of the secret. seconds: how long it is valid."""
    claims = {"sub": user_id, "exp": int(time.time() + seconds)}
    return jwt.encode(claims, secret, _ALGORITHM, headers={"kid": name})


class ShopperTokens:
    """The policy for tokens of public keys, and the secrets that verify them.

    policy: `off` ignores tokens, `optional` verifies those that are sent, `required` also refuses requests without one.
    """

    def __init__(self, policy: Policy = "off", file: Path | None = None) -> None:
        """Raises KeysError if tokens are used and the file of secrets is missing or cannot be used."""
        if policy != "off" and file is None:
            raise KeysError(
                f"serving.shopper_tokens is {policy!r} and there are no secrets: create one (`shelfwise keys secret`) "
                "and set serving.shopper_secrets_file to its file"
            )
        self.policy = policy
        self._file = None
        if policy != "off" and file is not None:
            self._file = _secrets(file, "serving.shopper_secrets_file")

    def look(self) -> bool:
        """Reload the secrets if their file has changed: see `CredentialFile.look`. True without a file."""
        return self._file is None or self._file.look()

    def shopper(self, token: str) -> str:
        """The user ID that a token proves. Raises Problem (401) if it is not valid."""
        by_name = {} if self._file is None else self._file.by_name
        try:
            if len(token) > _MOST_BYTES:
                raise _refused(f"it is longer than {_MOST_BYTES} bytes")
            name = jwt.get_unverified_header(token).get("kid")
            if name not in by_name:
                raise _refused("its `kid` does not name a secret of the service")
            options: jwt.types.Options = {"require": ["exp", "sub"], "verify_iat": False}
            claims = jwt.decode(token, by_name[name], algorithms=[_ALGORITHM], options=options, leeway=_LEEWAY_S)
            return clean_id(claims["sub"])
        except IdError as e:
            raise _refused(f"its `sub` {e}") from e
        except jwt.ExpiredSignatureError as e:
            raise _refused("it has expired") from e
        except jwt.PyJWTError as e:
            raise _refused(str(e)) from e


def _refused(why: str) -> Problem:
    return token_problem(f"the shopper token is not valid: {why}")


def token_problem(detail: str) -> Problem:
    """A problem (401) with the token of a request."""
    return Problem(
        401,
        "shopper-token",
        "Shopper token required",
        detail,
        f"Get a new token from the shop's back end and send it as `{HEADER}`, or leave out `user_id`.",
        headers={"WWW-Authenticate": 'Bearer realm="shelfwise"'},
    )
