"""``bridge.toml`` and the environment, read into frozen values; every problem at once, with its line and a fix."""

from __future__ import annotations

from bridge.config.model import BridgeSettings, Config, SourceConnection, TargetConnection
from bridge.config.reader import Routes, find, load, read_routes
from bridge.environment import Environment

__all__ = [
    "BridgeSettings",
    "Config",
    "Environment",
    "Routes",
    "SourceConnection",
    "TargetConnection",
    "find",
    "load",
    "read_routes",
]
