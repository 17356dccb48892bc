"""Records of what the service served and counted, for the nightly run and for operators.

They are served lists with shadow scores, Prometheus metrics, counts per minute, and counts of each shopper's events,
which are limited.
"""

from __future__ import annotations

from serving.records import metrics
from serving.records.event_limits import EventLimits
from serving.records.metrics import Metrics
from serving.records.served import Served, ServedLog, ShadowScores, decode_served
from serving.records.timeline import Minute, Timeline

__all__ = [
    "EventLimits",
    "Metrics",
    "Minute",
    "Served",
    "ServedLog",
    "ShadowScores",
    "Timeline",
    "decode_served",
    "metrics",
]
