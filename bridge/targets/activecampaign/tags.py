"""Tags: https://developers.activecampaign.com/reference/create-contact-tag."""

from __future__ import annotations

from collections.abc import Mapping

from bridge.errors import Permanent
from bridge.model import Value
from bridge.outbound import segment
from bridge.targets.activecampaign.account import create_tag, is_blank, plain
from bridge.targets.activecampaign.client import NotFound
from bridge.targets.activecampaign.progress import Progress


def write_tags(progress: Progress, target_id: str, value: Value) -> None:
    """Attach the wanted tags, and detach those that an earlier accepted state named and this one does not.

    Tags that no rule ever named for this contact are other people's and are left alone.
    """
    links = _links(progress, target_id)
    if links and progress.only_blank("tags"):
        return
    names = _names(value)
    kept = {_attach(progress, target_id, name, links) for name in names}
    for name in _names((progress.job.accepted or {}).get("tags")):
        if name not in names:
            _detach(progress, name, links, kept)
    progress.accepted["tags"] = value


def _names(value: Value) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return list(dict.fromkeys(plain(item).strip() for item in items if not is_blank(item)))


def _links(progress: Progress, target_id: str) -> dict[str, str]:
    """Return the id of each link of the contact to a tag, by the tag's id."""
    path = f"/contacts/{segment(target_id)}/contactTags"
    rows = progress.client.call("GET", path, doing="reading the contact's tags").rows("contactTags")
    return {str(row.get("tag")): str(row.get("id")) for row in rows}


def _attach(progress: Progress, target_id: str, name: str, links: Mapping[str, str]) -> str:
    """Attach the tag, which is made if it does not exist, and return its id."""
    known = progress.account.tag(progress.client, name)
    number = known or create_tag(progress.client, progress.account, name)
    if number in links:
        return number  # attaching it again could start its automations again
    try:
        _post(progress, target_id, number)
    except Permanent as error:
        if known is None or error.status not in {400, 404, 422}:
            raise
        # The tag that was remembered may have been deleted since.
        progress.account.forget_tag(name)
        number = progress.account.tag(progress.client, name) or create_tag(progress.client, progress.account, name)
        _post(progress, target_id, number)
    progress.wrote = True
    return number


def _post(progress: Progress, target_id: str, number: str) -> None:
    link = {"contact": target_id, "tag": number}
    answer = progress.client.call("POST", "/contactTags", json={"contactTag": link}, doing="adding a tag")
    answer.row("contactTag")


def _detach(progress: Progress, name: str, links: Mapping[str, str], kept: set[str]) -> None:
    number = progress.account.tag(progress.client, name)
    if number is None or number in kept or number not in links:
        return
    try:
        progress.client.call("DELETE", f"/contactTags/{segment(links[number])}", doing="removing a tag")
    except NotFound:
        return  # somebody else removed it
    progress.wrote = True
