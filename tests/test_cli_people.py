"""Who may sign in, as somebody with a shell on the machine says it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bridge.cli import main
from tests.processes import free_port
from tests.stage import SECRET_KEY
from tests.web_site import SECRETS, write_config

PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path)
    for name, value in {**SECRETS, "SECRET_KEY": SECRET_KEY, "DATABASE_URL": "sqlite:///bridge.db"}.items():
        monkeypatch.setenv(name, value)
    for name in ("BRIDGE_CONFIG", "PUBLIC_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, given: str = "") -> Result:
    return CliRunner().invoke(main, arguments, input=given)


def users() -> dict[str, tuple[str, bool]]:
    return {
        one["name"]: (one["role"], one["password"]) for one in json.loads(run("user", "list", "--json").stdout)
    }


def test_a_link_is_printed_alone_and_makes_its_owner_an_admin() -> None:
    done = run("login-link")
    assert done.exit_code == 0
    assert done.stdout.startswith("https://bridge.example.com/sign-in/link/")
    assert done.stdout.count("\n") == 1
    assert "signs owner in once, within 15 minutes" in done.stderr
    assert users() == {"owner": ("admin", False)}


def test_a_link_for_somebody_else_gives_no_more_than_was_said() -> None:
    assert run("login-link", "--user", "vera").exit_code == 0
    assert run("login-link", "--user", "otto", "--role", "operator", "--json").exit_code == 0
    assert users() == {"otto": ("operator", False), "vera": ("viewer", False)}
    refused = run("login-link", "--user", "vera", "--role", "admin")
    assert refused.exit_code == 1
    assert "bridge user role vera admin" in refused.stderr
    assert users()["vera"] == ("viewer", False)


def test_without_a_secret_key_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECRET_KEY")
    done = run("login-link")
    assert done.exit_code == 1
    assert "SECRET_KEY is not set" in done.stderr
    assert done.stdout == ""


def test_people_are_added_changed_and_removed() -> None:
    assert run("user", "add", "ada", "--role", "admin", given=f"{PASSWORD}\n{PASSWORD}\n").exit_code == 0
    assert users() == {"ada": ("admin", True)}
    assert run("user", "add", "ada", given=f"{PASSWORD}\n{PASSWORD}\n").exit_code == 1
    assert run("user", "role", "ada", "viewer").exit_code == 0
    assert users() == {"ada": ("viewer", True)}
    assert run("user", "password", "ada", "--password-file", "-", given=f"{PASSWORD} 2\n").exit_code == 0
    assert run("user", "sign-out", "ada").exit_code == 0
    listed = run("user", "list").stdout
    assert listed == "ada  viewer  password  never seen\n"
    assert PASSWORD not in listed
    assert run("user", "remove", "ada").exit_code == 0
    assert users() == {}
    assert "Nobody yet" in run("user", "list").stdout


@pytest.mark.parametrize(
    "given", ["short\nshort\n", f"{PASSWORD}\nanother one, later\n", "x" * 300 + "\n" + "x" * 300]
)
def test_a_password_that_cannot_be_used_adds_nobody(given: str) -> None:
    assert run("user", "add", "ada", given=given).exit_code != 0
    assert users() == {}


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 101])
def test_a_name_is_something_that_can_be_read(name: str) -> None:
    assert run("user", "add", name, given=f"{PASSWORD}\n{PASSWORD}\n").exit_code == 2
    assert users() == {}


@pytest.mark.parametrize("command", [("password", "nobody"), ("role", "nobody", "admin"), ("remove", "nobody")])
def test_who_is_not_known_is_told_with_who_is(command: tuple[str, ...]) -> None:
    run("user", "add", "ada", given=f"{PASSWORD}\n{PASSWORD}\n")
    done = run("user", *command)
    assert done.exit_code == 1
    assert "There is no nobody; known: ada." in done.stderr


def test_serve_says_how_to_sign_in_and_prints_no_link_into_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.execv", lambda *_: None)  # nothing is started
    monkeypatch.setenv("PORT", str(free_port()))
    said = run("serve").stderr
    assert "pages: https://bridge.example.com; 'bridge login-link' prints a link that signs in" in said
    assert "/sign-in/link/" not in said
    monkeypatch.delenv("SECRET_KEY")
    assert "nobody can sign in, because SECRET_KEY is not set" in run("serve").stderr
