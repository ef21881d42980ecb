"""What the process is told by its environment.

Light, for processes that only start others: it knows nothing of the configuration file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from bridge.errors import ConfigError, Problem

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("auto", "json", "text")
_SHORTEST_SECRET = 16  # characters; fewer can be guessed


@dataclass(frozen=True, slots=True)
class Environment:
    """What the process is told by its environment. A text that is empty was not set."""

    database_url: str = field(
        default="sqlite:///data/bridge.db",
        repr=False,
        metadata={
            "name": "DATABASE_URL",
            "help": "sqlite:///path (four slashes begin an absolute path), or postgres://user:password@host/database",
        },
    )
    secret_key: str = field(
        default="",
        repr=False,
        metadata={
            "name": "SECRET_KEY",
            "help": "signs sessions, login links and URL tokens; unset: nobody can sign in",
        },
    )
    api_token: str = field(
        default="",
        repr=False,
        metadata={"name": "BRIDGE_API_TOKEN", "help": "opens /api/v1 and /metrics; unset: both are closed"},
    )
    public_url: str = field(
        default="", metadata={"name": "PUBLIC_URL", "help": "the URL that senders call, where the file names none"}
    )
    port: int = field(default=8000, metadata={"name": "PORT", "help": "where the web process listens"})
    web_concurrency: int | None = field(
        default=None, metadata={"name": "WEB_CONCURRENCY", "help": "how many web processes; unset: bridge chooses"}
    )
    log_level: str = field(default="info", metadata={"name": "LOG_LEVEL", "help": ", ".join(LOG_LEVELS)})
    log_format: str = field(
        default="auto", metadata={"name": "LOG_FORMAT", "help": "json, text, or auto: json when not a terminal"}
    )

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> Environment:
        """Read the environment; a variable that is set to nothing is as good as unset.

        Raises:
            ConfigError: with every problem found.
        """
        given = {name: value.strip() for name, value in (os.environ if environ is None else environ).items()}
        problems: list[Problem] = []
        found: dict[str, Any] = {}
        for one in fields(cls):
            name = one.metadata["name"]
            if text := given.get(name):
                try:
                    found[one.name] = _CHECKS[name](text)
                except ValueError as error:
                    what, _, fix = str(error).partition("; ")
                    problems.append(Problem(f"the environment: {name}", what, fix))
        if problems:
            raise ConfigError(*problems)
        return cls(**found)


def _database_url(text: str) -> str:
    try:
        scheme, path = urlsplit(text).scheme, urlsplit(text).path
    except ValueError:
        scheme = path = ""
    if scheme in {"postgres", "postgresql"} or (scheme == "sqlite" and path.strip("/")):
        return text
    raise ValueError(
        "it names neither a SQLite file nor a PostgreSQL database; write sqlite:////path/to/bridge.db, "
        "on a disk that stays, or postgres://user:password@host/database"
    )


def _long_enough(text: str) -> str:
    if len(text) < _SHORTEST_SECRET:
        raise ValueError(
            f"it has {len(text)} characters, which can be guessed; "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one"
        )
    return text


def _from_to(low: int, high: int) -> Callable[[str], int]:
    def check(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text[:9]) <= high):
            raise ValueError(f"a whole number from {low} to {high} is wanted")
        return int(text)

    return check


def _word(known: tuple[str, ...]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text.lower() not in known:
            from bridge.config.words import did_you_mean, one_of  # with all of the configuration

            raise ValueError(f"there is no '{text}'; {did_you_mean(text.lower(), known) or one_of(known)}")
        return text.lower()

    return check


def _public_url(text: str) -> str:
    return text.rstrip("/")  # whether it can be used is looked at where it is: in the configuration


_CHECKS: Mapping[str, Callable[[str], Any]] = {
    "DATABASE_URL": _database_url,
    "SECRET_KEY": _long_enough,
    "BRIDGE_API_TOKEN": _long_enough,
    "PUBLIC_URL": _public_url,
    "PORT": _from_to(1, 65535),
    "WEB_CONCURRENCY": _from_to(1, 64),
    "LOG_LEVEL": _word(LOG_LEVELS),
    "LOG_FORMAT": _word(LOG_FORMATS),
}
