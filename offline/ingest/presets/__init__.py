"""Presets: mappings of common exports, one YAML file each, recognised by the shape of the files.

`find_preset` chooses the most specific preset that fits some files and returns its mapping bound to them.
"""

from __future__ import annotations

from offline.ingest.presets.preset import Preset, load_preset, load_presets
from offline.ingest.presets.recognition import bind, find_preset

__all__ = ["Preset", "bind", "find_preset", "load_preset", "load_presets"]
