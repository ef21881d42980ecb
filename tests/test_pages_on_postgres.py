"""The pages say the same of the same things, whichever database holds them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from difflib import ndiff
from html import unescape
from pathlib import Path

from bridge.model import utc_now
from tests.databases import Emptied
from tests.stage import ERASED, FAILED, HOSTILE, SYNCED, Session, Template, source_id, text_of

MOST = 60  # pages that are read

BEGINNINGS = (
    "/",
    *(f"/contacts/shop/{source_id(number)}" for number in (SYNCED, FAILED, HOSTILE, ERASED)),
    "/contacts?q=person2@",
    "/contacts?q=grace",
    "/failures?target=sms",
    "/audit?kind=delivery",
    "/audit?q=person1@",
    "/audit?target=marketing&limit=5",
    "/webhooks?outcome=unreadable",
)


def links(html: str) -> Iterator[str]:
    """Give the pages that *html* leads to."""
    for found in re.findall(r'<a [^>]*?href="(/[^"]*)"', html):
        if not found.startswith(("/logout", "/assets", "/api")) and "export" not in found:
            yield unescape(found).partition("#")[0]


def read(session: Session, path: str) -> tuple[int, str, str]:
    answer = session.get(session.url + path, headers={"Accept": "text/html"}, timeout=10)
    html = answer.text.replace(session.url, "https://bridge.example.com")
    return answer.status_code, html, text_of(html) if "<main" in html else html


def test_every_page_says_the_same(template: Template, emptied_postgres: Emptied, tmp_path: Path) -> None:
    moment = utc_now() + timedelta(seconds=5)  # or what is told of ages would be a matter of chance
    folders = tmp_path / "before", tmp_path / "after"
    for folder in folders:
        folder.mkdir()
    with (
        template.copy(folders[0], clock=lambda: moment) as before,
        template.copy(folders[1], emptied_postgres(), clock=lambda: moment) as after,
        before.session() as one,
        after.session() as other,
    ):
        for stage in (before, after):
            stage.store.beat("worker", "test", moment)
        waiting, known = list(BEGINNINGS), set(BEGINNINGS)
        for path in waiting:  # which grows
            status, html, said = read(one, path)
            status_there, _, said_there = read(other, path)
            assert (status, status_there) == (200, 200), path
            # Their lines of difference: all of both would not be readable.
            assert " ".join(one for one in ndiff(said.split(), said_there.split()) if one[0] != " ") == "", path
            for link in links(html):
                if link not in known and len(known) < MOST:
                    known.add(link)
                    waiting.append(link)
        assert len(waiting) == MOST
