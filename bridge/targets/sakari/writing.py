"""Reading one contact, replacing it, and proving after that nobody's opt-out was lost."""

from __future__ import annotations

from bridge.errors import DeliveryFailed, Refused, Retryable
from bridge.outbound import segment
from bridge.targets.sakari.account import Account, Gone, Json, body_of, nonsense
from bridge.targets.sakari.contact import echo, entries_of, is_contact, lists_left, lost, without_nulls


def read(account: Account, target_id: str, *, finishes: bool = False) -> Json:
    """Return the contact. *finishes*: it completes a write already made.

    Raises:
        Gone: it is not there (any more).
    """
    reply = account.call("GET", f"/contacts/{segment(target_id)}", finishes=finishes)
    doing = "reading the contact"
    if reply.status in {404, 410}:
        raise Gone("The contact is not in Sakari any more.", status=reply.status)
    contact: Json = body_of(reply, doing=doing).get("data") or {}
    if not is_contact(contact) or str(contact.get("id", target_id)) != target_id:
        raise nonsense(reply, doing)
    return contact


def reread(account: Account, target_id: str) -> Json:
    """Read what a write came to; a hiccup must not leave it unproven."""
    try:
        return read(account, target_id, finishes=True)
    except Gone:
        raise
    except Retryable:
        return read(account, target_id, finishes=True)


def write(account: Account, target_id: str, before: Json, body: Json) -> Json:
    """Replace the contact and return it as it is then. *before* is what it was when *body* was made.

    https://developer.sakari.io/api-reference/contacts/updates-a-contact

    Raises:
        Refused: with the code ``loosened``, if an opt-out that was there before is gone.
    """
    try:
        answer = _put(account, target_id, body)
    except Retryable as error:
        if not isinstance(error, Refused | Gone) and error.code != "rate_limited":
            _prove_after_trouble(account, target_id, before)
        raise
    if answer is not None:
        _prove(account, target_id, before, answer)
    after = reread(account, target_id)
    _prove(account, target_id, before, after)
    return after


def _put(account: Account, target_id: str, body: Json, *, finishes: bool = False) -> Json | None:
    """Send the PUT and return the contact that it answers with, None if it does not show one."""
    reply = account.call("PUT", f"/contacts/{segment(target_id)}", json=body, finishes=finishes)
    if reply.status in {404, 410}:
        raise Gone("The contact is not in Sakari any more.", status=reply.status)
    data = body_of(reply, doing="updating the contact", sent=body).get("data")
    return data if is_contact(data) else None


def _prove_after_trouble(account: Account, target_id: str, before: Json) -> None:
    """The PUT may have happened though nobody said so: look, if one can."""
    try:
        after = reread(account, target_id)
    except Retryable:
        return
    _prove(account, target_id, before, after)


def _prove(account: Account, target_id: str, before: Json, after: Json) -> None:
    """Raise the alarm if *after* holds less of an opt-out than *before*."""
    missing = lost(before, after)
    if not missing:
        return
    restored = _restore(account, target_id, before)
    done = "Bridge has put it back" if restored else "Bridge could not put it back: block the contact by hand"
    raise Refused(
        f"Sakari lost an opt-out ({', '.join(missing)}) of the contact {target_id} when bridge wrote to it. "
        f"{done}. Nothing more is sent until a person has looked at this.",
        code="loosened",
    )


def _restore(account: Account, target_id: str, before: Json) -> bool:
    """Write back the opt-outs of *before*, and nothing else; say whether they are there again."""
    try:
        now = read(account, target_id, finishes=True)
        body = echo(now)
        if before.get("blocked"):
            body["blocked"] = now.get("blocked") or before["blocked"]
        gone = {
            list_id: without_nulls(entries_of(before)[list_id]) for list_id in lists_left(before) - lists_left(now)
        }
        if gone:
            body["lists"] = list((entries_of(body) | gone).values())
        _put(account, target_id, body, finishes=True)
        return not lost(before, read(account, target_id, finishes=True))
    except DeliveryFailed:
        return False
