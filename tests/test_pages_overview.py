"""The overview: nothing is green because nobody looked, and what needs a person is said with a way there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path

import pytest

from bridge.model import State, utc_now
from bridge.store.looking import Activity, Bar, User
from bridge.store.protocol import Health, NewInbound
from bridge.store.sqlite import SqliteStore
from bridge.web.health import Check
from bridge.web.pages.overview import Attempts, attempts, figures, needs_of, savings
from bridge.web.pages.rhythm import HOURS, Pulse, Rhythm, rhythm
from tests.stage import USERS, Stage, Template

NOW = datetime(2026, 3, 5, 14, 20, tzinfo=UTC)  # a Thursday
HOUR = timedelta(hours=1)


def text_of(html: str) -> str:
    """Return what a page says, without its menu."""
    return words_of(html.partition("<main")[2].partition(">")[2].partition("</main>")[0])


def words_of(html: str) -> str:
    text = unescape(" ".join(re.sub(r"<[^>]+>", " ", html).split()))
    return re.sub(r" (?=[.,:;)])", "", text)


OTHERS = """
[sources.guarded]
type = "standard_webhooks"
secrets = ["$SHOP_SECRET"]
require_token = true

[sources.hub]
type = "hubspot"
secrets = ["$SHOP_SECRET"]

[sources.pipe]
type = "pipedrive"
credentials = [{ user = "bridge", password = "$SHOP_SECRET" }]

[sources.legacy]
type = "hmac"
secrets = ["$SHOP_SECRET"]
signature = { header = "X-Signature", parts = ["body"] }

[sources.public]
type = "standard_webhooks"
secrets = ["whpk_6DIcnD1PAZGVhoyUHYm7fWVdRsk57E6hnb1ZUYwrPVM="]
"""


@contextmanager
def first_run(template: Template, folder: Path) -> Iterator[Stage]:
    """Serve a bridge to which nothing happened yet."""
    empty = folder / "empty"
    empty.mkdir()
    (empty / "bridge.toml").write_text(template.toml.replace("[[routes]]", f"{OTHERS}\n[[routes]]", 1))
    with closing(SqliteStore(empty / "bridge.db", {})) as store:
        store.migrate()
        for role, name in USERS.items():
            store.save_user(User(name, role), utc_now())
    with Template(empty, template.platforms).copy(folder) as stage:
        yield stage


# --- the page ------------------------------------------------------------------------------------------------


def test_it_says_how_everything_is_and_what_needs_a_person(stage: Stage) -> None:
    with stage.session("viewer") as session:
        html = session.page("/")
    said = text_of(html)
    for words in (
        "Database answers",
        "Worker runs",
        "2 deliveries failed for good",
        "1 delivery fit more than one contact there",
        "register is held: Artu refuses our credentials",
        "1 webhook is genuine but could not be read",
        "A request to shop was refused",
    ):
        assert words in said
    for href in ("/failures?state=failed", "/failures?state=ambiguous", "/targets#register", "/sources#shop"):
        assert f'href="{href}"' in html
    assert re.search(r'href="/audit\?from=[^"]+&amp;to=[^"]+&amp;kind=delivery"', html), (
        "bars lead to their entries"
    )


def test_its_links_lead_somewhere(stage: Stage) -> None:
    with stage.session("viewer") as session:
        main = session.page("/").partition("<main")[2]
        found = {href.partition("?")[0]: href for href in re.findall(r'href="(/[^"#]+)', main)}
        for href in found.values():
            session.page(href.replace("&amp;", "&"))


def test_the_pushes_saved_are_said_in_numbers(stage: Stage) -> None:
    with stage.session("viewer") as session:
        said = text_of(session.page("/"))
    found = re.search(
        r"(\d+) pushes were saved by convergence: (\d+) changes were to reach targets, and (\d+)", said
    )
    assert found
    saved, changes, pushes = (int(one) for one in found.groups())
    assert saved == changes - pushes > 0


def test_without_a_worker_what_depends_on_it_is_stale_and_never_green(own_stage: Stage) -> None:
    with own_stage.session("viewer") as session:
        own_stage.ahead[0] = timedelta(hours=3)
        html = session.page("/")
    said = text_of(html)
    assert "Worker not running last seen 3 h ago" in said
    assert "Stale. The worker was last seen 3 h ago" in said
    assert "The worker was last seen 3 h ago: webhooks are stored, but nothing is sent" in said
    assert "open, stale" in said
    assert 'class="badge good"' not in html
    assert "no attempts stale in the last hour" in said, "no attempts are no success"
    assert html.count('class="value good"') == 1, "the database answers; nothing else is known to be well"


def test_trouble_with_the_database_is_said_first() -> None:
    checks = [Check("database", ok=False, detail="The disk is full."), Check("worker", ok=True, detail="")]
    seen = Health(worker_seen_at=NOW, deliveries={("sms", State.FAILED): 1})
    first, *_ = figures(seen, checks, Attempts(0, 0), Attempts(0, 0), NOW)
    assert (first.value, first.note, first.tone) == ("in trouble", "The disk is full.", "bad")
    sentences = [one.sentence for one in needs_of(seen, checks, [], [], NOW)]
    assert sentences == ["The disk is full.", "1 delivery failed for good: a person, or a new value, is needed."]


@pytest.mark.parametrize(
    ("made", "failed", "value", "tone"),
    [(0, 0, "no attempts", "idle"), (100, 0, "0 %", "good"), (300, 1, "0.3 %", "warn"), (10, 5, "50 %", "bad")],
)
def test_the_rate_of_failures_is_of_attempts_that_were_made(made: int, failed: int, value: str, tone: str) -> None:
    checks = [Check("database", ok=True, detail="")]
    *_, last = figures(Health(worker_seen_at=NOW), checks, Attempts(made, failed), Attempts(made, failed), NOW)
    assert (last.value, last.tone) == (value, tone)


def test_at_the_first_run_it_leads(template: Template, tmp_path: Path) -> None:
    with first_run(template, tmp_path) as stage, stage.session("operator") as session:
        html = session.page("/")
        said = text_of(html)
        steps = ["Paste the URL into the CRM", "Send a sample", "Look here"]
        assert [said.index(step) for step in steps] == sorted(said.index(step) for step in steps)
        assert f"{stage.url}/hooks/shop<" in html
        assert "bridge url guarded" in said, "its URL is secret, and made on the command line"
        assert f"{stage.url}/hooks/guarded<" not in html
        assert 'href="/sources/shop/sample"' in html
        assert "/webhooks/" in session.submit("/sources/shop/sample").url
        assert "Paste the URL into the CRM" not in text_of(session.page("/"))


def test_a_source_that_falls_silent_is_said_to_be_quiet(own_stage: Stage) -> None:
    began = utc_now() - timedelta(days=3)
    moments = [began + timedelta(minutes=5 * number) for number in range(3 * 24 * 12)]
    url = f"{own_stage.url}/hooks/shop"
    own_stage.store.receive([NewInbound("shop", at, "POST", url, {}, b"{}", (f"steady {at}",)) for at in moments])
    with own_stage.session("viewer") as session:
        assert "as usual" in text_of(session.page("/"))
        own_stage.ahead[0] = timedelta(hours=3)
        own_stage.store.beat("worker", "test", utc_now() + timedelta(hours=3))
        html = session.page("/")
    assert "shop is quiet for 3 h, usually every 5 min: does the CRM still send?" in text_of(html)
    assert "quiet for 3 h, usually every 5 min" in words_of(html.partition("<table")[2])


# --- figures -------------------------------------------------------------------------------------------------


def test_what_took_no_call_was_no_push() -> None:
    totals = [
        Activity("announced", "announced", 100, target="sms"),
        Activity("delivery", "updated", 10, target="sms", calls=20),
        Activity("delivery", "unchanged", 30, target="sms", calls=2),
        Activity("delivery", "timeout", 4, target="sms", error="timeout"),
        Activity("inbound", "processed", 100, source="shop"),
    ]
    assert attempts(totals) == Attempts(16, 4)
    assert (savings(totals).saved, savings(totals).percent) == (84, 84)
    assert savings([]).percent == 0


# --- rhythm --------------------------------------------------------------------------------------------------


def hours(count: dict[int, int], *, since: int = HOURS, weekend: bool = True) -> list[Bar]:
    """Return bars: *count* webhooks by hour of the day, from so many hours ago until the last webhook."""
    last = NOW.replace(minute=0)
    bars = []
    for ago in range(HOURS, -1, -1):
        at = last - ago * HOUR
        busy = ago <= since and (weekend or at.weekday() < 5)
        bars.append(Bar(at, {"processed": count.get(at.hour, 0)} if busy else {}))
    return bars


ALWAYS = dict.fromkeys(range(24), 12)
OFFICE = dict.fromkeys(range(8, 18), 12)


@pytest.mark.parametrize(
    ("bars", "silent", "pulse"),
    [
        (hours(ALWAYS), timedelta(minutes=10), Pulse.USUAL),
        (hours(ALWAYS), timedelta(hours=3), Pulse.QUIET),
        (hours(ALWAYS, since=30), timedelta(hours=3), Pulse.QUIET),
        (hours(ALWAYS, since=5), timedelta(hours=3), Pulse.UNKNOWN),
        (hours({14: 1, 13: 1, 12: 1}), timedelta(hours=3), Pulse.USUAL),
        (hours(OFFICE, weekend=False), timedelta(hours=3), Pulse.QUIET),
        (hours({}), timedelta(days=2), Pulse.UNKNOWN),
        (hours({}), timedelta(days=8), Pulse.QUIET),
    ],
    ids=["busy", "silent", "young", "too young", "rare", "office", "nothing known", "long"],
)
def test_silence_is_judged_by_what_is_usual_at_this_time_of_the_week(
    bars: list[Bar], silent: timedelta, pulse: Pulse
) -> None:
    quiet_since = NOW - silent
    heard = [bar if bar.at <= quiet_since else Bar(bar.at, {}) for bar in bars]
    assert rhythm(heard, quiet_since, NOW).pulse is pulse


def test_an_office_is_silent_on_sundays_and_that_is_usual() -> None:
    sunday = datetime(2026, 3, 8, 14, 20, tzinfo=UTC)
    shifted = [Bar(bar.at + timedelta(days=3), bar.counts) for bar in hours({})]
    office = [
        Bar(bar.at, {"processed": 12} if bar.at.weekday() < 5 and 8 <= bar.at.hour < 18 else {}) for bar in shifted
    ]
    assert rhythm(office, datetime(2026, 3, 6, 17, 59, tzinfo=UTC), sunday).pulse is Pulse.USUAL


def test_how_often_is_usual_is_told() -> None:
    found = rhythm(hours(ALWAYS), NOW - 3 * HOUR, NOW)
    assert found == Rhythm(Pulse.QUIET, 3 * 3600, 300)
    assert rhythm([], None, NOW).pulse is Pulse.NEVER
