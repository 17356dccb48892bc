"""Data sets on disk and as arrays.

`load_dataset` reads the catalogue and the log, `collect` moves records of the service into the data set, `query_groups`
builds the lists for training and evaluation, and `Windows` splits them by time. Logs of any length are read in spans of
time; `partitions` stores them by day.
"""

from __future__ import annotations

from offline.data import dataset, erasures, imported, query_groups, written_items
from offline.data.append_only import release_pages, to_strings
from offline.data.collection import collect
from offline.data.dataset import (
    Dataset,
    annotation_table,
    list_columns,
    list_placements,
    list_seeds,
    load_dataset,
    load_items,
    logged_table,
)
from offline.data.log import LogFiles, load_log, user_histories
from offline.data.partitions import DAY_US, GROUP_ROWS, Storage, to_microseconds
from offline.data.query_groups import Targets, concat, keys, logged_lists, select
from offline.data.schema import (
    CANONICAL,
    EVENTS_FILE,
    EVENTS_FORM,
    EVENTS_SCHEMA,
    EXPERIMENT_FIELDS,
    PLACEMENT,
    SERVED_FILE,
    SERVED_FORM,
    SERVED_SCHEMA,
    TAGS,
    UTC_US,
)
from offline.data.windows import WINDOWS, Windows

__all__ = [
    "CANONICAL",
    "DAY_US",
    "EVENTS_FILE",
    "EVENTS_FORM",
    "EVENTS_SCHEMA",
    "EXPERIMENT_FIELDS",
    "GROUP_ROWS",
    "PLACEMENT",
    "SERVED_FILE",
    "SERVED_FORM",
    "SERVED_SCHEMA",
    "TAGS",
    "UTC_US",
    "WINDOWS",
    "Dataset",
    "LogFiles",
    "Storage",
    "Targets",
    "Windows",
    "annotation_table",
    "collect",
    "concat",
    "dataset",
    "erasures",
    "imported",
    "keys",
    "list_columns",
    "list_placements",
    "list_seeds",
    "load_dataset",
    "load_items",
    "load_log",
    "logged_lists",
    "logged_table",
    "query_groups",
    "release_pages",
    "select",
    "to_microseconds",
    "to_strings",
    "user_histories",
    "written_items",
]
