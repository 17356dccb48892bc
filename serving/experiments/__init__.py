"""Experiments: which arm a unit is in, which experiments are stopped, and how two arms share a list.

Assignment is a function of the configuration and the ID of the unit. It needs no Redis, and every worker has the same.
"""

from __future__ import annotations

from serving.experiments.assignment import Assignment, unit_hash, unit_hashes
from serving.experiments.drafting import Draft, draft
from serving.experiments.followed import FollowedStops
from serving.experiments.stops import (
    MOST_STOPPED,
    Stop,
    StopError,
    Stops,
    decode_stops,
    resume,
    stop,
    stopped,
    stops_command,
)
from serving.experiments.table import NO_ARMS, Arms, ExperimentTable, Key

__all__ = [
    "MOST_STOPPED",
    "NO_ARMS",
    "Arms",
    "Assignment",
    "Draft",
    "ExperimentTable",
    "FollowedStops",
    "Key",
    "Stop",
    "StopError",
    "Stops",
    "decode_stops",
    "draft",
    "resume",
    "stop",
    "stopped",
    "stops_command",
    "unit_hash",
    "unit_hashes",
]
