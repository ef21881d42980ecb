"""One push: find or create the contact, then bring lists, fields and tags to what is wanted."""

from __future__ import annotations

from datetime import timedelta

from bridge.errors import Ambiguous, Permanent
from bridge.model import Receipt
from bridge.targets.activecampaign.account import Account, is_blank
from bridge.targets.activecampaign.client import TITLE, Client, Gone, Taken
from bridge.targets.activecampaign.contact import (
    BASE_FIELDS,
    Held,
    base_of,
    find_contact,
    opted_out,
    read_contact,
    same_base,
)
from bridge.targets.activecampaign.fields import write_fields
from bridge.targets.activecampaign.lists import Lists
from bridge.targets.activecampaign.progress import Progress
from bridge.targets.activecampaign.tags import write_tags
from bridge.targets.base import Job

YOUNG = timedelta(days=1)  # a contact so new, and never pushed to the end, may be one that bridge began


def push(client: Client, account: Account, job: Job) -> Receipt:
    """Bring one contact to what is wanted.

    Raises:
        Gone: it was deleted; look for the person anew. Any `DeliveryFailed`: as the platform answered.
    """
    progress = Progress(client, account, job)
    if job.accepted is not None and not job.desired.opt_out and not progress.wanted():
        return Receipt("unchanged", job.target_id, progress.accepted, job.opted_out)
    held = _find(progress)
    if held is None and not job.may_create():
        return Receipt("absent")
    if held is None:
        held = _create(progress)
    if held.id != job.target_id:
        job.link(held.id)
    if job.accepted is None and held.created_at is not None:
        progress.young = held.created_at >= job.now - YOUNG
    wanted = progress.wanted()
    lists = Lists(progress, held)
    # What tightens goes first, so that no trouble with anything else holds it up. Subscriptions go last: they
    # start automations, which should find the fields filled.
    if job.desired.opt_out:
        lists.leave_all()
    lists.plan({name: value for name, value in wanted.items() if name.startswith("lists.")})
    lists.leave()
    write_fields(progress, held, {name: wanted[name] for name in wanted if _is_ordinary(name)})
    if "tags" in wanted:
        write_tags(progress, held.id, wanted["tags"])
    lists.join()
    outcome = "created" if progress.new else "updated" if progress.wrote else "unchanged"
    # An opt-out stays one when the lists it was on are gone, or there never was a list to write it to.
    out = opted_out(lists.rows) or ((job.desired.opt_out or job.opted_out) and lists.none_open())
    return Receipt(outcome, held.id, progress.accepted, out, tuple(progress.notes))


def _is_ordinary(name: str) -> bool:
    return name in BASE_FIELDS or name.startswith("fields.")


def _find(progress: Progress) -> Held | None:
    target_id, address = progress.job.target_id, address_of(progress.job)
    if target_id is None and address:
        target_id = find_contact(progress.client, address)
    return None if target_id is None else _read(progress, target_id)


def _read(progress: Progress, target_id: str, *, finishes: bool = False) -> Held:
    held = read_contact(progress.client, target_id, finishes=finishes)
    if held is None:
        raise Gone(f"The contact was deleted in {TITLE}. Bridge looks for the person by e-mail address.")
    return held


def address_of(job: Job) -> str:
    """Return the wanted e-mail address; "" when none is known."""
    address = job.desired.fields.get("email")
    return address if isinstance(address, str) and not is_blank(address) else ""


def _create(progress: Progress) -> Held:
    """Create the contact with its address alone: if it exists after all, that changes nothing of it.

    https://developers.activecampaign.com/reference/sync-a-contacts-data
    """
    address = address_of(progress.job)
    if not address:
        message = f"The contact is not in {TITLE} (any more), and there is no e-mail address to create it with."
        raise Permanent(message, code="no_identity")
    try:
        answer = progress.client.call(
            "POST",
            "/contact/sync",
            json={"contact": {"email": address}},
            doing="creating the contact",
            creates=True,
        )
    except Taken as error:
        raise Ambiguous(
            f"{TITLE} says that a contact has this e-mail address, but shows none that has it. "
            "Look for it there, then replay.",
            status=error.status,
        ) from error
    contact = answer.row("contact")
    base, target_id = base_of(contact), str(contact["id"])
    if not same_base("email", base["email"], address):
        raise answer.nonsense()
    progress.wrote = True
    if answer.status == 201 and not any(base[name] for name in BASE_FIELDS if name != "email"):
        progress.new = True
        return Held(target_id, base)
    # Somebody else made it since the search.
    return _read(progress, target_id, finishes=True)
