"""What the answer to a create says."""

from __future__ import annotations

from typing import Any, NoReturn

from bridge.errors import Permanent, Refused
from bridge.outbound import Reply
from bridge.targets.sakari.account import STOPPED, Json, SaidStop, body_of, code_of
from bridge.targets.sakari.contact import number_of


def made_of(reply: Reply, number: str, sent: Json) -> Json:
    """Return the contact that a POST made, from any shape of its answer; {} if it does not show one.

    The vendor documents a list of contacts and a summary of an upload; one contact alone would be natural, too.

    Raises:
        Permanent: the answer has an error for it, also within a 2xx. Others as `body_of`.
    """
    doing = "creating the contact"
    body = body_of(reply, doing=doing, sent=sent)
    data = body.get("data")
    summary = data if isinstance(data, dict) else {}
    errors = summary.get("errors") or body.get("errors")
    if errors:
        refuse_row(errors[0] if isinstance(errors, list) else errors, reply)
    rows = summary.get("contacts") if "contacts" in summary else data
    rows = [row for row in (rows if isinstance(rows, list) else [rows]) if isinstance(row, dict)]
    ours = [row for row in rows if number_of(row.get("mobile")) == number]
    made: Json = ours[0] if ours else {}
    if made and not made.get("id") and made.get("error"):
        refuse_row(made, reply)
    return made


def refuse_row(row: Any, reply: Reply) -> NoReturn:
    """Raise what the error of one row of a POST means."""
    code = code_of(row.get("error")) if isinstance(row, dict) else ""
    code = code or code_of(row)
    if code == STOPPED:
        raise SaidStop(f"The person asked for no further communication ({code}).", status=reply.status)
    if code.startswith("ACCT-"):
        raise Refused(f"Sakari refuses creating the contact ({code}).", status=reply.status)
    detail = f" ({code})" if code else ""
    message = f"Sakari did not create the contact{detail}; most often the mobile number is wrong."
    raise Permanent(message, status=reply.status)
