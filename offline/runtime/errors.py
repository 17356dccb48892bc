"""Errors that a person can mend: printed without a traceback."""

from __future__ import annotations


class DataError(ValueError):
    """A source or a dataset that cannot be read at all: the message names the file, the fault and the remedy."""


class Failure(Exception):
    """What a person can mend: printed without a traceback, exit status 1."""


class ReleaseKept(Exception):
    """The gate kept the live release; the message says why. Exit status 3."""

    status = 3


class ApprovalNeeded(Exception):
    """The gate leaves it to a person; the message says why, and how to decide. Exit status 6."""

    status = 6


class ChecksFailed(Exception):
    """The data are not fit to learn from; the message names each cause. Exit status 4."""

    status = 4
