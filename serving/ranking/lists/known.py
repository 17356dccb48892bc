"""Facts about the user of a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from features.columns import Scalar
from features.history import History, Outside
from serving.api import DegradedReason
from serving.ranking.live import Live
from serving.store import StoredUser


class Known(NamedTuple):
    """The data known of a user. outside: their events outside the catalogue.

    attributes: None if they were not read, because nothing needs them or Redis is unavailable. degraded: why the
    response is degraded; None if it is not. stored: what Redis has of the user; None if it was not read. unit: of the
    user in experiments; None without a user or experiments of users.
    """

    history: History
    outside: Outside
    attributes: Mapping[str, Scalar] | None
    degraded: DegradedReason | None
    stored: StoredUser | None = None
    unit: int | None = None

    def of_release(self, live: Live, at: float) -> Known:
        """The same for another release, whose catalogue has other rows. at: Unix seconds."""
        if self.stored is None:
            return self
        history, outside = self.stored.history(live.items.catalogue, at, live.release.manifest.retention)
        return self._replace(history=history, outside=outside)
