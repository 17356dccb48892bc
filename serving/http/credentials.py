"""A file with one credential per line, reloaded on change: API keys, and the secrets of shopper tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")

Parse = Callable[[str, str], tuple[dict[str, T], list[str]]]
"""(text, where it is from) to (the credentials of the valid lines by name, what is wrong with the other lines)."""


class KeysError(Exception):
    """Invalid keys, or a service that would be open to everyone. The message says where, why and how to fix it."""


def content_of(line: str) -> str:
    """A line without its comment (from # on) and outer white space."""
    return line.split("#")[0].strip()


def strictly(parse: Parse[T], text: str, where: str) -> dict[str, T]:
    """The credentials by name. Raises KeysError naming the first invalid line, also if there is no credential."""
    out, errors = parse(text, where)
    if errors:
        raise KeysError(errors[0])
    return out


class CredentialFile(Generic[T]):
    """The credentials of a file, by name. A credential is valid only while its line is in the file."""

    def __init__(self, path: Path, parse: Parse[T], what: str, setting: str, command: str) -> None:
        """what: plural of the credential. setting: names the file. command: prints a credential. All for messages.

        Raises KeysError if the file cannot be used.
        """
        self._path, self._parse, self._what = path, parse, what
        self._valid, self._unreadable = True, False
        try:
            self._content = path.read_bytes()
            self.by_name = strictly(parse, self._content.decode(), str(path))
        except (OSError, UnicodeDecodeError) as e:
            reason = "it is not UTF-8" if isinstance(e, UnicodeDecodeError) else e.strerror
            raise KeysError(
                f"cannot read the {what} in {str(path.absolute())!r}: {reason}. Write them into this file, one per "
                f"line, as printed by `{command}`, or name another file with {setting}"
            ) from e

    def look(self) -> bool:
        """Reload the file if its content has changed.

        An invalid line is logged once and ignored, so that it cannot keep another credential valid that was removed. An
        empty or missing file has no credentials. Only if the file exists but cannot be read do the previous ones stay
        valid. Returns True if every line of the file is in use.
        """
        where, what = str(self._path), self._what
        try:
            # Compared by content: a file may be changed without a change of its time and size.
            content = self._path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            content = b""
        except OSError as e:
            if not self._unreadable:
                kept = f"the previous {what} stay valid: cannot read the {what} in"
                log.error("%s not reloaded, %s %r: %s", what, kept, where, e)
            self._unreadable = True
            return False
        self._unreadable = False
        if content != self._content:
            self.by_name, errors = self._parse(content.decode(errors="replace"), where)
            self._content = content
            self._valid = not errors
            for error in errors:
                log.error("%s reloaded, but %s", what, error)
            if not self.by_name:
                log.error("no %s are valid: requests that need one are refused until %r contains some", what, where)
        return self._valid
