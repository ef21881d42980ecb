"""The sources that bridge knows, by the ``type`` of their section in ``bridge.toml``."""

from __future__ import annotations

from bridge.sources import (
    activecampaign,
    form_scheme,
    hmac_scheme,
    hubspot,
    json_scheme,
    pipedrive,
    standard_webhooks,
    zoho_crm,
)

SOURCES = {
    source.name: source
    for source in (
        activecampaign.SOURCE,
        hubspot.SOURCE,
        pipedrive.SOURCE,
        zoho_crm.SOURCE,
        standard_webhooks.SOURCE,
        hmac_scheme.SOURCE,
        json_scheme.SOURCE,
        form_scheme.SOURCE,
    )
}
