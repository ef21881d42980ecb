"""Configuration: what it becomes, and that every mistake in it is told at once, with its line and a way out."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from bridge import declared
from bridge.config import Config, Environment, find, load
from bridge.config.lines import line_of, lines
from bridge.config.model import BridgeSettings, FieldSettings, RouteSettings, SourceHabits, TargetLimits
from bridge.config.schema import as_text, json_schema
from bridge.errors import ConfigError, Problem
from bridge.expressions import CONTACT_FILTERS, Expression
from bridge.model import Mode, Secret
from bridge.rules import Empty, OnDelete
from bridge.sources import SOURCES
from bridge.sources.base import Source, SourceType
from bridge.targets import TARGETS
from bridge.targets.base import FieldKind, Target, TargetField, TargetType

DOCS = Path(__file__).parent.parent / "docs"
ENVIRON = {
    "PUBLIC_URL": "https://bridge.example.com/",
    "CRM_SECRET": "a-good-long-secret",
    "SMS_KEY": "key-of-the-platform",
}

# --- small types to read files with ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Login:
    user: str
    password: Secret


@dataclass(frozen=True, slots=True)
class CrmSettings:
    secrets: tuple[Secret, ...]
    token: Secret | None = None
    logins: tuple[Login, ...] = ()
    account: int | str | None = None
    tolerance_s: int = 300
    api_base: str = "https://api.crm.example"


class Crm:
    """As much of a source as a configuration needs."""

    def __init__(self, name: str, settings: CrmSettings) -> None:
        self.name, self.settings = name, settings
        if settings.tolerance_s > 900:
            raise ValueError("tolerance_s: up to 900")

    def can_read(self) -> bool:
        return self.settings.token is not None

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"reading a configuration uses no source ({name})")


@dataclass(frozen=True, slots=True)
class SmsSettings:
    key: Secret
    api_base: str = "https://api.sms.example"
    mode: Mode = Mode.ALWAYS

    def __post_init__(self) -> None:
        if self.mode is Mode.CREATE_ONLY:
            raise ValueError("mode is not for this platform")


class Sms:
    """As much of a target as a configuration needs."""

    def __init__(self, settings: SmsSettings) -> None:
        self.settings = settings

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"reading a configuration uses no target ({name})")


def make_crm(name: str, settings: Any) -> Source:
    return Crm(name, settings)


def make_sms(settings: Any) -> Target:
    return Sms(settings)


KNOWN = ("phone", "firstname", "stage", "optout", "tier")
CRM = SourceType(
    name="crm",
    title="Crm",
    settings=CrmSettings,
    make=make_crm,
    kept_headers=(),
    read_base_url=lambda settings: str(settings.api_base),
    known_field=lambda name: name in KNOWN,
    known_fields=KNOWN,
)
SMS = TargetType(
    name="sms",
    title="Sms",
    settings=SmsSettings,
    fields=(
        TargetField("mobile", FieldKind.PHONE, clearable=False),
        TargetField("name"),
        TargetField("attributes.*", FieldKind.ANY),
    ),
    identities=(("mobile",),),
    lanes=2,
    rate_per_s=5,
    burst=3,
    make=make_sms,
    base_url=lambda settings: str(settings.api_base),
    can_remove=False,
)
GOOD = """\
[bridge]
public_url = "$PUBLIC_URL"
default_region = "US"

[sources.hub]
type = "crm"
secrets = ["$CRM_SECRET"]
token = "${CRM_SECRET}"

[targets.text]
type = "sms"
key = "$SMS_KEY"

[[routes]]
source = "hub"
target = "text"
opt_out = "optout == 'true'"

[routes.fields]
mobile = "phone | e164"
"""


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Return a function that reads a configuration's text."""

    def from_text(text: str, environ: Mapping[str, str] = ENVIRON, **types: Any) -> Config:
        path = tmp_path / "bridge.toml"
        path.write_text(text, encoding="utf-8")
        return load(path, environ, **(types or {"sources": {"crm": CRM}, "targets": {"sms": SMS}}))

    return from_text


def problems(read: Any, text: str, environ: Mapping[str, str] = ENVIRON, **types: Any) -> list[str]:
    """Return the problems of *text* as ``line: key: what | fix``."""
    with pytest.raises(ConfigError) as caught:
        read(text, environ, **types)
    return shown(caught.value.problems)


def shown(found: tuple[Problem, ...]) -> list[str]:
    assert all("\n" not in f"{one.what}{one.fix}" for one in found)
    return [
        re.sub(r"^.*bridge\.toml:?", "", one.where) + f": {one.what}" + (f" | {one.fix}" if one.fix else "")
        for one in found
    ]


# --- what it becomes ---------------------------------------------------------------------------------------


def test_a_configuration_becomes_connections_and_routes(read: Any) -> None:
    config: Config = read(GOOD)
    assert config.warnings == ()
    assert config.bridge == BridgeSettings("https://bridge.example.com", "US")
    source, target = config.sources["hub"], config.targets["text"]
    assert (source.name, source.type, source.settings.secrets[0].reveal()) == ("hub", CRM, "a-good-long-secret")
    assert (target.name, target.type, target.base_url) == ("text", SMS, "https://api.sms.example")
    assert (target.rate_per_s, target.burst, target.lanes) == (5, 3, 2)
    assert config.routes_of("hub") == config.routes
    assert config.routes_of("nowhere") == ()
    assert config.reads("hub") == {"phone", "optout"}


def test_a_route_has_all_that_was_said_of_it(read: Any) -> None:
    more = """
name = { value = "firstname", mode = "if_blank", empty = "clear" }
attributes.tier = "tier"
"attributes.note to self" = "'crm'"
"""
    text = GOOD.replace("opt_out", "when = \"stage == 'customer'\"\ncreate = false\nopt_out") + more
    (route,) = read(text).routes
    assert (route.source, route.target, route.type, route.region) == ("hub", "text", SMS, "US")
    assert (route.create, route.on_delete) == (False, OnDelete.KEEP)
    assert (str(route.when), str(route.opt_out)) == ("stage == 'customer'", "optout == 'true'")
    rules = {rule.target: rule for rule in route.fields}
    assert list(rules) == ["mobile", "name", "attributes.tier", "attributes.note to self"]
    assert (rules["name"].mode, rules["name"].empty) == (Mode.IF_BLANK, Empty.CLEAR)
    assert (rules["mobile"].kind, rules["attributes.tier"].kind) == (FieldKind.PHONE, FieldKind.ANY)
    assert route.reads == {"stage", "optout", "phone", "firstname", "tier"}


def test_a_target_may_be_given_other_limits(read: Any) -> None:
    target = read(GOOD.replace('"$SMS_KEY"', '"$SMS_KEY"\nrate_per_s = 0.5\nburst = 1\nlanes = 4')).targets["text"]
    assert (target.rate_per_s, target.burst, target.lanes) == (0.5, 1, 4)


def test_variables_stand_anywhere_in_a_text(read: Any) -> None:
    environ = {**ENVIRON, "HOST": "api.proxy.example", "DAYS": "30"}
    text = GOOD.replace("\n\n[sources", '\nretention_days = "$DAYS"\n\n[sources', 1).replace(
        'key = "$SMS_KEY"', 'key = "a$$b-${SMS_KEY}-$5"\napi_base = "https://${HOST}/v1"'
    )
    config = read(text, environ)
    assert config.bridge.retention_days == 30
    assert config.targets["text"].settings.key.reveal() == "a$b-key-of-the-platform-$5"
    assert config.targets["text"].base_url == "https://api.proxy.example/v1"


def test_secrets_may_stand_in_files(read: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from-a-file\n", encoding="utf-8")
    config = read(GOOD.replace("$SMS_KEY", "file:$DIR/secret"), {**ENVIRON, "DIR": str(tmp_path)})
    assert config.targets["text"].settings.key.reveal() == "from-a-file"
    assert "ends with a line end" in shown(config.warnings)[0]


def test_secrets_do_not_print(read: Any) -> None:
    assert "a-good-long-secret" not in repr(read(GOOD))


def test_the_public_url_has_a_default(read: Any) -> None:
    text = GOOD.replace('public_url = "$PUBLIC_URL"\n', "")
    assert read(text).bridge.public_url == "https://bridge.example.com"
    config = read(text, {"CRM_SECRET": "x", "SMS_KEY": "y", "PORT": "9000"})
    assert config.bridge.public_url == "http://127.0.0.1:9000"
    assert "which no CRM can call" in shown(config.warnings)[0]


# --- what is wrong with it ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"$SMS_KEY"', '"$SMS_KEYS"', "12: targets.text.key: the environment variable SMS_KEYS is not set | "
         "did you mean 'SMS_KEY'?"),
        ('"$SMS_KEY"', '"${GONE}"', "12: targets.text.key: the environment variable GONE is not set | "
         "set it, or write $$GONE if a dollar sign is meant"),
        ('"$SMS_KEY"', '"$EMPTY"', "12: targets.text.key: the secret is empty: the environment variable EMPTY "
         "holds nothing | set it to the secret"),
        ('"$SMS_KEY"', '""', "12: targets.text.key: the secret is empty"),
        ('"$SMS_KEY"', '"file:/nowhere"', "12: targets.text.key: the file /nowhere cannot be read: "
         "No such file or directory"),
        ('"$SMS_KEY"', "5", "12: targets.text.key: a text is wanted here, found a number | put it into quotes"),
        ('key = "$SMS_KEY"', "", "10: targets.text.key: this key is missing"),
        ('key = "$SMS_KEY"', 'key = "$SMS_KEY"\napi_bse = "x"', "13: targets.text.api_bse: unknown key | "
         "did you mean 'api_base'?"),
        ('key = "$SMS_KEY"', 'key = "$SMS_KEY"\nlane = 3', "13: targets.text.lane: unknown key | "
         "did you mean 'lanes'?"),
        ('key = "$SMS_KEY"', 'key = "$SMS_KEY"\nlanes = true', "13: targets.text.lanes: a number is wanted here, "
         "found true or false"),
        ('["$CRM_SECRET"]', '"$CRM_SECRET"', "7: sources.hub.secrets: a list is wanted here, found a text | "
         "put it into brackets: [...]"),
        ('["$CRM_SECRET"]', '["$CRM_SECRET", ""]', "7: sources.hub.secrets[2]: the secret is empty"),
        ('"crm"', '"crn"', "6: sources.hub.type: there is no type 'crn' | did you mean 'crm'?"),
        ('type = "crm"', "", "5: sources.hub: the key 'type' is missing | there is crm"),
        ('type = "crm"', 'type = "crm"\ntolerance_s = 901', "7: sources.hub.tolerance_s: up to 900"),
        ('type = "crm"', 'type = "crm"\ntolerance_s = 1.5', "7: sources.hub.tolerance_s: a whole number is "
         "wanted here, found a number"),
        ('type = "crm"', 'type = "crm"\naccount = []', "7: sources.hub.account: a whole number is wanted here, "
         "found a list"),
        ('type = "crm"', 'type = "crm"\nlogins = [{ user = "u", pasword = "$SMS_KEY" }]',
         "7: sources.hub.logins[1].pasword: unknown key | did you mean 'password'?"),
        ('type = "sms"', 'type = "sms"\nmode = "allways"', "12: targets.text.mode: unknown value | it is "
         "'always', 'if_blank' or 'create_only'"),
        ('type = "sms"', 'type = "sms"\nmode = "create_only"', "12: targets.text.mode: is not for this platform"),
        ('type = "sms"', 'type = "sms"\nlanes = 0', "12: targets.text.lanes: from 1 to 64"),
        ('type = "sms"', 'type = "sms"\napi_base = "http://api.sms.example"', "12: targets.text.api_base: "
         "the URL begins with http://, so anybody on the way could read it | write https://"),
        ('type = "sms"', 'type = "sms"\napi_base = "https://u:p@api.sms.example"', "12: targets.text.api_base: "
         "the URL has a user, a query or a fragment | leave nothing but host and path"),
        ('type = "sms"', 'type = "sms"\napi_base = "api.sms.example"', "12: targets.text.api_base: "
         "this is no URL such as https://api.example.com"),
        ('type = "crm"', 'type = "crm"\napi_base = "http://[::"', "7: sources.hub.api_base: "
         "this is no URL such as https://api.example.com"),
        ('"$PUBLIC_URL"', '"http://bridge.example.com"', "2: bridge.public_url: the URL begins with http://, "
         "so anybody on the way could read it | write https://"),
        ('"$PUBLIC_URL"', '"https://bridge.example.com/hooks/"', "2: bridge.public_url: the URL ends with /hooks, "
         "which bridge adds | leave it out"),
        ('"US"', '"UK"', "3: bridge.default_region: 'UK' is no region of phone numbers | did you mean 'GB'?"),
        ('"US"', '"America"', "3: bridge.default_region: 'America' is no region of phone numbers | "
         "two capital letters such as 'US' or 'GB'"),
        ('"US"', '"US"\nretention_days = 0', "4: bridge.retention_days: from 1 to 3650"),
        ('"US"', '"US"\nretention_days = true', "4: bridge.retention_days: a number is wanted here, "
         "found true or false"),
        ("[sources.hub]", "[sources.Hub]", "5: sources.Hub: a name is made of a-z, 0-9, _ and - | "
         "call it 'hub'"),
        ("[bridge]", "[bridges]", "1: bridges: unknown key | did you mean 'bridge'?"),
        ('source = "hub"', 'source = "hubb"', "15: routes[1].source: there is no source named 'hubb' | "
         "did you mean 'hub'?"),
        ('target = "text"', 'target = "fax"', "16: routes[1].target: there is no target named 'fax' | "
         "add a section [targets.fax]"),
        ('"phone | e164"', '"phone | e146"', "20: routes[1].fields.mobile: there is no filter named 'e146' | "
         "did you mean 'e164'?"),
        ('"phone | e164"', '"phone |"', "20: routes[1].fields.mobile: unexpected end of the expression, "
         "expected 'name'"),
        ('"phone | e164"', '"fone"', "20: routes[1].fields.mobile: Crm has no field 'fone' | "
         "did you mean 'phone'?"),
        ("\"optout == 'true'\"", '"optout = 1"', "17: routes[1].opt_out: unexpected '=' after the end of the "
         "expression | write '==' for '='"),
        ("mobile = ", "mobil = ", "20: routes[1].fields.mobil: Sms has no field 'mobil' | did you mean 'mobile'?"),
        ("mobile = ", "name = ", "19: routes[1].fields: no rule gives what Sms tells contacts apart by | "
         "add a rule for mobile"),
        ('"phone | e164"', '{ value = "phone", empty = "clear" }', "20: routes[1].fields.mobile: "
         'Sms has no sure way to clear mobile | leave empty = "clear" out'),
        ('"phone | e164"', '{ value = "phone", empty = "clera" }', "20: routes[1].fields.mobile.empty: "
         "unknown value | it is 'leave' or 'clear'"),
        ('"phone | e164"', '{ mode = "always" }', "20: routes[1].fields.mobile.value: this key is missing"),
        ('"phone | e164"', "5", "20: routes[1].fields.mobile: an expression is wanted here, found a number | "
         "put it into quotes"),
        ("opt_out =", 'on_delete = "remove"\nopt_out =', "17: routes[1].on_delete: Sms has no way to remove a "
         'contact | write on_delete = "keep"'),
        ("[[routes]]", "[routes]", "14: routes: this is a table, where a list is wanted | write [[routes]]"),
        ("[sources.hub]", "[sources]\nhub = 5\n[sources.huh]", "6: sources.hub: this is a number, where a table "
         "is wanted | write [sources.hub]"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line_and_a_way_out(read: Any, old: str, new: str, told: str) -> None:
    assert old in GOOD
    assert told in problems(read, GOOD.replace(old, new, 1), {**ENVIRON, "EMPTY": ""})


def test_a_field_of_a_prefix_needs_a_name_behind_it(read: Any) -> None:
    for name in ("attributes", '"attributes."', '"attributes.*"'):
        found = (
            "Sms has no field" in "".join(problems(read, f'{GOOD}{name} = "tier"\n')) if "*" not in name else True
        )
        assert found


def test_every_mistake_is_told_at_once_in_the_order_of_the_file(read: Any) -> None:
    text = """\
[bridge]
public_url = "$PUBLIC_URL"
retention_days = "long"
[sources.hub]
type = "crm"
secrets = ["$CRM_SECRET"]
tokn = "x"
[targets.text]
type = "sms"
[[routes]]
source = "hub"
target = "text"
when = "a &&"
creat = true
[routes.fields]
mobile = "fone"
nam = "tier |"
[[routes]]
source = "hub"
target = "text"
fields = { mobile = "phone" }
"""
    found = problems(read, text)
    assert [one.split(":")[0] for one in found] == ["3", "7", "8", "13", "14", "16", "17", "17", "18"]
    assert found[-1] == "18: routes[2]: a second route from hub to text | join it with that of line 10"


def test_what_is_not_toml_is_told_with_its_line(read: Any) -> None:
    (told,) = problems(read, "[bridge]\npublic_url = http://x\n")
    assert told.startswith("2: this is not TOML: ")
    assert told.endswith("a text stands in quotes")
    assert problems(read, "x = " + "[" * 5000)[0].startswith(": this is not TOML: ")


def test_a_file_that_is_no_text_or_not_there_is_told(tmp_path: Path) -> None:
    path = tmp_path / "bridge.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="it is not UTF-8 text"):
        load(path, {})
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.toml", {})


def test_no_problem_repeats_what_may_be_a_secret(read: Any) -> None:
    wrong = [
        GOOD.replace('["$CRM_SECRET"]', '"sk-live-1234"'),
        GOOD.replace('["$CRM_SECRET"]', '[["sk-live-1234"]]'),
        GOOD.replace('"US"', '"US"\nretention_days = "sk-live-1234"'),
        GOOD.replace('type = "sms"', 'type = "sms"\nmode = "sk-live-1234"'),
        GOOD.replace('type = "sms"', 'type = "sms"\napi_base = "sk-live-1234"'),
    ]
    for text in wrong:
        assert "sk-live-1234" not in "".join(problems(read, text))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('type = "crm"', 'type = "$LEAK"'),
        ('type = "sms"', 'type = "$LEAK"'),
        ('source = "hub"', 'source = "$LEAK"'),
        ('target = "text"', 'target = "${LEAK}"'),
        ('"US"', '"$LEAK"'),
        ("optout == 'true'", "$LEAK == 'true'"),
        ("optout == 'true'", "$LEAK (("),
    ],
)
def test_no_problem_repeats_what_came_from_the_environment(read: Any, old: str, new: str) -> None:
    assert old in GOOD
    told = problems(read, GOOD.replace(old, new), {**ENVIRON, "LEAK": "S3CRETvalue"})
    assert "s3cret" not in "".join(told).lower()


# --- what is allowed but probably not meant ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"$SMS_KEY"', '"literal"', "12: targets.text.key: a secret stands in this file as it is | "
         'write "$TARGETS_TEXT_KEY" and set that variable'),
        ('token = "${CRM_SECRET}"\n', "", "5: sources.hub: without a token, contacts cannot be read from Crm: "
         "bridge knows only what its webhooks carry, and fields may stay unknown | add a token"),
        ("opt_out = \"optout == 'true'\"\n", "", "14: routes[1]: the route has no opt_out rule, so Sms never "
         'learns that a person said stop | add opt_out = "…" with the CRM\'s field for it'),
        (GOOD[GOOD.index("[[routes]]"):], "", ": there are no routes, so webhooks are stored and nothing is "
         "sent | add [[routes]]"),
        ("[[routes]]", '[sources.idle]\ntype = "crm"\nsecrets = ["$CRM_SECRET"]\ntoken = "$SMS_KEY"\n[[routes]]',
         "14: sources.idle: no route begins at this source, so what it says goes nowhere"),
        ("[[routes]]", '[targets.idle]\ntype = "sms"\nkey = "$SMS_KEY"\n[[routes]]',
         "14: targets.idle: no route ends at this target, so nothing is sent to it"),
    ],
)  # fmt: skip
def test_what_is_probably_not_meant_is_a_warning(read: Any, old: str, new: str, told: str) -> None:
    assert old in GOOD
    assert shown(read(GOOD.replace(old, new, 1)).warnings) == [told]


def test_a_platform_that_cannot_be_told_of_an_opt_out_is_a_warning(read: Any) -> None:
    environ = {**ENVIRON, "KEY": "x"}
    text = GOOD.replace('type = "sms"\nkey = "$SMS_KEY"', 'type = "clerk_chat"\napi_key = "$KEY"')
    config = read(text.replace("mobile =", "phone ="), environ, sources={"crm": CRM}, targets=TARGETS)
    assert "Clerk Chat has no way to be told of an opt-out" in shown(config.warnings)[0]


def test_all_ranges_of_a_section_are_told_at_once(read: Any) -> None:
    text = GOOD.replace('"US"', '"US"\nretention_days = 0\nsettle_s = -1')
    with pytest.raises(ConfigError) as refused:
        read(text, ENVIRON, sources={"crm": CRM}, targets={"sms": SMS})
    assert [problem.what for problem in refused.value.problems] == ["from 1 to 3650", "from 0 to 3600"]


def test_a_wrong_type_hides_no_range_of_its_section(read: Any) -> None:
    text = GOOD.replace('"US"', '"US"\nretention_days = "long"\nsettle_s = -1')
    text = text.replace('type = "sms"', 'type = "sms"\nrate_per_s = "fast"\nburst = 0\nmode = "create_only"')
    found = problems(read, text.replace('key = "$SMS_KEY"', "key = 5"))
    assert [one.split(": ", 1)[1] for one in found] == [
        "bridge.retention_days: a whole number is wanted here, found a text",
        "bridge.settle_s: from 0 to 3600",
        "targets.text.rate_per_s: a number is wanted here, found a text",
        "targets.text.burst: from 1 to 1000",
        "targets.text.mode: is not for this platform",
        "targets.text.key: a text is wanted here, found a number | put it into quotes",
    ]


@pytest.mark.parametrize("secrets", ['secrets = ["$NOBODY_SET_IT"]', 'secrets = ["$EMPTY"]', "secrets = 5", ""])
@pytest.mark.parametrize("type_", ['"standard_webhooks"', '"hmac"\nsignature = { headr = "X-Signature" }'])
def test_a_bad_secret_hides_no_expression_of_its_source(read: Any, secrets: str, type_: str) -> None:
    text = (
        GOOD[: GOOD.index("[sources.hub]")]
        + f"""\
[sources.hub]
type = {type_}
{secrets}
[sources.hub.payload]
id = "item.data."
kind = "events.type"
"""
    )
    with pytest.raises(ConfigError) as refused:
        read(text, {**ENVIRON, "EMPTY": ""}, sources=SOURCES, targets=TARGETS)
    about = [problem.where.split(": ")[-1] for problem in refused.value.problems]
    assert about[-2:] == ["sources.hub.payload.id", "sources.hub.payload.kind"]
    assert len([one for one in about if "secrets" in one]) == 1
    assert len([one for one in about if "signature" in one]) == 2 * ("hmac" in type_)  # unknown, and missing


def test_every_bad_secret_of_a_source_is_told(read: Any) -> None:
    text = GOOD.replace('type = "crm"', 'type = "standard_webhooks"').replace('token = "${CRM_SECRET}"\n', "")
    text = text.replace('["$CRM_SECRET"]', '["$FIRST", "$SECOND"]')
    with pytest.raises(ConfigError) as refused:
        read(
            text,
            {**ENVIRON, "FIRST": "whxx_abc", "SECOND": "whpk_c2hvcnQ="},
            sources=SOURCES,
            targets={"sms": SMS},
        )
    assert len(refused.value.problems) == 2


def test_a_scheme_that_tells_no_repeats_is_a_warning(read: Any) -> None:
    text = GOOD.replace('type = "crm"', 'type = "hmac"\nsignature = { header = "X-Signature" }')
    text = text.replace('token = "${CRM_SECRET}"\n', "")
    config = read(text, ENVIRON, sources=SOURCES, targets={"sms": SMS})
    assert "tells a repeated request from a new one" in shown(config.warnings)[0]


@pytest.mark.parametrize(
    ("id_", "named"),
    [
        ("item.data.email", "email"),
        ("item['workEmail'] | lower", "workEmail"),
        ("body.Phone_Number", "Phone_Number"),
        ("item.mobile", "mobile"),
        ("item.data.id", ""),
        ("item.contact.number", ""),
    ],
)
def test_an_id_that_is_personal_is_a_warning(read: Any, id_: str, named: str) -> None:
    secret = 'signature = { header = "X-Signature" }'
    text = GOOD.replace('type = "crm"', f'type = "hmac"\n{secret}\npayload.id = "{id_}"')
    config = read(text.replace('token = "${CRM_SECRET}"\n', ""), ENVIRON, sources=SOURCES, targets={"sms": SMS})
    told = [line for line in shown(config.warnings) if "personal" in line]
    assert len(told) == bool(named)
    assert all(f"'{named}'" in line and "the sender's own number" in line for line in told)


# --- the real types ----------------------------------------------------------------------------------------

REAL = {
    "PUBLIC_URL": "https://bridge.example.com",
    "HUBSPOT_CLIENT_SECRET": "yyyyyyyy-yyyy-yyyy-yyyy-yyyyyyyyyyyy",
    "HUBSPOT_TOKEN": "pat-1",
    "SHOP_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "LEGACY_SECRET": "a-good-long-secret",
    "ACTIVECAMPAIGN_URL": "https://acme.api-us1.com",
    "ACTIVECAMPAIGN_KEY": "key",
    "SAKARI_ACCOUNT": "account",
    "SAKARI_CLIENT_ID": "id",
    "SAKARI_CLIENT_SECRET": "secret",
    "CLERK_CHAT_KEY": "key",
    "ARTU_KEY": "key",
}


def example() -> str:
    return (resources.files("bridge") / "bridge.example.toml").read_text(encoding="utf-8")


def test_the_example_is_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "bridge.toml"
    path.write_text(example(), encoding="utf-8")
    config = load(path, REAL)
    assert config.warnings == ()
    assert config.reads("hubspot") >= {"mobilephone", "phone", "hs_email_optout", "lifecyclestage"}


def test_the_example_with_every_line_in_use_is_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "bridge.toml"
    path.write_text(re.sub(r"(?m)^#(?! )", "", example()), encoding="utf-8")
    config = load(path, REAL)
    assert {one.type.name for one in config.sources.values()} == {"hubspot", "standard_webhooks", "hmac"}
    assert {one.type.name for one in config.targets.values()} == set(TARGETS)
    assert {(route.source, route.target) for route in config.routes} == {
        ("hubspot", "sms"),
        ("hubspot", "marketing"),
    }


@pytest.mark.parametrize("type_", [*SOURCES.values(), *TARGETS.values()], ids=lambda type_: str(type_.name))
def test_a_section_with_nothing_in_it_is_told_what_it_needs(
    type_: SourceType | TargetType, tmp_path: Path
) -> None:
    section = "sources" if isinstance(type_, SourceType) else "targets"
    path = tmp_path / "bridge.toml"
    path.write_text(f'[bridge]\npublic_url = "https://x.example"\n[{section}.one]\ntype = "{type_.name}"\n')
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    # What is needed in place of something else is said by the type itself.
    told = {problem.what for problem in caught.value.problems}
    assert told
    assert all(what == "this key is missing" or "needed" in what for what in told)


def test_a_target_whose_webhooks_a_source_would_get_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "bridge.toml"
    path.write_text(re.sub(r"\bhubspot\]", "sms]", example()).replace('source = "hubspot"', 'source = "sms"'))
    told = [line for line in shown(load(path, REAL).warnings) if "/hooks/sms is the source's" in line]
    assert len(told) == 1


# --- where it is found -------------------------------------------------------------------------------------


def test_the_file_that_is_named_counts_then_the_environment_then_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("named.toml", "from_environment.toml", "bridge.toml"):
        (tmp_path / name).touch()
    environ = {"BRIDGE_CONFIG": "from_environment.toml"}
    assert find("named.toml", environ) == Path("named.toml")
    assert find(None, environ) == Path("from_environment.toml")
    assert find(None, {}) == Path("bridge.toml")


@pytest.mark.parametrize(
    ("named", "environ", "told"),
    [
        ("gone.toml", {}, "gone.toml: there is no such file, which --config names"),
        (None, {"BRIDGE_CONFIG": "gone.toml"}, "gone.toml: there is no such file, which BRIDGE_CONFIG names"),
        (None, {}, "bridge.toml: there is no configuration here"),
    ],
)
def test_a_file_that_is_not_there_is_told(
    named: str | None, environ: dict[str, str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(told)):
        find(named, environ)


# --- lines -------------------------------------------------------------------------------------------------

TRICKY = '''\
# [not.a.table]
[bridge]
a = 1 # [x]
b.c = """
[nothing]
k = "v" ]
"""
"q.x" = 'it'

  [sources . "hub"]
list = [ # one
  "a]", # ]
  ["b"],
  { c = 'd' },
]
inline = { x = 1, y = { z = [1, 2] } }
[[routes]]
s = 1
[routes.fields]
"a.b" = { value = "x" }
[[routes]]
when = 2020-01-01T00:00:00Z
[[routes.sub]]
k = \'\'\'x\'\'\'\'
[[routes.sub]]
k = "\\"\\\\"
last = -1.5e3'''
WHERE = {
    ("bridge",): 2, ("bridge", "a"): 3, ("bridge", "b", "c"): 4, ("bridge", "q.x"): 8, ("sources", "hub"): 10,
    ("sources", "hub", "list"): 11, ("sources", "hub", "list", 0): 12, ("sources", "hub", "list", 1, 0): 13,
    ("sources", "hub", "list", 2, "c"): 14, ("sources", "hub", "inline", "y", "z", 1): 16, ("routes", 0): 17,
    ("routes", 0, "fields", "a.b", "value"): 20, ("routes", 1, "when"): 22, ("routes", 1, "sub", 0, "k"): 24,
    ("routes", 1, "sub", 1, "last"): 27, ("routes", 1, "nothing", "there"): 21, ("nowhere",): None,
}  # fmt: skip


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_every_key_has_its_line(line_end: str) -> None:
    found = lines(TRICKY.replace("\n", line_end))
    assert {path: line_of(found, path) for path in WHERE} == WHERE


def every_path(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from every_path(part, (*path, key))


@pytest.mark.parametrize("text", [TRICKY, GOOD, example()])
def test_lines_are_known_of_all_that_is_in_a_file(text: str) -> None:
    found = lines(text)
    assert [path for path in every_path(tomllib.loads(text)) if path and path not in found] == [
        path for path in every_path(tomllib.loads(text)) if path in {("sources",), ("targets",)}
    ]


# --- the environment ---------------------------------------------------------------------------------------


def test_the_environment_has_defaults() -> None:
    environment = Environment.read({"PORT": " ", "SECRET_KEY": ""})
    assert environment == Environment()
    assert (environment.database_url, environment.port) == ("sqlite:///data/bridge.db", 8000)


def test_the_environment_is_read() -> None:
    environment = Environment.read(
        {
            "DATABASE_URL": "sqlite:////u:p/bridge.db",
            "SECRET_KEY": "s" * 32,
            "BRIDGE_API_TOKEN": "t" * 32,
            "PUBLIC_URL": "https://bridge.example.com/",
            "PORT": "80",
            "WEB_CONCURRENCY": "4",
            "LOG_LEVEL": "DEBUG",
            "LOG_FORMAT": "json",
            "PATH": "/bin",
        }
    )
    assert (environment.port, environment.web_concurrency, environment.log_level) == (80, 4, "debug")
    assert environment.public_url == "https://bridge.example.com"
    for secret in ("u:p", "s" * 32, "t" * 32):
        assert secret not in repr(environment)


def test_all_that_is_wrong_with_the_environment_is_told_at_once() -> None:
    wrong = {
        "DATABASE_URL": "mysql://x", "SECRET_KEY": "short", "BRIDGE_API_TOKEN": "short",
        "PORT": "http", "WEB_CONCURRENCY": "0", "LOG_LEVEL": "inof", "LOG_FORMAT": "xml",
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        Environment.read(wrong)
    told = {str(problem.where).removeprefix("the environment: "): problem for problem in caught.value.problems}
    assert told.keys() == wrong.keys()
    assert told["LOG_LEVEL"].fix == "did you mean 'info'?"
    assert told["PORT"].what == "a whole number from 1 to 65535 is wanted"
    assert "short" not in str(caught.value)


@pytest.mark.parametrize("port", ["-1", "65536", "8_000", "٣", "9" * 5000])
def test_a_port_is_a_port(port: str) -> None:
    with pytest.raises(ConfigError):
        Environment.read({"PORT": port})


# --- the schema and the page -------------------------------------------------------------------------------


def test_the_published_schema_is_current() -> None:
    published = (DOCS / "bridge.schema.json").read_text(encoding="utf-8")
    assert published == as_text(), "run: python -m bridge.config.schema > docs/bridge.schema.json"


def allows(schema: Any, value: Any, definitions: Any) -> bool:
    """Say whether a schema allows a value, by the few words of JSON Schema that ours uses."""
    if "$ref" in schema:
        return allows(definitions[schema["$ref"].rpartition("/")[2]], value, definitions)
    if "anyOf" in schema:
        return any(allows(one, value, definitions) for one in schema["anyOf"])
    kinds: dict[str, Any] = {
        "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
        "null": type(None),
    }  # fmt: skip
    if "type" in schema and not isinstance(value, kinds[schema["type"]]):
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, list):
        return all(allows(schema.get("items", {}), part, definitions) for part in value)
    if isinstance(value, dict):
        return _allows_object(schema, value, definitions)
    return True


def _allows_object(schema: Any, value: dict[str, Any], definitions: Any) -> bool:
    if not set(schema.get("required", ())) <= value.keys():
        return False
    for one in schema.get("allOf", ()):
        if allows(one["if"], value, definitions) and not allows(one["then"], value, definitions):
            return False
    for key, part in value.items():
        patterns = [
            found for pattern, found in schema.get("patternProperties", {}).items() if re.search(pattern, key)
        ]
        known = schema.get("properties", {}).get(key)
        chosen = known or (patterns[0] if patterns else schema.get("additionalProperties", True))
        if chosen is False or (chosen is not True and not allows(chosen, part, definitions)):
            return False
    return True


def test_the_schema_allows_what_is_right_and_not_what_is_wrong() -> None:
    schema = json_schema()
    whole = tomllib.loads(re.sub(r"(?m)^#(?! )", "", example()))
    assert allows(schema, whole, schema["$defs"])
    for path, value in [
        (("bridge", "retention_dyas"), 3),
        (("bridge", "retention_days"), "many"),
        (("sources", "hubspot", "type"), "hubsport"),
        (("sources", "hubspot", "tokn"), "x"),
        (("sources", "Hub"), {"type": "hubspot"}),
        (("targets", "register", "environment"), "life"),
        (("targets", "sms", "lanes"), []),
        (("routes", 0, "on_delete"), "forget"),
        (("routes", 0, "fields", "name"), {"value": "x", "mod": "always"}),
    ]:
        wrong: Any = json.loads(json.dumps(whole))
        inner = wrong
        for part in path[:-1]:
            inner = inner[part]
        inner[path[-1]] = value
        assert not allows(schema, wrong, schema["$defs"]), path


def keys_of(shape: type[Any]) -> Iterator[str]:
    return (key.name for key in declared.keys_of(shape))


SECTIONS: dict[str, list[str]] = {
    "bridge": list(keys_of(BridgeSettings)),
    "every source": list(keys_of(SourceHabits)),
    "every target": list(keys_of(TargetLimits)),
    "routes": [one.name for one in fields(RouteSettings)],
    "rules": [one.name for one in fields(FieldSettings)],
    "environment": [one.metadata["name"] for one in fields(Environment)] + ["BRIDGE_CONFIG"],
    **{f"source {name}": list(keys_of(one.settings)) for name, one in SOURCES.items()},
    **{f"target {name}": list(keys_of(one.settings)) for name, one in TARGETS.items()},
}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_has_a_row_in_the_documentation(section: str) -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    marked = re.search(rf"<!-- {section} -->\n((?:\|.*\n)+)", page)
    assert marked, f"docs/configuration.md has no table marked <!-- {section} -->"
    rows = re.findall(r"(?m)^\| `([^`]+)`", marked[1])
    assert rows == SECTIONS[section]


def test_the_limits_of_targets_are_documented() -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    for name, one in TARGETS.items():
        assert f"| `{name}` | {one.rate_per_s:g} | {one.burst} | {one.lanes} |" in page


def test_every_field_of_a_target_is_documented() -> None:
    page = (DOCS / "rules.md").read_text(encoding="utf-8")
    for target in TARGETS.values():
        (row,) = re.findall(rf"(?m)^\| {target.title} \|.*$", page)
        identities = {name for group in target.identities for name in group}
        for known in target.fields:
            name = known.name.removesuffix("*").removesuffix(".label") + ("" if known.name[-1] != "*" else "<")
            assert f"**`{name}`**" in row if known.name in identities else f"`{name}" in row


def test_every_filter_of_ours_is_documented() -> None:
    page = (DOCS / "rules.md").read_text(encoding="utf-8")
    assert set(re.findall(r"(?m)^\| `(\w+)(?:\(.*?\))?` \| .* \| .* \|$", page)) >= CONTACT_FILTERS.keys()


@pytest.mark.parametrize("page", ["rules.md", "configuration.md"])
def test_the_examples_of_the_documentation_compile(page: str) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    routes = [tomllib.loads(block)["routes"] for block in blocks]
    assert routes
    for found in routes:
        one = found[0] if isinstance(found, list) else found
        rules = [rule["value"] if isinstance(rule, dict) else rule for rule in one["fields"].values()]
        for text in (*rules, one.get("when", "true"), one.get("opt_out", "false")):
            assert Expression.compile(text).text == text
