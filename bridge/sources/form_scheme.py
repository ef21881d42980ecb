"""Any sender of forms (``application/x-www-form-urlencoded``), as web forms and older CRMs send them.

A form says nothing but texts. It becomes an object of them: repeated names give a list, and ``a[b][c]`` is ``c``
in ``b`` in ``a``. https://url.spec.whatwg.org/#application/x-www-form-urlencoded
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

from bridge.errors import BadPayload
from bridge.model import InboundRequest
from bridge.sources import json_scheme, payload
from bridge.sources.base import Proof, SourceType
from bridge.sources.reading import MAX_DEPTH, check_form
from bridge.sources.recording import FORM
from bridge.sources.sampling import Sampling

MAX_FIELDS = 10_000  # the sender waits while they are read
UTF_8 = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
_CHARSET = re.compile(r"""charset\s*=\s*["']?([^\s"';]+)""", re.IGNORECASE)
_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]+\])*)(\[\])?")
_PART = re.compile(r"\[([^\[\]]+)\]")


@dataclass(frozen=True, slots=True)
class Settings(json_scheme.Settings):
    """A sender of forms that shows a token, or a password."""


def content(request: InboundRequest) -> dict[str, Any]:
    """Return what the form in *request* says. Names that are no ``a[b][c]`` stand as they are.

    Raises:
        BadPayload: it is none, or not in UTF-8; or its names contradict each other.
    """
    _check_type(request.headers.get("content-type", ""))
    check_form(request.body)
    try:
        text = request.body.decode("utf-8").rstrip("\r\n")  # of a file; a line end of a value is written %0A
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except UnicodeDecodeError as error:
        raise BadPayload("The form is not UTF-8 text.") from error
    except ValueError as error:
        raise BadPayload(f"The form has more than {MAX_FIELDS:,} fields.") from error
    form: dict[str, Any] = {}
    for name, value in pairs:
        # No database takes a NUL.
        _add(form, name.replace("\0", "\ufffd"), value.replace("\0", "\ufffd"))
    return form


def _check_type(given: str) -> None:
    """Refuse what says that it is something else than a form in UTF-8."""
    kind, _, parameters = given.partition(";")
    if kind.strip().lower() not in {"", FORM}:
        raise BadPayload(f"The body is no form: its Content-Type is not {FORM}.")
    charset = _CHARSET.search(parameters)
    if charset and charset[1].lower() not in UTF_8:
        raise BadPayload("The form is not in UTF-8, by what its Content-Type says.")


def _add(form: dict[str, Any], name: str, value: str) -> None:
    path, several = _path(name)
    *outer, last = path
    if len(path) > MAX_DEPTH:
        raise BadPayload("The names of the form are nested beyond reason.")
    inside: Any = form
    for part in outer:
        inside = inside.setdefault(part, {})
        if not isinstance(inside, dict):
            raise BadPayload("The form has a name both for a value and for a group of them.")
    found = inside.get(last)
    if isinstance(found, dict):
        raise BadPayload("The form has a name both for a value and for a group of them.")
    if isinstance(found, list):
        found.append(value)
    elif last in inside:
        inside[last] = [found, value]
    else:
        inside[last] = [value] if several else value


def _path(name: str) -> tuple[list[str], bool]:
    """Return where the field *name* stands, and whether its name says that there are several (``tags[]``)."""
    found = _NAME.fullmatch(name)
    if found is None:
        return [name], False
    return [found[1], *_PART.findall(found[2])], found[3] is not None


def sample(wanted: Sampling) -> bytes:
    """Return the same body as `payload.sample`, as a form."""
    return urlencode(list(_pairs("", json.loads(payload.sample(wanted))))).encode()


def _pairs(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for part, inner in value.items():
            yield from _pairs(f"{name}[{part}]" if name else part, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _pairs(f"{name}[]", inner)
    else:
        yield name, str(value)


SOURCE = SourceType(
    name="form",
    title="Any sender of forms",
    settings=Settings,
    make=lambda name, settings: json_scheme.Shown(name, settings, content),
    kept_headers=json_scheme.KEPT_HEADERS,
    proof=Proof.SHOWN,
    sample=sample,
    steps=tuple(step.replace("%s", f"form (`{FORM}`)") for step in json_scheme.STEPS),
    keeps_others=True,
)
