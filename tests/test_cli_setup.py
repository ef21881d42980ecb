"""Setting bridge up: `bridge init` for every CRM and platform, and what `bridge check --live` finds."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bridge.cli import main, setup
from bridge.cli.starter import Chosen, rules_for, start
from bridge.config import load
from bridge.config.model import BridgeSettings
from bridge.sources import SOURCES
from bridge.targets import TARGETS

PUBLIC_URL = "https://bridge.example.com"
# What a variable of .env may hold, by the end of its name; most take anything.
FITTING = {
    "STANDARD_WEBHOOKS_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "ACTIVECAMPAIGN_URL": "https://a.api-us1.com",
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
    typed = f"9\nhubspott\n1, pipedrive\n\n{targets.index('sakari') + 1} artu\nhttp://bridge.example.com\n{PUBLIC_URL}/\n"
    result = bridge("init", str(tmp_path), typed=typed)
    assert result.exit_code == 0, result.output
    for title in (*(one.title for one in SOURCES.values()), *(one.title for one in TARGETS.values())):
        assert title in result.output
    assert "there is no 'hubspott'; did you mean 'hubspot'?" in result.output
    assert "there is no '9'" in result.output
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
