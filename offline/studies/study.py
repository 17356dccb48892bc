"""Tries changes to the settings and features of a nightly run's ranker, on the rows of that run.

For notebooks and scripts. Nothing is published, and neither the log nor the item texts are read again. Try changes on
`validation`, and evaluate only the change you choose on `test`: the best of many tries is biased upwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from features.arrays import F64, I32, I64
from features.log import Lists
from features.table import groups, in_group
from offline.evaluation import PRIMARY
from offline.nightly import Night, ranker_config
from offline.studies.tuning import make_folds
from offline.training import fit_ranker
from ranker.metrics import Difference, paired_difference, score_lists, tie_break
from ranker.train import RankerConfig
from ranker.trees import Trees

Window = Literal["validation", "test"]


class Study:
    """Variants of a nightly run's ranker, each measured by `ndcg@10` of every list of a window.

    Since all variants are measured on the same lists, their figures can be compared as pairs.
    """

    def __init__(self, night: Night) -> None:
        """night: runs up to its feature rows, if it has not yet."""
        self._artefacts = night.run_to("rows")
        self.ranker = ranker_config(self._artefacts)
        """The run's ranker settings. To change one: `study.ranker.model_copy(update={"leaves": 15})`."""
        folds, self._features = make_folds(self._artefacts)
        self.columns = tuple(f.name for f in self._features)
        """Feature names, in column order."""
        self._validation = folds[-1]

    @property
    def groups(self) -> list[str]:
        """Feature groups of the rows: the valid values of `without`."""
        return groups(self._features)

    def lists(self, window: Window) -> Lists:
        """The lists of a window, in the order of the figures."""
        return self._validation.held_out if window == "validation" else self._artefacts.window_rows("test").lists

    def ndcg(
        self, window: Window = "validation", ranker: RankerConfig | None = None, without: Sequence[str] = ()
    ) -> F64:
        """float64[lists of the window]: ndcg@10 of a ranker trained with these settings.

        ranker: the run's settings if None. without: feature groups to leave out, together with the within-list features
        computed from them. For `validation`, early stopping uses the same lists, which biases all variants upwards
        alike. For `test`, early stopping uses validation and the ranker is refit on both windows, as in a nightly run.
        Raises KeyError for an unknown group.
        """
        kept = self._columns_without(without)
        if window == "validation":
            return self._validation.ndcg(ranker or self.ranker, self.columns, kept)
        a, config = self._artefacts, ranker or self.ranker
        trained, _ = fit_ranker(
            a.window_rows("ranker"),
            a.window_rows("validation"),
            a.window_rows("ranker", "validation") if config.refit else None,
            self.columns,
            config,
            kept,
        )
        x, tested, _ = a.window_rows("test")
        score = Trees.parse(trained.model_text).score(np.ascontiguousarray(x[:, kept]))
        return score_lists(
            PRIMARY, score, tested.gain, tested.start, tie_break(tested.item, tested.start), tested.missed
        )

    def difference(self, changed: F64, base: F64, window: Window = "validation", seed: int = 0) -> Difference:
        """Mean of `changed - base`, paired by list, with a 95% interval from a bootstrap over users."""
        return paired_difference(changed, base, self.users(window), seed=seed)

    def users(self, window: Window = "validation") -> I32:
        """int32[lists of the window]: the user of each list. Intervals resample users, with all their lists."""
        return self.lists(window).user

    def _columns_without(self, groups: Sequence[str]) -> I64:
        """int64: indices of the columns outside these groups."""
        if unknown := [g for g in groups if g not in self.groups]:
            raise KeyError(f"unknown feature group {unknown[0]!r}; expected one of: {', '.join(self.groups)}")
        left_out = np.zeros(len(self.columns), np.bool_)
        for group in groups:
            left_out |= in_group(self._features, group)
        return np.flatnonzero(~left_out)
