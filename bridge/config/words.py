"""How problems are worded: places, suggestions, and what is wrong with a URL."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from bridge.config.lines import Path

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def url_problem(url: str) -> tuple[str, str] | None:
    """Return what is wrong with a URL that is called or signed, and the way out; None: nothing.

    It is https, but for this machine's own addresses, and has nothing hidden in it.
    """
    try:
        parts = urlsplit(url)
        host, plausible = parts.hostname, parts.port != 0 and parts.scheme in {"http", "https"}
    except ValueError:
        return "this is no URL such as https://api.example.com", ""
    if not host or not plausible or url != url.strip():
        return "this is no URL such as https://api.example.com", ""
    if parts.username or parts.password or parts.query or parts.fragment:
        return "the URL has a user, a query or a fragment", "leave nothing but host and path"
    if parts.scheme == "http" and host not in LOOPBACK:
        return "the URL begins with http://, so anybody on the way could read it", "write https://"
    return None


def dotted(path: Path) -> str:
    """Return *path* as people write it: ``routes[2].fields."attributes.tier"``; entries count from 1."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part + 1}]"
        else:
            text += ("." if text else "") + (part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"')
    return text


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"did you mean '{close[0]}'?" if close else ""


def one_of(names: Iterable[str]) -> str:
    listed = sorted(names)
    return f"there is {', '.join(listed[:20])}{', …' if len(listed) > 20 else ''}" if listed else ""


def plain_name(name: str) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-") or "crm"


def wrapping(wanted: str, found: Any) -> str:
    if wanted == "a list" and isinstance(found, str):
        return "put it into brackets: [...]"
    return "put it into quotes" if wanted == "a text" and isinstance(found, int | float) else ""


def kind_of(value: Any) -> str:
    """Say what *value* is, and not more: it may be a secret in the wrong place."""
    kinds = {
        bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "a table"
    }  # fmt: skip
    return kinds.get(type(value), "a date or time")
