"""Outbound Messages as they are on the wire: SOAP 1.1, read with a parser that hostile XML cannot hurt.

https://developer.salesforce.com/docs/atlas.en-us.api.meta/api/sforce_api_om_outboundmessaging_notifications.htm
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from bridge.errors import BadPayload
from bridge.sources.base import Answer

SOAP = "http://schemas.xmlsoap.org/soap/envelope/"
OUTBOUND = "http://soap.sforce.com/2005/09/outbound"
RECORD = "urn:sobject.enterprise.soap.sforce.com"
INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"

# 100 notifications with 150 fields each stay within all of these. They bound what hostile XML costs.
MAX_BYTES = 4 * 1024 * 1024
MAX_MARKS = 32_000  # "<": beginnings and ends of elements
MAX_ODDITIES = 1_000  # comments and the like, of which Salesforce's have none
MAX_ATTRIBUTES = 20_000
MAX_LINES = 400_000
MAX_DEPTH = 12  # Salesforce's have six
MAX_ID = 60  # characters of a notification's; Salesforce's have 18

ACK = Answer(
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b'<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"><soapenv:Body>'
    b'<notificationsResponse xmlns="http://soap.sforce.com/2005/09/outbound"><Ack>true</Ack></notificationsResponse>'
    b"</soapenv:Body></soapenv:Envelope>\n",
    "text/xml; charset=utf-8",
)


@dataclass(frozen=True, slots=True)
class Notification:
    """What a message says of one record.

    *values* holds the fields that have one, by name. *unclear* are those that came twice, or in parts.
    """

    id: str
    kind: str  # "Contact"; "" where it is not said
    values: Mapping[str, str]
    unclear: frozenset[str]


@dataclass(frozen=True, slots=True)
class Message:
    organization_id: str
    notifications: tuple[Notification, ...]


def is_xml(body: bytes) -> bool:
    return body.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")


# --- reading ---------------------------------------------------------------------------------------------


def read_message(body: bytes) -> Message:
    """Return what an Outbound Message says.

    Raises:
        BadPayload: it is none, or is more than Salesforce sends.
    """
    envelope = _parsed(body)
    content = _inside(_inside(envelope, SOAP, "Body"), OUTBOUND, "notifications")
    if content is None or envelope.tag != f"{{{SOAP}}}Envelope":
        raise BadPayload("The body is no Outbound Message of Salesforce.")
    return Message(
        _text(_inside(content, OUTBOUND, "OrganizationId")).strip(),
        tuple(map(_notification, _all(content, OUTBOUND, "Notification"))),
    )


@dataclass(slots=True)
class _Element:
    tag: str  # "{namespace}name"
    attributes: Mapping[str, str] = field(default_factory=dict)
    # Most have one of the two, or neither, and two lists for each would take their time.
    texts: list[str] | None = None
    inside: list[_Element] | None = None


class _TooDeep(ValueError):
    """It is nested beyond reason."""


class _Builder:
    """Makes elements of what the parser reads."""

    def __init__(self) -> None:
        self._open = [_Element("")]

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        around = self._open
        if len(around) > MAX_DEPTH:
            raise _TooDeep
        element = _Element(tag, attributes)
        outer = around[-1]
        if outer.inside is None:
            outer.inside = []
        outer.inside.append(element)
        around.append(element)

    def end(self, tag: str) -> None:
        self._open.pop()

    def data(self, text: str) -> None:
        element = self._open[-1]
        if element.texts is None:
            element.texts = []
        element.texts.append(text)

    def close(self) -> _Element:
        return (self._open[0].inside or [])[0]


_ATTRIBUTE = re.compile(rb"""=\s*["']""")
# What it declares is UTF-8, as all that Salesforce sends, or nothing.
_DECLARED = re.compile(rb"""<\?xml[^>]{0,200}?\sencoding\s*=\s*["']([^"'>]{0,40})["']""")


def _parsed(body: bytes) -> _Element:
    if (
        len(body) > MAX_BYTES
        or body.count(b"<") > MAX_MARKS
        or body.count(b"<!") + body.count(b"<?") > MAX_ODDITIES
        or body.count(b"\n") > MAX_LINES
        or next(islice(_ATTRIBUTE.finditer(body), MAX_ATTRIBUTES, None), None)
    ):
        raise BadPayload("The body is larger than any message that Salesforce sends.")
    declared = _DECLARED.match(body.removeprefix(b"\xef\xbb\xbf"))
    if declared and declared[1].lower() != b"utf-8":
        raise BadPayload("The body says that it is not UTF-8 text.")
    parser = DefusedXMLParser(target=_Builder(), encoding="utf-8", forbid_dtd=True)
    try:
        body.decode("utf-8")
        parser.feed(body)
        found: Any = parser.close()
    except UnicodeDecodeError as error:
        raise BadPayload("The body is not UTF-8 text.") from error
    except DefusedXmlException as error:
        raise BadPayload("The body declares a document type or entities, which Salesforce never does.") from error
    except _TooDeep as error:
        raise BadPayload("The body is nested too deeply.") from error
    except (ParseError, ValueError, IndexError) as error:
        raise BadPayload("The body is not XML that bridge can read.") from error
    if not isinstance(found, _Element):
        raise BadPayload("The body is not XML that bridge can read.")
    return found


def _notification(element: _Element) -> Notification:
    record = _inside(element, OUTBOUND, "sObject") or _Element("")
    kind = record.attributes.get(f"{{{INSTANCE}}}type", "").rpartition(":")[2]
    values: dict[str, str] = {}
    unclear: set[str] = set()
    for one in record.inside or ():
        namespace, _, name = one.tag.removeprefix("{").rpartition("}")
        if namespace != RECORD:
            continue
        if one.inside or name in values:
            unclear.add(name)
        values[name] = _text(one)
    told = {name: text for name, text in values.items() if text and name not in unclear}
    number = _text(_inside(element, OUTBOUND, "Id")).strip()[:MAX_ID]
    return Notification(number, kind, told, frozenset(unclear))


def _all(element: _Element, namespace: str, name: str) -> Iterator[_Element]:
    tag = f"{{{namespace}}}{name}"
    return (one for one in element.inside or () if one.tag == tag)


def _inside(element: _Element | None, namespace: str, name: str) -> _Element | None:
    return next(_all(element, namespace, name), None) if element is not None else None


def _text(element: _Element | None) -> str:
    return "".join(element.texts or ()) if element is not None else ""


# --- the session -----------------------------------------------------------------------------------------

REDACTED = b"(redacted)"
NOT_KEPT = b"(not kept: what came is in an encoding that Salesforce does not use)"
_OPENING = re.compile(rb"<(?:[\w.-]{1,60}:)?SessionId(?![\w.-])")
_CLOSING = re.compile(rb"</(?:[\w.-]{1,60}:)?SessionId\s*>")


def redacted(body: bytes) -> bytes:
    """Return *body* without a session of Salesforce's API, however broken the XML around it may be."""
    if b"\0" in body:  # UTF-16 or the like, in which nothing could be found
        return NOT_KEPT
    if b"SessionId" not in body:
        return body
    parts: list[bytes] = []
    at = 0
    while opening := _OPENING.search(body, at):
        parts.append(body[at : opening.end()])
        end = body.find(b">", opening.end()) + 1
        if not end:
            return b"".join([*parts, REDACTED])
        parts.append(body[opening.end() : end])
        at = end
        if body[end - 2 : end] != b"/>":
            closing = _CLOSING.search(body, end)
            at = closing.start() if closing else len(body)
            parts.append(REDACTED if body[end:at].strip() else body[end:at])
    return b"".join([*parts, body[at:]])


# --- writing ---------------------------------------------------------------------------------------------


def write_message(organization_id: str, notifications: Mapping[str, Mapping[str, str]]) -> bytes:
    """Return the message that tells of contacts: the fields of each by the id of its notification."""
    told = "".join(
        f'<Notification><Id>{_escaped(number)}</Id><sObject xsi:type="sf:Contact" xmlns:sf="{RECORD}">'
        + "".join(f"<sf:{name}>{_escaped(value)}</sf:{name}>" for name, value in values.items())
        + "</sObject></Notification>"
        for number, values in notifications.items()
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<soapenv:Envelope xmlns:soapenv="{SOAP}" xmlns:xsd="http://www.w3.org/2001/XMLSchema" '
        f'xmlns:xsi="{INSTANCE}"><soapenv:Body><notifications xmlns="{OUTBOUND}">'
        f"<OrganizationId>{_escaped(organization_id)}</OrganizationId><ActionId>04k1I000000GmXLQA0</ActionId>"
        f'<SessionId xsi:nil="true"/>{told}</notifications></soapenv:Body></soapenv:Envelope>'
    ).encode()


def _escaped(text: str) -> str:
    return html.escape(text, quote=False)
