"""Proof by showing: a secret that stands in a header of the request as it is.

It says who sent the request and nothing about its body, and whoever sees one request can make others. It is worth
as much as the TLS around it.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bridge.errors import BadSignature, Complaints
from bridge.model import InboundRequest, Secret

HEADER = "X-Bridge-Token"  # where the sender lets its administrator choose
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110
_VISIBLE = re.compile(r"[\x20-\x7e]+")


@dataclass(frozen=True, slots=True)
class HeaderSecret:
    """The secrets of which a request shows one in *header* (lower-case), after *prefix* in any case of letters.

    Made by `in_header`.
    """

    header: str
    values: tuple[bytes, ...] = field(repr=False)
    prefix: str = ""

    def match(self, request: InboundRequest) -> int:
        """Return which of them *request* shows, from 0; every one is compared.

        Raises:
            BadSignature: it shows none of them. The message never quotes what was sent.
        """
        given = request.headers.get(self.header, "")
        if not given:
            raise BadSignature(f"The header {self.header} is missing.")
        start, text = given[: len(self.prefix)], given[len(self.prefix) :]
        matches = same(text, self.values)
        if start.lower() != self.prefix.lower() or not matches:
            raise BadSignature(f"The header {self.header} holds none of the configured secrets.")
        return matches[0]

    def show(self, request: InboundRequest) -> InboundRequest:
        """Return *request* as a sender with the first of them makes it."""
        text = f"{self.prefix}{self.values[0].decode()}"
        return replace(request, headers={**request.headers, self.header: text})


def in_header(given: Sequence[Secret], header: str = HEADER, prefix: str = "") -> HeaderSecret:
    """Return what stands under ``secrets`` in a section of the configuration.

    Raises:
        ValueError: one is unusable, or *header* is; a line for each, beginning with its key.
    """
    values = [secret.reveal().strip() for secret in given]
    with Complaints() as complaints:
        complaints.unless(bool(_NAME.fullmatch(header)), "header: this is no name of a header")
        for value in values:
            complaints.unless(bool(value), "secrets: one is empty: anyone could send with it")
            complaints.unless(
                bool(_VISIBLE.fullmatch(value)) or not value,
                "secrets: one holds letters that no header has; use plain letters, digits and signs",
            )
        plain = not prefix or bool(_VISIBLE.fullmatch(prefix))
        complaints.unless(plain, "prefix: it holds letters that no header has")
    return HeaderSecret(header.lower(), tuple(value.encode() for value in values), prefix)


def same(given: object, secrets: Sequence[bytes]) -> list[int]:
    """Return which of *secrets* the text *given* is. Constant-time, and none is left out for another's match."""
    text = given.encode("utf-8", "surrogatepass") if isinstance(given, str) else b""
    return [number for number, one in enumerate(secrets) if hmac.compare_digest(text, one)]


def without(request: InboundRequest, header: str) -> InboundRequest:
    """Return *request* as it may be stored: without the header that holds a secret."""
    return replace(request, headers={name: value for name, value in request.headers.items() if name != header})
