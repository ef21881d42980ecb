"""Every scheme: the vendors' own vectors, what must be refused, and properties that hold for any input."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import signing
from bridge.errors import BadSignature
from bridge.model import InboundRequest
from bridge.signing import Credential, Encoding, Scheme, Stamp, Unit

NOW = datetime(2026, 9, 21, 14, 13, 21, tzinfo=UTC)  # 1790000001
URL = "https://bridge.example.com/hooks/shop"
VECTORS = Path(__file__).parent / "vectors"
WHSEC = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
WHSK = "whsk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


def vectors(name: str) -> list[Any]:
    return [pytest.param(one, id=one["id"]) for one in json.loads((VECTORS / f"{name}.json").read_text("utf-8"))]


def body_of(vector: Mapping[str, Any]) -> bytes:
    body: bytes = vector["body"].encode()
    assert len(body) == vector["body_len"], "the copy of the vector is not exact"
    assert hashlib.sha256(body).hexdigest() == vector["body_sha256"], "the copy of the vector is not exact"
    return body


def post(body: bytes, url: str = URL, **headers: str) -> InboundRequest:
    return InboundRequest("POST", url, {name.replace("_", "-"): value for name, value in headers.items()}, body)


def refused(request: InboundRequest, one: Credential, now: datetime = NOW) -> str:
    with pytest.raises(BadSignature) as caught:
        signing.verify(request, [one], now)
    return str(caught.value)


# --- vectors ---------------------------------------------------------------------------------------------

HUBSPOT = {"v1": signing.HUBSPOT_V1, "v2": signing.HUBSPOT_V2, "v3": signing.HUBSPOT_V3}


def hubspot_request(vector: Mapping[str, Any], signature: str) -> InboundRequest:
    url = vector.get("wire_uri") or vector.get("uri") or vector.get("signed_uri") or URL
    headers = {HUBSPOT[vector["version"]].header: signature}
    if "timestamp" in vector:
        headers["x-hubspot-request-timestamp"] = vector["timestamp"]
    return InboundRequest(vector.get("method", "POST"), url, headers, body_of(vector))


def hubspot_now(vector: Mapping[str, Any]) -> datetime:
    return signing.EPOCH + timedelta(milliseconds=int(vector.get("timestamp", 1_790_000_000_000)))


@pytest.mark.parametrize("vector", vectors("hubspot"))
def test_hubspot(vector: Mapping[str, Any]) -> None:
    one = signing.credential(HUBSPOT[vector["version"]], vector["secret"])
    request, now = hubspot_request(vector, vector["signature"]), hubspot_now(vector)
    proof = signing.verify(request, [one], now)
    assert proof == signing.Proof(0, now if "timestamp" in vector else None)
    assert signing.sign(replace(request, headers={}), one, now).headers == request.headers
    if "wire_uri" in vector:
        assert signing.decode_url(vector["wire_uri"]) == vector["signed_uri"]


@pytest.mark.parametrize(
    ("vector", "wrong"),
    [
        pytest.param(one.values[0], wrong, id=f"{one.id}-{name}")
        for one in vectors("hubspot")
        for name, wrong in one.values[0].get("must_fail", {}).items()
    ],
)
def test_hubspot_must_fail(vector: Mapping[str, Any], wrong: str) -> None:
    one = signing.credential(HUBSPOT[vector["version"]], vector["secret"])
    assert refused(hubspot_request(vector, wrong), one, hubspot_now(vector)) == "The signature does not match."


def test_hubspot_decodes_its_twelve_escapes_once_and_nothing_else() -> None:
    assert signing.decode_url("%3A%2F%3F%40%21%24%27%28%29%2A%2C%3B") == ":/?@!$'()*,;"
    assert signing.decode_url("%3a%2f%2c") == ":/,"
    untouched = "%20%25%26%2B%3D%23%5B%5D+%C3%A4%252F"
    assert signing.decode_url(untouched) == untouched


def test_hubspot_v3_lives_five_minutes_and_may_be_one_minute_ahead() -> None:
    one = signing.credential(signing.HUBSPOT_V3, "secret")
    signed = signing.sign(post(b"[]"), one, NOW)
    for fine_s in (-60, 0, 300):
        assert signing.verify(signed, [one], NOW + timedelta(seconds=fine_s)).signed_at == NOW
    assert "too long ago" in refused(signed, one, NOW + timedelta(seconds=300.001))
    assert "future" in refused(signed, one, NOW - timedelta(seconds=60.001))


@pytest.mark.parametrize("vector", vectors("standard_webhooks"))
def test_standard_webhooks(vector: Mapping[str, Any]) -> None:
    secret = vector.get("secret") or vector.get("public_key") or vector["secrets_accepted"][0]
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    request = InboundRequest("POST", URL, {name: vector[name] for name in names}, body_of(vector))
    now = datetime.fromtimestamp(int(vector["webhook-timestamp"]), UTC)
    assert signing.verify(request, [signing.standard_credential("webhook", secret)], now).signed_at == now
    svix = {name.replace("webhook", "svix"): value for name, value in request.headers.items()}
    signing.verify(replace(request, headers=svix), [signing.standard_credential("svix", secret)], now)


def test_standard_webhooks_makes_the_asymmetric_vector() -> None:
    (vector,) = (one.values[0] for one in vectors("standard_webhooks") if one.id == "sw-v1a")
    request = post(body_of(vector), webhook_id=vector["webhook-id"])
    now = datetime.fromtimestamp(int(vector["webhook-timestamp"]), UTC)
    private = signing.standard_credential("webhook", WHSK)
    assert signing.sign(request, private, now).headers["webhook-signature"] == vector["webhook-signature"]
    public = signing.standard_credential("webhook", vector["public_key"])
    with pytest.raises(ValueError, match="public key can check"):
        signing.sign(request, public, now)


def test_a_key_of_one_kind_never_checks_a_signature_of_the_other() -> None:
    shared, private = (signing.standard_credential("webhook", secret) for secret in (WHSEC, WHSK))
    by_shared = signing.sign(post(b"{}", webhook_id="msg_1"), shared, NOW)
    by_private = signing.sign(post(b"{}", webhook_id="msg_1"), private, NOW)
    assert signing.verify(by_private, [shared, private], NOW).index == 1
    assert "no signature of the configured kind" in refused(by_shared, private)
    assert "no signature of the configured kind" in refused(by_private, shared)
    for request, one in ((by_shared, private), (by_private, shared)):
        proof = request.headers["webhook-signature"].partition(",")[2]
        relabelled = {**request.headers, "webhook-signature": one.scheme.prefix + proof}
        assert refused(replace(request, headers=relabelled), one) == "The signature does not match."


@pytest.mark.parametrize("vector", vectors("github"))
def test_github(vector: Mapping[str, Any]) -> None:
    one = signing.credential(signing.GITHUB, vector["secret"])
    signature = vector["x_hub_signature_256"]
    request = post(body_of(vector), x_hub_signature_256=signature)
    assert signing.verify(request, [one], NOW) == signing.Proof(0, None)
    assert signing.sign(post(request.body), one, NOW).headers["x-hub-signature-256"] == signature
    upper = "sha256=" + signature.removeprefix("sha256=").upper()
    signing.verify(post(request.body, x_hub_signature_256=upper), [one], NOW)


@pytest.mark.parametrize("vector", vectors("stripe"))
def test_stripe(vector: Mapping[str, Any]) -> None:
    one = signing.credential(signing.STRIPE, vector["secret"])
    now = datetime.fromtimestamp(int(vector["t"]), UTC)
    body = body_of(vector)
    assert signing.verify(post(body, stripe_signature=vector["stripe_signature"]), [one], now).signed_at == now
    proof = vector["stripe_signature"].split("v1=")[1].split(",")[0]
    rotating = f"t={vector['t']},v1={'0' * 64},v1={proof}"
    signing.verify(post(body, stripe_signature=rotating), [one], now)
    for wrong in (
        f"t={vector['t']},v0={proof}",  # the scheme for tests proves nothing
        f"v1={proof}",
        f"t={vector['t']},t=1790000001,v1={proof}",
        f"t={vector['t']}",
        f"t=1790000001,v1={proof}",
    ):
        refused(post(body, stripe_signature=wrong), one, now)


@pytest.mark.parametrize("vector", vectors("slack"))
def test_slack(vector: Mapping[str, Any]) -> None:
    one = signing.credential(signing.SLACK, vector["signing_secret"])
    now = datetime.fromtimestamp(int(vector["timestamp"]), UTC)
    headers = {
        "x_slack_signature": vector["x_slack_signature"],
        "x_slack_request_timestamp": vector["timestamp"],
    }
    assert signing.verify(post(body_of(vector), **headers), [one], now).signed_at == now


@pytest.mark.parametrize("vector", vectors("basic"))
def test_basic(vector: Mapping[str, Any]) -> None:
    user, password = vector["http_auth_user"], vector["http_auth_password"]
    one = signing.basic_credential(user, password)
    for spelling in ("Basic ", "basic ", "BASIC "):
        header = spelling + vector["authorization"].removeprefix("Basic ")
        assert signing.verify(post(b"{}", authorization=header), [one], NOW) == signing.Proof(0, None)
    assert signing.sign(post(b""), one, NOW).headers == {"authorization": vector["authorization"]}
    for other in (signing.basic_credential(user, password + "x"), signing.basic_credential(user + "x", password)):
        refused(signing.sign(post(b""), other, NOW), one)


# --- rotation --------------------------------------------------------------------------------------------


def test_all_secrets_are_tried_and_the_one_that_matched_is_told_by_its_index() -> None:
    old, new = (signing.credential(signing.GITHUB, secret) for secret in ("old", "new"))
    request = signing.sign(post(b"{}"), old, NOW)
    assert signing.verify(request, [new, old], NOW).index == 1
    assert signing.verify(request, [old, new], NOW).index == 0
    assert signing.verify(request, [new, old, old], NOW).index == 1
    with pytest.raises(BadSignature):
        signing.verify(request, [new], NOW)
    with pytest.raises(BadSignature, match="No secret is configured"):
        signing.verify(request, [], NOW)


# --- secrets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["text", "hex", "base64"])
@pytest.mark.parametrize("secret", ["", " ", "\n"])
def test_an_empty_secret_is_refused(secret: str, encoding: str) -> None:
    with pytest.raises(ValueError, match="empty"):
        signing.credential(signing.GITHUB, secret, encoding)


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        ("whsec_", "empty"),
        ("whsec_!!!", "base64"),
        ("sk_live_abc", "none of whsec_"),
        ("whpk_AAAA", "32 bytes"),
        ("whsk_AAAA", "32 bytes"),
        ("whsk_" + "A" * 86 + "==", "do not belong together"),
    ],
)
def test_an_unusable_standard_secret_is_refused_without_quoting_it(secret: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        signing.standard_credential("webhook", secret)
    assert secret not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_same_key_in_every_spelling() -> None:
    made = {
        signing.sign(post(b"{}"), signing.credential(signing.GITHUB, secret, encoding), NOW).headers[
            "x-hub-signature-256"
        ]
        for secret, encoding in (("key", "text"), ("6b6579", "hex"), ("a2V5", "base64"), ("key\n", "text"))
    }
    assert len(made) == 1
    bare, prefixed = (signing.standard_credential("webhook", one) for one in (WHSEC.removeprefix("whsec_"), WHSEC))
    assert bare.key == prefixed.key
    seed = signing.standard_credential("webhook", WHSK)
    assert seed.signing_key is not None
    whole = "whsk_" + base64.b64encode(seed.signing_key + seed.key).decode()
    assert signing.standard_credential("webhook", whole) == seed


def test_a_credential_does_not_print_its_secret() -> None:
    assert "hidden" not in repr(signing.credential(signing.GITHUB, "hidden"))


@pytest.mark.parametrize(("user", "password"), [("", "p"), ("a:b", "p"), ("a", "")])
def test_a_login_that_cannot_be_told_apart_is_refused(user: str, password: str) -> None:
    with pytest.raises(ValueError, match=r"user|password"):
        signing.basic_credential(user, password)


# --- schemes that prove nothing --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ({"header": ""}, "name of the header"),
        ({"parts": ("timestamp",), "stamp": Stamp("x-at")}, "leaves out the body"),
        ({"parts": ("body", "time")}, "cannot be a part"),
        ({"digest": "md5"}, "no digest"),
        ({"stamp": Stamp("x-at")}, "only when it is signed"),
        ({"parts": ("body", "timestamp")}, "only when it is signed"),
        ({"parts": ("body", "timestamp"), "stamp": Stamp()}, "header of its own or"),
        ({"parts": ("body", "timestamp"), "stamp": Stamp("x-at", "t=")}, "header of its own or"),
        ({"parts": ("body", "timestamp"), "stamp": Stamp(prefix="t=")}, "what separates"),
        *(
            ({"parts": ("body", "timestamp"), "stamp": Stamp("x-at", past_s=s)}, "tolerance")
            for s in (0, -1, 86_401, float("inf"), float("nan"))
        ),
    ],
)
def test_a_scheme_that_proves_nothing_is_refused(scheme: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Scheme(**{"header": "x-signature", **scheme})


def test_only_a_sender_that_repeats_for_days_is_believed_for_more_than_one() -> None:
    day_s = 86_400
    for lasting, longest_s in ((False, day_s), (True, 4 * day_s)):
        stamp = Stamp("x-at", past_s=longest_s, lasting=lasting)
        assert Scheme("x-signature", ("body", "timestamp"), stamp=stamp).stamp == stamp
        for wrong in ({"past_s": longest_s + 1}, {"future_s": longest_s + 1}, {"past_s": float("nan")}):
            with pytest.raises(ValueError, match="tolerance"):
                Scheme("x-signature", ("body", "timestamp"), stamp=replace(stamp, **wrong))


# --- any scheme ------------------------------------------------------------------------------------------

CREDENTIALS = {
    "hubspot-v1": signing.credential(signing.HUBSPOT_V1, "secret"),
    "hubspot-v2": signing.credential(signing.HUBSPOT_V2, "secret"),
    "hubspot-v3": signing.credential(signing.HUBSPOT_V3, "secret"),
    "standard": signing.standard_credential("webhook", WHSEC),
    "svix": signing.standard_credential("svix", WHSEC),
    "ed25519": signing.standard_credential("webhook", WHSK),
    "stripe": signing.credential(signing.STRIPE, "whsec_text"),
    "slack": signing.credential(signing.SLACK, "secret"),
    "github": signing.credential(signing.GITHUB, "secret"),
    "basic": signing.basic_credential("bridge", "password"),
    "iso-sha512": signing.credential(
        Scheme(
            "x-signature",
            ("method", "url", "header:x-id", "timestamp", "body"),
            separator="\n",
            digest="sha512",
            encoding=Encoding.BASE64,
            stamp=Stamp("x-at", unit=Unit.ISO),
        ),
        "secret",
    ),
}


def schemes(fits: Callable[[Scheme], object] = lambda scheme: True) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "one", [pytest.param(one, id=name) for name, one in CREDENTIALS.items() if fits(one.scheme)]
    )


def has_stamp(scheme: Scheme) -> bool:
    return scheme.stamp is not None


def covers_body(scheme: Scheme) -> bool:
    return "body" in scheme.parts  # HTTP Basic does not


few = settings(max_examples=30, deadline=None, derandomize=True, database=None)
IDS = {"webhook-id": "msg_1", "svix-id": "msg_1", "x-id": "1"}


def signed(one: Credential, body: bytes, url: str = URL, now: datetime = NOW) -> InboundRequest:
    return signing.sign(InboundRequest("POST", url, IDS, body), one, now)


@schemes()
@few
@given(
    body=st.binary(max_size=200),
    path=st.from_regex(r"(/[a-zA-Z0-9%?=&+._~-]{0,20}){1,3}", fullmatch=True),
    seconds=st.floats(1e9, 9_999_999_998),
)
def test_what_is_signed_verifies(one: Credential, body: bytes, path: str, seconds: float) -> None:
    now = signing.EPOCH + timedelta(seconds=seconds)
    proof = signing.verify(signed(one, body, f"https://bridge.example.com{path}", now), [one], now)
    assert proof.index == 0
    if one.scheme.stamp is None:
        assert proof.signed_at is None
    else:
        assert proof.signed_at is not None
        assert timedelta() <= now - proof.signed_at < timedelta(seconds=1)


@schemes(covers_body)
@few
@given(body=st.binary(min_size=1, max_size=60), at=st.integers(min_value=0), flip=st.integers(1, 255))
def test_a_changed_byte_of_the_body_is_refused(one: Credential, body: bytes, at: int, flip: int) -> None:
    request = signed(one, body)
    changed = bytearray(body)
    changed[at % len(body)] ^= flip
    assert refused(replace(request, body=bytes(changed)), one) == "The signature does not match."
    refused(replace(request, body=body + b" "), one)
    refused(replace(request, body=body[:-1]), one)


@schemes()
@few
@given(data=st.data())
def test_a_changed_character_of_any_signed_header_is_refused(one: Credential, data: st.DataObject) -> None:
    request = signed(one, b'{"a":1}')
    mine = {name for name in request.headers if name not in IDS}
    mine |= {part.partition(":")[2] for part in one.scheme.parts if part.startswith("header:")}
    name = data.draw(st.sampled_from(sorted(mine)))
    value = request.headers[name]
    at = data.draw(st.integers(0, len(value) - 1))
    letter = data.draw(st.characters(min_codepoint=33, max_codepoint=255))
    changed = value[:at] + letter + value[at + 1 :]
    same = value.lower() == changed.lower() and (one.scheme.encoding is Encoding.HEX or one.scheme.any_case)
    if changed != value and not same:
        refused(replace(request, headers={**request.headers, name: changed}), one)


@schemes(lambda scheme: {"url", "decoded_url"} & set(scheme.parts))
def test_a_changed_url_or_method_is_refused_where_they_are_signed(one: Credential) -> None:
    request = signed(one, b"{}")
    for url in (URL + "/", URL + "?", URL.replace("https", "http"), URL.upper(), URL[:-1]):
        refused(replace(request, url=url), one)
    refused(replace(request, method="PUT"), one)
    assert signing.verify(replace(request, method="post"), [one], NOW).index == 0


@schemes(has_stamp)
def test_a_stale_or_premature_request_is_refused(one: Credential) -> None:
    request = signed(one, b"{}")
    assert "too long ago" in refused(request, one, NOW + timedelta(seconds=301))
    assert "in the future" in refused(request, one, NOW - timedelta(seconds=301))


@schemes(has_stamp)
@pytest.mark.parametrize(
    "timestamp",
    [
        "", "NaN", "1", "-1790000001", "+1790000001", " 1790000001", "1790000001.0", "1790000001 ",
        "17900000010", "1790000001,1790000001", "\u0661\u0667\u0669\u0660\u0660\u0660\u0660\u0660\u0660\u0661",
        "9" * 5000, "1e9", "0x6ab13b81", "2026-09-21T14:13:21", "2026-13-21T14:13:21Z", "1790000001\n",
        "0000-00-00T00:00:00Z", "9999-12-31T23:59:59-23:59",
    ],
)  # fmt: skip
def test_a_time_that_is_not_written_as_it_should_be_is_refused(one: Credential, timestamp: str) -> None:
    assert one.scheme.stamp is not None
    request = signed(one, b"{}")
    name = one.scheme.stamp.header or one.scheme.header
    value = timestamp if one.scheme.stamp.header else f"t={timestamp},v1={'0' * 64}"
    refused(replace(request, headers={**request.headers, name: value}), one)
    gone = {key: old for key, old in request.headers.items() if key != name}
    assert "missing" in refused(replace(request, headers=gone), one)


@schemes(lambda scheme: scheme.between != ",")
def test_a_header_that_came_twice_is_refused(one: Credential) -> None:
    request = signed(one, b"{}")
    value = request.headers[one.scheme.header]
    refused(replace(request, headers={**request.headers, one.scheme.header: f"{value},{value}"}), one)


@schemes(lambda scheme: scheme.between)
def test_a_flood_of_signatures_is_refused(one: Credential) -> None:
    request = signed(one, b"{}")
    flood = one.scheme.between.join([request.headers[one.scheme.header]] * 1000)
    assert "more than" in refused(replace(request, headers={**request.headers, one.scheme.header: flood}), one)


garbage = st.one_of(
    st.text(max_size=80),
    st.sampled_from(
        ["v1,", "v1a,", "v1a,AAAA", "v1=", "t=,v1=", "Basic ", "Basic !", "sha256=", "sha256=ä", "\ud800"]
    ),
    st.sampled_from(["A" * 100_000, "v1," + "=" * 50_000, " " * 40, "v1a," + "A" * 86 + "=="]),
)


@schemes()
@few
@given(data=st.data())
def test_garbage_is_refused_and_nothing_else_happens(one: Credential, data: st.DataObject) -> None:
    names = sorted(
        {one.scheme.header, *(["x-at"] if one.scheme.stamp is None else [one.scheme.stamp.header]), *IDS}
    )
    headers = data.draw(st.fixed_dictionaries({}, optional={name: garbage for name in names if name}))
    url = data.draw(st.one_of(st.just(URL), st.text(max_size=20)))
    base = signed(one, b"{}").headers if data.draw(st.booleans()) else {}
    if not headers.keys() & {one.scheme.header}:
        headers[one.scheme.header] = "?"
    refused(InboundRequest("PO\ud800ST", url, {**base, **headers}, b"\xff\x00"), one)
