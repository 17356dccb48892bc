"""Configuration: one frozen value, `Config`, which `load` reads from a YAML file. Each section is a model of its own.

Every key has a type, a range, a default and a description. The package imports nothing heavy, because hosts that only
serve read the configuration too.
"""

from __future__ import annotations

from offline.config.checks import CHECKS, CheckConfig
from offline.config.configuration import Config, ConfigError, load, redis_url
from offline.config.earnings import EarningsConfig
from offline.config.imports import (
    ANNOTATION_FILES,
    DROP,
    EVENT_COLUMNS,
    AttributeKind,
    Column,
    EventSource,
    Explode,
    ImportConfig,
    ItemSource,
    Join,
    Source,
    TableConfig,
    Unpack,
    UserSource,
)
from offline.config.publication import GateConfig, RetentionConfig
from offline.config.sequence import SequenceConfig
from offline.config.simulation import POSITION_BIAS, SimulateConfig
from offline.config.windows import PROTOCOLS, Protocol, WindowConfig

__all__ = [
    "ANNOTATION_FILES",
    "CHECKS",
    "DROP",
    "EVENT_COLUMNS",
    "POSITION_BIAS",
    "PROTOCOLS",
    "AttributeKind",
    "CheckConfig",
    "Column",
    "Config",
    "ConfigError",
    "EarningsConfig",
    "EventSource",
    "Explode",
    "GateConfig",
    "ImportConfig",
    "ItemSource",
    "Join",
    "Protocol",
    "RetentionConfig",
    "SequenceConfig",
    "SimulateConfig",
    "Source",
    "TableConfig",
    "Unpack",
    "UserSource",
    "WindowConfig",
    "load",
    "redis_url",
]
