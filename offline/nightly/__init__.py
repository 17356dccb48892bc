"""The nightly run: its plan, its artefacts, the data checks, the gate, publication and retention.

`Night` plans the steps over one run directory; each is a function of artefacts. Killed anywhere and started again, it
ends with the same bytes.
"""

from __future__ import annotations

from offline.nightly import comparison
from offline.nightly.artefacts import Artefacts
from offline.nightly.inputs import Inputs
from offline.nightly.night import Night
from offline.nightly.quality import FINDINGS
from offline.nightly.steps import ranker_config

__all__ = ["FINDINGS", "Artefacts", "Inputs", "Night", "comparison", "ranker_config"]
