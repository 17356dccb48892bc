"""User-facing errors. The command line prints them without a traceback."""

from __future__ import annotations


class DataError(ValueError):
    """A source or data set cannot be read. The message names the file, the problem and the fix."""


class Failure(Exception):
    """An error that the user can fix. Printed without a traceback; exit status 1."""


class ReleaseKept(Exception):
    """The gate kept the live release. The message gives the reasons. Exit status 3."""

    status = 3


class ApprovalNeeded(Exception):
    """The gate asks for approval. The message gives the reasons and the commands to decide. Exit status 6."""

    status = 6


class ChecksFailed(Exception):
    """The data checks failed. The message names each cause. Exit status 4."""

    status = 4
