"""The sequence model: the order of a user's engagements, read by a small transformer without torch."""

from features.sequence.model import (
    AGES,
    HEADS,
    INNER,
    KINDS,
    LAYOUT,
    LENGTH,
    SCALE,
    TOWER,
    WEIGHTS,
    WIDTH,
    SequenceModel,
    age_buckets,
    tower_size,
)

__all__ = [
    "AGES",
    "HEADS",
    "INNER",
    "KINDS",
    "LAYOUT",
    "LENGTH",
    "SCALE",
    "TOWER",
    "WEIGHTS",
    "WIDTH",
    "SequenceModel",
    "age_buckets",
    "tower_size",
]
