"""The targets that bridge knows, by the ``type`` of their section in ``bridge.toml``."""

from __future__ import annotations

from bridge.targets import activecampaign, artu, clerk_chat, sakari

TARGETS = {
    target.name: target for target in (activecampaign.TARGET, sakari.TARGET, clerk_chat.TARGET, artu.TARGET)
}
