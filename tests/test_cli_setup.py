"""Setting bridge up: `bridge init` for every CRM and platform, and what `bridge check --live` finds."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bridge.cli import main, setup
from bridge.cli.starter import Chosen, rules_for, start
from bridge.config import load
from bridge.config.model import BridgeSettings
from bridge.demo.fakes.activecampaign import API_KEY as ACTIVECAMPAIGN_KEY
from bridge.demo.fakes.hubspot import HubSpot
from bridge.sources import SOURCES
from bridge.targets import TARGETS
from tests.platforms import Platforms, serve_platforms

PUBLIC_URL = "https://bridge.example.com"
# What a variable of .env may hold, by the end of its name; most take anything.
FITTING = {
    "STANDARD_WEBHOOKS_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "ACTIVECAMPAIGN_URL": "https://a.api-us1.com",
    "CLOSE_SIGNATURE_KEY": "058bfb6a3d8cfdc4da7c3be5901b16ae",
    "SALESFORCE_ORGANIZATION_ID": "00D1I000003qqqEUAQ",
}


def bridge(*arguments: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="bridge", input=typed)


def filled_in(folder: Path) -> dict[str, str]:
    """Return the variables of the written .env, with something in each."""
    lines = [line for line in (folder / ".env").read_text().splitlines() if re.match(r"[A-Z]", line)]
    written = dict(line.split("=", 1) for line in lines)
    return {name: value or FITTING.get(name, f"a-value-for-{name}") for name, value in written.items()}


# --- init ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_init_writes_what_needs_only_its_variables(source: str, target: str, tmp_path: Path) -> None:
    result = bridge("init", str(tmp_path), "--source", source, "--target", target, "--public-url", PUBLIC_URL)
    assert result.exit_code == 0, result.output
    assert f"Let {source} call {PUBLIC_URL}/hooks/{source}\n" in result.output
    config = load(tmp_path / "bridge.toml", filled_in(tmp_path))
    assert config.bridge.public_url == PUBLIC_URL
    assert (list(config.sources), list(config.targets)) == ([source], [target])
    (route,) = config.routes
    assert {rule.target for rule in route.fields} == set(rules_for(SOURCES[source], TARGETS[target]))
    assert not [one for one in config.warnings if "secret stands in this file" in one.what]


@pytest.mark.parametrize("source", SOURCES)
def test_every_setting_is_in_the_file_and_can_be_taken_up(source: str) -> None:
    made = start([Chosen("crm", SOURCES[source])], [Chosen(name, one) for name, one in TARGETS.items()])
    document = tomllib.loads(re.sub(r"^#(?! |$)", "", made.toml, flags=re.MULTILINE))
    assert set(document["bridge"]) == {one.name for one in fields(BridgeSettings)}
    shapes = {("sources", "crm"): SOURCES[source].settings}
    shapes |= {("targets", name): one.settings for name, one in TARGETS.items()}
    for (section, name), shape in shapes.items():
        assert set(document[section][name]) == {"type", *(one.name for one in fields(shape))}
    for route in document["routes"]:
        assert set(route) >= {"source", "target", "when", "create", "opt_out", "fields"}


def test_init_asks_at_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "_asks", lambda: True)
    sources, targets = list(SOURCES), list(TARGETS)
    typed = f"99\nhubspott\n1, pipedrive\n\n{targets.index('sakari') + 1} artu\nhttp://bridge.example.com\n{PUBLIC_URL}/\n"
    result = bridge("init", str(tmp_path), typed=typed)
    assert result.exit_code == 0, result.output
    for title in (*(one.title for one in SOURCES.values()), *(one.title for one in TARGETS.values())):
        assert title in result.output
    assert "there is no 'hubspott'; did you mean 'hubspot'?" in result.output
    assert "there is no '99'" in result.output
    assert "begins with http://" in result.output
    config = load(tmp_path / "bridge.toml", filled_in(tmp_path))
    assert list(config.sources) == [sources[0], "pipedrive"]
    assert list(config.targets) == ["sakari", "artu"]
    assert len(config.routes) == 4


def test_connections_can_be_named(tmp_path: Path) -> None:
    chosen = ("--source", "shop=hmac", "--source", "till=hmac", "--target", "sms=sakari")
    assert bridge("init", str(tmp_path), *chosen).exit_code == 0
    env = filled_in(tmp_path)
    assert {"SHOP_SECRET", "TILL_SECRET", "SMS_ACCOUNT"} <= set(env)
    config = load(tmp_path / "bridge.toml", {**env, "PUBLIC_URL": PUBLIC_URL})
    assert [(route.source, route.target) for route in config.routes] == [("shop", "sms"), ("till", "sms")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--source", "hubspot"], "both --source and --target"),
        (["--source", "hubspt", "--target", "sakari"], "did you mean 'hubspot'?"),
        (["--source", "My CRM=hubspot", "--target", "sakari"], "call it 'my-crm'"),
        (["--source", "hmac", "--source", "hmac", "--target", "sakari"], "two named 'hmac'"),
        (["--source", "hmac", "--target", "sakari", "--public-url", "bridge"], "no URL"),
    ],
)
def test_a_wrong_choice_writes_nothing(arguments: list[str], said: str, tmp_path: Path) -> None:
    result = bridge("init", str(tmp_path / "new"), *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "new").exists()


# --- check --live -------------------------------------------------------------------------------------------

TOML = """
[bridge]
public_url = "https://bridge.example.com"

[sources.crm]
type = "hubspot"
secrets = ["$CRM_SECRET"]
token = "$CRM_TOKEN"
api_base = "{crm}"

[sources.shop]
type = "standard_webhooks"
secrets = ["$SHOP_SECRET"]

[targets.marketing]
type = "activecampaign"
base_url = "{marketing}"
api_key = "$MARKETING_KEY"

[targets.sms]
type = "sakari"
account_id = "$SMS_ACCOUNT"
client_id = "$SMS_ID"
client_secret = "$SMS_SECRET"
api_base = "{sms}"

[targets.inbox]
type = "clerk_chat"
api_key = "$INBOX_KEY"
api_base = "{inbox}"

[targets.register]
type = "artu"
api_key = "${{REGISTER_KEY}}"
environment = "test"
api_base = "{register}"
"""


@pytest.fixture(scope="module")
def platforms() -> Iterator[Platforms]:
    with serve_platforms() as running:
        yield running


@pytest.fixture(scope="module")
def crm() -> Iterator[tuple[HubSpot, str]]:
    fake = HubSpot()
    with fake.serve() as url:
        yield fake, url


@pytest.fixture
def environ(
    platforms: Platforms, crm: tuple[HubSpot, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """Have a configuration of everything here, and return the variables that are right for it."""
    fake, url = crm
    (tmp_path / "bridge.toml").write_text(TOML.format(crm=url, **platforms.urls))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BRIDGE_CONFIG", raising=False)
    right = {
        "CRM_SECRET": "a-client-secret",
        "CRM_TOKEN": fake.bearer,
        "SHOP_SECRET": FITTING["STANDARD_WEBHOOKS_SECRET"],
        "MARKETING_KEY": ACTIVECAMPAIGN_KEY,
        "SMS_ACCOUNT": platforms.sms.account,
        "SMS_ID": platforms.sms.client_id,
        "SMS_SECRET": platforms.sms.client_secret,
        "INBOX_KEY": platforms.inbox.key,
        "REGISTER_KEY": platforms.register.key,
    }
    for name, value in right.items():
        monkeypatch.setenv(name, value)
    return right


def test_check_live_tries_every_credential(environ: dict[str, str]) -> None:
    result = bridge("check", "--live")
    assert result.exit_code == 0, result.output
    names = ("targets.marketing", "targets.sms", "targets.inbox", "targets.register", "sources.crm")
    assert re.findall(r"^(ok|FAILED) +(\S+):", result.stdout, re.MULTILINE) == [("ok", name) for name in names]
    assert "sources.shop: nothing to call" in result.stdout


@pytest.mark.parametrize(
    ("wrong", "connection", "named"),
    [
        ("CRM_TOKEN", "sources.crm", ["CRM_TOKEN"]),
        ("MARKETING_KEY", "targets.marketing", ["MARKETING_KEY"]),
        ("SMS_ACCOUNT", "targets.sms", ["SMS_ACCOUNT", "SMS_ID", "SMS_SECRET"]),
        ("SMS_SECRET", "targets.sms", ["SMS_ACCOUNT", "SMS_ID", "SMS_SECRET"]),
        ("INBOX_KEY", "targets.inbox", ["INBOX_KEY"]),
        ("REGISTER_KEY", "targets.register", ["REGISTER_KEY"]),
    ],
)
def test_check_live_names_the_variable_that_is_wrong(
    wrong: str, connection: str, named: list[str], environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(wrong, "not-the-right-one")
    result = bridge("check", "--live")
    assert result.exit_code == 1
    (failed,) = re.findall(
        r"^FAILED +(\S+): .*\n +fix: look at (.*) in the environment; docs/(\S+)", result.stdout, re.MULTILINE
    )
    assert failed[:2] == (connection, ", ".join(named))
    assert (Path(__file__).parents[1] / "docs" / failed[2]).is_file()
    assert not [name for name, value in environ.items() if "ACCOUNT" not in name and value in result.output]


def test_check_live_asks_a_server_that_has_the_database(
    environ: dict[str, str], postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    result = bridge("check", "--live")
    assert result.exit_code == 1
    assert (
        "FAILED  database: The database is not up to date (it lacks 0001_first, 0002_catching_up). "
        "Run: bridge migrate" in result.stdout
    )
    assert bridge("migrate").exit_code == 0
    result = bridge("check", "--live")
    assert result.exit_code == 0, result.output
    assert "answers, and is up to date." in result.stdout
    wrong = postgres_url.rpartition("/")[0].replace("postgres@", "postgres:a-password@") + "/nowhere"
    monkeypatch.setenv("DATABASE_URL", wrong)
    result = bridge("check", "--live")
    assert result.exit_code == 1
    assert "look at DATABASE_URL in the environment" in result.stdout
    assert "a-password" not in result.output


def test_check_live_tells_a_missing_scope_from_a_wrong_token(
    environ: dict[str, str], crm: tuple[HubSpot, str], platforms: Platforms
) -> None:
    crm[0].trouble(status=403, body={"category": "MISSING_SCOPES"}, times=1)
    trouble = platforms.inbox.trouble(status=503, times=5)
    told = json.loads(bridge("check", "--live", "--json").stdout)
    trouble.times = 0
    failed = {one["name"]: one for one in told["live"] if not one["ok"]}
    assert set(failed) == {"sources.crm", "targets.inbox"}
    assert "lacks the scope crm.objects.contacts.read" in failed["sources.crm"]["said"]
    assert "CRM_TOKEN" in failed["sources.crm"]["fix"]
    assert "CRM_SECRET" not in failed["sources.crm"]["fix"]
    assert failed["targets.inbox"]["fix"].startswith("try again a little later")
