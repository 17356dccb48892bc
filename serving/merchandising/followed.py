"""The document as one worker follows it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from pathlib import Path

from serving.merchandising.compiled import Compiled, compile_document
from serving.merchandising.copied import FILE, read_copy, write_copy
from serving.merchandising.document import Document
from serving.merchandising.stored import NOTHING_STORED, Stored, read_document, stamped
from serving.rules import Attributes
from serving.store import Store, StoreAway

log = logging.getLogger(__name__)

_UNKNOWN = (
    "merchandising rules are not known: Redis has not answered since this worker started, and there is no copy of them "
    "on disk"
)


class Followed:
    """The newest document that this worker has read. While Redis is unavailable, it stays as it is.

    problem: what is wrong with it, for operators; empty if nothing is. lost: True if Redis has lost the document that
    this worker still uses.
    """

    def __init__(self, store: Store, placements: Collection[str]) -> None:
        """placements: names of the configured placements."""
        self._store, self._placements = store, frozenset(placements)
        self._stored: Stored | None = None
        self._copied: Document | None = None
        self._copy_failed = False
        self.problem, self.lost = _UNKNOWN, False

    @property
    def document(self) -> Document:
        """The document, without rules if none has been read."""
        return (self._stored or NOTHING_STORED).document

    def compiled(self, attributes: Attributes) -> Compiled:
        """The document compiled for the items of a release."""
        return compile_document(self.document, attributes, self._placements)

    def read_copy(self, root: Path) -> None:
        """Use the copy beside the releases, unless Redis has a document."""
        if self._stored is not None and self._stored.stamp:
            return
        try:
            document = read_copy(root)
        except (OSError, ValueError) as e:
            log.warning("the copy of the merchandising rules cannot be used: %s", e)
            return
        if document is None or not document.version:
            return
        emptied = self._stored is not None
        self._stored, self._copied = stamped(document), document
        if emptied:
            self._set_lost()
        else:
            self._report(
                f"merchandising rules of version {document.version} are used from the copy on disk: Redis has not "
                "answered since this worker started"
            )

    async def follow(self, stamp: str | None) -> None:
        """Read the document if it is another than before.

        stamp: that of the stored document; empty if Redis has none, None if it did not answer. Raises nothing: if the
        document cannot be read, the one of before stays in use.
        """
        if stamp is None:
            return
        if stamp == "" and self.document.version:
            self._set_lost()
            return
        if self._stored is None or stamp != self._stored.stamp:
            try:
                self._stored = await read_document(self._store)
            except StoreAway as e:
                self._report(f"merchandising rules cannot be read, so those of before are used: {e}")
                return
            log.info("merchandising rules: version %d", self.document.version)
        self.lost = False
        self._report("")

    def adopt(self, stored: Stored) -> None:
        """Use a document that this worker has just written, without waiting for the next poll."""
        self._stored, self.lost = stored, False
        self._report("")

    async def copy(self, root: Path) -> None:
        """Write the document beside the releases, if it came from Redis and the copy is another."""
        stored = self._stored
        if stored is None or not stored.stamp or self.problem or stored.document == self._copied:
            return
        self._copied = stored.document
        try:
            await asyncio.to_thread(write_copy, root, stored.document)
        except OSError as e:
            if not self._copy_failed:
                log.warning("%s: no copy of the merchandising rules is kept: %s", root / FILE, e)
            self._copy_failed = True

    def _set_lost(self) -> None:
        """Go on with the rules of before: an emptied Redis must not remove every rule of the shop."""
        self.lost = True
        self._report(
            f"Redis has lost the merchandising rules; this worker still uses those of version {self.document.version}: "
            "restore Redis from a backup, or save any rule to write all of them back"
        )

    def _report(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.warning("%s", problem)
        self.problem = problem
