"""Our schemes beside the vendors' own libraries: what one of the two signs, the other takes, and nothing else.

They are development dependencies only. Where one is not installed its tests are skipped, and say so.
"""

from __future__ import annotations

import base64
import importlib
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from bridge import signing
from bridge.errors import BadSignature
from bridge.model import InboundRequest, Secret, utc_now
from bridge.sources.base import Source
from bridge.sources.hubspot import HubSpot
from bridge.sources.hubspot import Settings as HubSpotSettings
from bridge.sources.standard_webhooks import Settings as StandardSettings
from bridge.sources.standard_webhooks import StandardWebhooks

# A failure is as telling as it is short: to look for a shorter one would take minutes.
few = settings(
    max_examples=15, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)

# Theirs take the body as text, so it is Unicode that UTF-8 can hold; ours take bytes.
bodies = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
secrets = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)
keys = st.binary(min_size=24, max_size=64).map(lambda key: "whsec_" + base64.b64encode(key).decode())
message_ids = st.from_regex(re.compile(r"[A-Za-z0-9_-]{1,30}"), fullmatch=True)
# Paths with the characters that HubSpot decodes before it signs, and with others that it leaves alone.
urls = st.lists(
    st.sampled_from(["a", "/", "%2F", "%3a", "%20", "%25", "%C3%A4", "?x=", "%40", "~"]), max_size=8
).map(lambda parts: "https://bridge.example.com/hooks/" + "".join(parts))


@cache
def library(module: str) -> Any:
    """Return a module of a vendor's library, or skip the test."""
    with warnings.catch_warnings():
        # What these packages, or those that they are made of, call without need is theirs to mend.
        for package in ("dateutil", "hubspot", "six", "standardwebhooks", "svix"):
            warnings.filterwarnings("ignore", module=rf"{package}(\.|$)", category=DeprecationWarning)
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            pytest.skip(f"{module} is not installed: requirements-dev.txt has it ({error}).")


def takes(source: Source, request: InboundRequest) -> bool:
    try:
        return source.verify(request, utc_now()).secret_index == 0
    except BadSignature:
        return False


def post(url: str, body: str, **headers: str) -> InboundRequest:
    return InboundRequest(
        "POST", url, {name.replace("_", "-"): value for name, value in headers.items()}, body.encode()
    )


# --- HubSpot ---------------------------------------------------------------------------------------------


def hubspot(secret: str) -> HubSpot:
    return HubSpot("crm", HubSpotSettings((Secret(secret),), signature_versions=("v1", "v2", "v3")))


def theirs(version: str, secret: str, request: InboundRequest, timestamp: str | None) -> str:
    """Return HubSpot's signature. Its library wants the URL as HubSpot means it: decoded, for version 3."""
    url = signing.decode_url(request.url) if version == "v3" else request.url
    made: str = library("hubspot.utils.signature").Signature.get_signature(
        secret, request.body.decode(), version, url, request.method, timestamp
    )
    return made


def takes_theirs(
    version: str, secret: str, request: InboundRequest, signature: str, timestamp: str | None
) -> bool:
    url = signing.decode_url(request.url) if version == "v3" else request.url
    valid: bool = library("hubspot.utils.signature").Signature.is_valid(
        signature, secret, request.body.decode(), url, request.method, version, timestamp
    )
    return valid


@few
@given(secret=secrets, body=bodies, url=urls, extra=st.sampled_from(["", " ", "x"]))
def test_what_hubspots_client_signs_is_taken_and_a_changed_body_is_not(
    secret: str, body: str, url: str, extra: str
) -> None:
    plain = post(url, body)
    at = str(int(utc_now().timestamp() * 1000))
    v3 = {
        "x-hubspot-signature-v3": theirs("v3", secret, plain, at),
        "x-hubspot-request-timestamp": at,
    }
    old = [
        {"x-hubspot-signature": theirs(version, secret, plain, None), "x-hubspot-signature-version": version}
        for version in ("v1", "v2")
    ]
    for headers in (v3, *old):
        request = replace(plain, headers=headers)
        assert takes(hubspot(secret), request)
        assert takes(hubspot(secret), replace(request, body=request.body + extra.encode())) is (not extra)
        assert not takes(hubspot(f"{secret}x"), request)


@few
@given(secret=secrets, body=bodies, url=urls)
def test_what_we_sign_hubspots_client_takes(secret: str, body: str, url: str) -> None:
    signed = hubspot(secret).sign(post(url, body), utc_now())
    at = signed.headers["x-hubspot-request-timestamp"]
    v3, v1 = signed.headers["x-hubspot-signature-v3"], signed.headers["x-hubspot-signature"]
    assert takes_theirs("v3", secret, signed, v3, at)
    assert takes_theirs("v1", secret, signed, v1, None)
    v2 = signing.sign(post(url, body), signing.credential(signing.HUBSPOT_V2, secret), utc_now())
    assert takes_theirs("v2", secret, v2, v2.headers["x-hubspot-signature"], None)
    assert not takes_theirs("v3", secret, replace(signed, body=signed.body + b" "), v3, at)


# --- Standard Webhooks, by its own library and by Svix's -------------------------------------------------

both = pytest.mark.parametrize(
    ("module", "names"), [("standardwebhooks.webhooks", "webhook"), ("svix.webhooks", "svix")]
)


def shop(key: str) -> StandardWebhooks:
    return StandardWebhooks("crm", StandardSettings((Secret(key),)))


def accepts(verify: Callable[..., object], module: str, body: str, headers: dict[str, str]) -> bool:
    """Say whether their verifier does. It also reads the body as JSON unless it is told not to."""
    try:
        verify(body, headers, **({"json_parse": False} if module.startswith("standard") else {}))
    except library("standardwebhooks.webhooks").WebhookVerificationError:
        return False
    return True


@both
@few
@given(key=keys, body=bodies, message=message_ids, extra=st.sampled_from(["", " ", "x"]))
def test_what_their_library_signs_is_taken_and_a_changed_request_is_not(
    module: str, names: str, key: str, body: str, message: str, extra: str
) -> None:
    now = utc_now()
    made: str = library(module).Webhook(key).sign(message, now, body)
    headers = {
        f"{names}-id": message,
        f"{names}-timestamp": str(int(now.timestamp())),
        f"{names}-signature": f"v1a,AAAA v1,AAAA {made}",
    }
    request = InboundRequest("POST", "https://bridge.example.com/hooks/crm", headers, body.encode())
    assert takes(shop(key), request)
    assert takes(shop(key), replace(request, body=request.body + extra.encode())) is (not extra)
    assert takes(shop(key), replace(request, headers={**headers, f"{names}-id": message + extra})) is (not extra)
    assert not takes(shop(key.replace("whsec_", "whsec_Qk0h")), request)


@both
@few
@given(key=keys, body=bodies, message=message_ids)
def test_what_we_sign_their_library_takes(module: str, names: str, key: str, body: str, message: str) -> None:
    request = post("https://bridge.example.com/hooks/crm", body, **{f"{names}-id": message})
    headers = dict(shop(key).sign(request, utc_now()).headers)
    verify = library(module).Webhook(key).verify
    assert accepts(verify, module, body, headers)
    assert not accepts(verify, module, f"{body} ", headers)
    assert not accepts(verify, module, body, {**headers, f"{names}-id": f"{message}x"})


@both
@pytest.mark.parametrize(("away_s", "fresh"), [(-310, False), (-290, True), (290, True), (310, False)])
def test_both_agree_on_how_old_a_request_may_be(module: str, names: str, away_s: int, fresh: bool) -> None:
    key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    now = utc_now()
    at = now.timestamp() + away_s
    made: str = library(module).Webhook(key).sign("msg_1", now.fromtimestamp(at, now.tzinfo), "{}")
    headers = {f"{names}-id": "msg_1", f"{names}-timestamp": str(int(at)), f"{names}-signature": made}
    request = InboundRequest("POST", "https://bridge.example.com/hooks/crm", headers, b"{}")
    assert takes(shop(key), request) is fresh
    assert accepts(library(module).Webhook(key).verify, module, "{}", headers) is fresh
