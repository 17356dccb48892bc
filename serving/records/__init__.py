"""Records: what the service answered and counted, for the night and for operators.

Served lists with shadow scores, Prometheus metrics, and counts by the minute.
"""

from __future__ import annotations

from serving.records import metrics
from serving.records.metrics import Metrics
from serving.records.served import Served, ServedLog, ShadowScores, decode_served
from serving.records.timeline import Minute, Timeline

__all__ = ["Metrics", "Minute", "Served", "ServedLog", "ShadowScores", "Timeline", "decode_served", "metrics"]
