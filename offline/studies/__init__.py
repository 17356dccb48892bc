"""Studies: changes tried on the rows of a nightly run, without publishing anything.

`tune` searches the ranker's settings, `ablate` measures feature groups, and `measure_staleness` measures how quality
falls with the age of a model. `Study` is for notebooks.
"""

from __future__ import annotations

from offline.studies.ablation import ablate
from offline.studies.staleness import measure_staleness
from offline.studies.study import Study
from offline.studies.tuning import FRAGMENT, fragment, make_folds, tune

__all__ = ["FRAGMENT", "Study", "ablate", "fragment", "make_folds", "measure_staleness", "tune"]
