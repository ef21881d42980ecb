"""The sources that bridge knows, by the ``type`` of their section in ``bridge.toml``."""

from __future__ import annotations

from bridge.sources import (
    activecampaign,
    attio,
    calendly,
    close,
    copper,
    dynamics365,
    form_scheme,
    freshsales,
    hmac_scheme,
    hubspot,
    intercom,
    json_scheme,
    keap,
    monday,
    pipedrive,
    salesforce,
    shopify,
    standard_webhooks,
    typeform,
    zendesk,
    zoho_crm,
)

SOURCES = {
    source.name: source
    for source in (
        activecampaign.SOURCE,
        attio.SOURCE,
        calendly.SOURCE,
        close.SOURCE,
        copper.SOURCE,
        dynamics365.SOURCE,
        freshsales.SOURCE,
        hubspot.SOURCE,
        intercom.SOURCE,
        keap.SOURCE,
        monday.SOURCE,
        pipedrive.SOURCE,
        salesforce.SOURCE,
        shopify.SOURCE,
        typeform.SOURCE,
        zendesk.SOURCE,
        zoho_crm.SOURCE,
        standard_webhooks.SOURCE,
        hmac_scheme.SOURCE,
        json_scheme.SOURCE,
        form_scheme.SOURCE,
    )
}
