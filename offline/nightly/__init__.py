"""The nightly run: plan, artefacts, data checks, gate, publication and retention.

`Night` plans the steps over one run directory; each step is a function of artefacts. A run that is killed at any point
and started again produces the same bytes.
"""

from __future__ import annotations

from offline.nightly import comparison
from offline.nightly.artefacts import Artefacts
from offline.nightly.inputs import Inputs
from offline.nightly.night import Night
from offline.nightly.quality import FINDINGS
from offline.nightly.steps import ranker_config

__all__ = ["FINDINGS", "Artefacts", "Inputs", "Night", "comparison", "ranker_config"]
