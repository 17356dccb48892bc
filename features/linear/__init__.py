"""Linear item-to-item model: how much each engagement of a user speaks for or against an item.

It is fitted to the engagements of a log up to a time, and is part of a release, like the neighbours of
`features/neighbours.py`, which count pairs one by one. A regression tells apart what neighbours count several times.
"""

from features.linear.model import Linear

__all__ = ["Linear"]
