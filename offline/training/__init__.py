"""Training: fine-tunes text encoders, computes feature rows, and fits the ranker and the position effects.

`encoders.train_encoders` fine-tunes, `sequence.train_models` trains the sequence model, `make_rows` replays the log
into feature rows, and `fit_ranker` trains on those rows, or `choose_order` chooses a simple ranker: functions of
arrays, not of data files. `Embedder` encodes the texts of items written since the release. `VectorStore` keeps what the
encoder read, for later runs.
"""

from __future__ import annotations

from offline.training import encoders, sequence
from offline.training.embedding_worker import Embedder
from offline.training.inverted_lists import build_inverted_lists
from offline.training.position_effects import examination_probability
from offline.training.ranker import WindowRows, fit_ranker
from offline.training.replay import make_replay, with_unknown
from offline.training.rows import RowsJob, make_rows
from offline.training.simple_ranker import choose_order
from offline.training.vector_store import VectorStore

__all__ = [
    "Embedder",
    "RowsJob",
    "VectorStore",
    "WindowRows",
    "build_inverted_lists",
    "choose_order",
    "encoders",
    "examination_probability",
    "fit_ranker",
    "make_replay",
    "make_rows",
    "sequence",
    "with_unknown",
]
