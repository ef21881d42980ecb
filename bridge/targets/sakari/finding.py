"""Finding contacts by their number, of which the platform's filter also finds parts."""

from __future__ import annotations

from bridge.errors import Ambiguous
from bridge.targets.sakari.account import Account
from bridge.targets.sakari.contact import number_of
from bridge.targets.sakari.learnt import Learnt


def find(account: Account, learnt: Learnt, number: str) -> str | None:
    """Return the id of the contact with exactly this number (E.164), None if there is none.

    Raises:
        Ambiguous: there are several.
    """
    found = holders(account, learnt, number)
    if len(found) > 1:
        raise Ambiguous("Several contacts in Sakari have this mobile number.")
    return found[0] if found else None


def holders(account: Account, learnt: Learnt, number: str) -> list[str]:
    """Return the ids of all contacts with exactly this number.

    https://developer.sakari.io/api-reference/contacts/fetch-contacts
    """
    digits = number.removeprefix("+")
    # The vendor does not say whether the filter wants the plus, so nothing counts as absent by one way only.
    for text in (digits, number):
        rows = account.pages("/contacts", {"mobile": text}, doing="searching for the contact")
        found = {row["id"]: None for row in rows if row.get("id") and number_of(row.get("mobile")) == number}
        if found:
            learnt.digits_found = learnt.digits_found or text == digits
            return [str(contact_id) for contact_id in found]
        if learnt.digits_found:
            break
    return []
