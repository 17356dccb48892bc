"""Changes to a night's ranker, tried on its own rows: which setting, which features, and how sure one may be.

For notebooks and scripts. Nothing is published, and neither log nor texts are read again. Try things on `validation`,
and look at `test` once, with what you have chosen: of many tries the best one looks better there than it is.
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
    """A night's ranker under changes. Each figure is `ndcg@10` of every list of a window, so that they can be paired.

    night: its rows are made where they are not there yet.
    """

    def __init__(self, night: Night) -> None:
        self._artefacts = night.run_to("rows")
        self.ranker = ranker_config(self._artefacts)
        """The settings that the night trains with: `study.ranker.model_copy(update={"leaves": 15})` changes one."""
        parts, self._features = make_folds(self._artefacts)
        self.columns = tuple(f.name for f in self._features)
        """Names of the features, in the order of the rows."""
        self._validation = parts[-1]

    @property
    def groups(self) -> list[str]:
        """Groups of features that these rows have, as `without` takes them."""
        return groups(self._features)

    def lists(self, window: Window) -> Lists:
        """The lists that a window's figures are of, in order."""
        return self._validation.judged if window == "validation" else self._artefacts.window_rows("test").lists

    def ndcg(
        self, window: Window = "validation", ranker: RankerConfig | None = None, without: Sequence[str] = ()
    ) -> F64:
        """float64[lists of the window]: ndcg@10 of the ranker trained with these settings, the night's if None.

        without: groups of features it may not read; what is set within the list from one of them goes with it. On
        validation training also stops early by these lists, which flatters all changes alike; on test it stops by
        validation and is grown anew on both, as a night's is. Raises KeyError for a group that these rows lack.
        """
        kept = self._kept(without)
        if window == "validation":
            return self._validation.ndcg(ranker or self.ranker, self.columns, kept)
        a, config = self._artefacts, ranker or self.ranker
        made, _ = fit_ranker(
            a.window_rows("ranker"),
            a.window_rows("validation"),
            a.window_rows("ranker", "validation") if config.refit else None,
            self.columns,
            config,
            kept,
        )
        x, tested, _ = a.window_rows("test")
        score = Trees.parse(made.model_text).score(np.ascontiguousarray(x[:, kept]))
        return score_lists(
            PRIMARY, score, tested.gain, tested.start, tie_break(tested.item, tested.start), tested.missed
        )

    def difference(self, changed: F64, base: F64, window: Window = "validation", seed: int = 0) -> Difference:
        """Mean of changed minus base, paired by list, with the 95% interval of a bootstrap over whole users."""
        return paired_difference(changed, base, self.users(window), seed=seed)

    def users(self, window: Window = "validation") -> I32:
        """int32[lists of the window]: whose list each is; intervals draw users, with all their lists."""
        return self.lists(window).user

    def _kept(self, groups: Sequence[str]) -> I64:
        """int64: numbers of the columns that remain."""
        if unknown := [g for g in groups if g not in self.groups]:
            raise KeyError(f"{unknown[0]!r} is no group of these rows; known: {', '.join(self.groups)}")
        gone = np.zeros(len(self.columns), np.bool_)
        for group in groups:
            gone |= in_group(self._features, group)
        return np.flatnonzero(~gone)
