"""The sources that bridge knows, by the ``type`` of their section in ``bridge.toml``."""

from __future__ import annotations

from bridge.sources import (
    hmac_scheme,
    hubspot,
    pipedrive,
    standard_webhooks,
)

SOURCES = {
    source.name: source
    for source in (
        hubspot.SOURCE,
        pipedrive.SOURCE,
        standard_webhooks.SOURCE,
        hmac_scheme.SOURCE,
    )
}
