"""What happens in the demo, told in order. Each part ends with looking whether it came out as it should."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from bridge.demo.people import TARGETS, Held, Person, held
from bridge.demo.screen import Screen
from bridge.demo.stage import DemoFailed, Stage
from bridge.model import State, iso, utc_now

EDITS = 25
BUSY = {State.PENDING.value, State.SENDING.value, State.RETRYING.value, State.HELD.value}
FOREVER = 1_000_000


def cast() -> dict[str, Person]:
    """Return everybody, by first name, with what is to have become of them in the end."""
    opted_out, waiting, removed = State.OPTED_OUT, State.WAITING, State.REMOVED
    everybody = (
        Person("hubspot", "Ada", "Lovelace", "+14155550123"),
        Person("hubspot", "Grace", "Hopper", "+14155550124"),
        Person("hubspot", "Alan", "Turing", expected={"sms": waiting}),
        Person("hubspot", "Katherine", "Johnson", "+14155550126", expected=dict.fromkeys(TARGETS, opted_out)),
        Person(
            "hubspot",
            "Mary",
            "Jackson",
            "+14155550127",
            expected={"marketing": removed, "sms": removed, "inbox": waiting, "register": removed},
        ),
        Person("hubspot", "Annie", "Easley", "+14155550128", expected={"sms": waiting}),
        Person("hubspot", "Joan", "Clarke", "+14155550129", expected={"inbox": State.AMBIGUOUS}),
        Person("shop", "Dorothy", "Vaughan", "+14155550131", id="5001"),
        Person("shop", "Hedy", "Lamarr", "+14155550132", id="5002", expected={"sms": opted_out}),
    )
    return {person.first: person for person in everybody}


@dataclass
class Story:
    """The demo under way."""

    stage: Stage
    screen: Screen
    people: dict[str, Person] = field(default_factory=cast)
    failures: list[str] = field(default_factory=list)

    def play(self) -> None:
        """Let everything happen. What is not as it should be is in *failures* afterwards."""
        for part in (
            self.people_are_added,
            self.customers_sign_up,
            self.strangers_knock,
            self.edits_come_in_a_burst,
            self.somebody_says_stop,
            self.a_platform_is_down,
            self.a_key_is_refused,
            self.the_worker_is_killed,
            self.an_old_webhook_comes_late,
            self.somebody_is_deleted,
            self.the_end,
        ):
            try:
                part()
            except DemoFailed as failure:
                self.check(False, str(failure))
                return  # what follows builds on it

    def watch(self, pause_s: float) -> None:
        """Show how things stand, people included who came in by hand, and wait a little."""
        for one in self.stage.api("GET", "/contacts?limit=200")["items"]:
            if not any((one["source"], one["source_id"]) == (p.source, p.id) for p in self.people.values()):
                first, last = (
                    one["fields"].get(name, {}).get("value") or "" for name in ("firstname", "lastname")
                )
                self.people[f"{one['source']}/{one['source_id']}"] = Person(
                    one["source"], str(first).strip(), str(last).strip(), id=one["source_id"]
                )
        self._look()
        time.sleep(pause_s)

    # --- the parts ---

    def people_are_added(self) -> None:
        self.screen.title("1. Seven people are added in HubSpot. Its webhook holds only their ids.")
        # Somebody made a mess in the inbox before: two contacts with Joan's number.
        for name in ("Joan C.", "J. Clarke"):
            self.stage.platforms.inbox.add(name=name, phone=self.people["Joan"].phone)
        events = []
        for person in self._of("hubspot"):
            more = {"Alan": {"phone": "ask at the desk"}, "Annie": {"lifecyclestage": "lead"}}.get(
                person.first, {}
            )
            properties = {
                "firstname": f" {person.first} ",
                "lastname": person.last,
                "email": person.email.upper(),
                "phone": person.phone,
                "lifecyclestage": "customer",
                "tier": "1",
                "city": "London",
                "hs_email_optout": "false",
                **more,
            }
            created = self.stage.platforms.hubspot.create(**properties)
            person.id = str(created[0]["objectId"])
            events.append(created[0])
        self._hubspot(events)
        early: dict[str, dict[str, State]] = {"Katherine": {}, "Mary": {}}
        self._arrive(self._of("hubspot"), early)
        wrong = self._wrong(self._of("hubspot"))
        self.check(
            not wrong, f"bridge read the rest from HubSpot, tidied it, and every platform holds it{_but(wrong)}"
        )

    def customers_sign_up(self) -> None:
        self.screen.title("2. Two customers sign up in the shop. One of them texted STOP to Sakari last year.")
        hedy = self.people["Hedy"]
        self.stage.platforms.sms.add(hedy.phone, "US")
        self.stage.platforms.sms.stop(hedy.phone)
        for person in self._of("shop"):
            self._shop(person)
        self._arrive(self._of("shop"))
        self.check(
            self._held("sms", hedy).opted_out and not self.stage.platforms.sms.loosened(),
            "what Sakari knows of the STOP was kept: no write of bridge's ever lifts one",
        )

    def strangers_knock(self) -> None:
        self.screen.title("3. A webhook is changed on its way, and another one comes twice.")
        before = self._totals()
        body = self._shop_body(self.people["Dorothy"])
        self.check(
            self.stage.post("shop", body, tamper=True).status_code == 401, "the changed one is refused with 401"
        )
        first = self.stage.post("shop", body, message_id="msg_twice").json()["status"]
        again = self.stage.post("shop", body, message_id="msg_twice").json()["status"]
        self.check((first, again) == ("accepted", "duplicate"), "the second of two equal ones is a duplicate")
        self._quiet()
        self.check(self._totals() == before, "no platform was called for any of it: nobody changed")

    def edits_come_in_a_burst(self) -> None:
        grace = self.people["Grace"]
        self.screen.title(f"4. Grace's city is edited {EDITS} times in a second.")
        before = self._totals()
        pushes = self._pushes(grace)
        events = []
        for number in range(EDITS):
            events += self.stage.platforms.hubspot.change(grace.id, city=f"City {number + 1}")
        self._hubspot(events)
        self._sees("Sakari has the last city", lambda: self._city(grace) == f"City {EDITS}")
        self._quiet()
        made = {target: count - pushes[target] for target, count in self._pushes(grace).items()}
        self.check(
            made["sms"] == made["inbox"] == 1, f"{EDITS} edits were one push to Sakari and one to Clerk Chat"
        )
        after = self._totals()
        self.check(
            all(after[target] == before[target] for target in ("marketing", "register")),
            "ActiveCampaign and Artu take no city, and were not called at all",
        )

    def somebody_says_stop(self) -> None:
        katherine = self.people["Katherine"]
        self.screen.title("5. Katherine opts out.")
        self._hubspot(self.stage.platforms.hubspot.change(katherine.id, hs_email_optout="true"))
        self._arrive([katherine])
        self.check(
            self._held("sms", katherine).opted_out and self._held("marketing", katherine).opted_out,
            "Sakari has her blocked, ActiveCampaign unsubscribed; for the others it says what a person must do",
        )

    def a_platform_is_down(self) -> None:
        ada = self.people["Ada"]
        self.screen.title(f"6. Sakari is down with 503 while Ada's city changes {EDITS} times and her name once.")
        trouble = self.stage.platforms.sms.trouble(status=503, times=FOREVER)
        pushes = self._pushes(ada, only_good=True)
        for number in range(EDITS):
            self._hubspot(self.stage.platforms.hubspot.change(ada.id, city=f"Town {number + 1}"))
        ada.last = "King"
        self._hubspot(self.stage.platforms.hubspot.change(ada.id, lastname=ada.last))
        others = [target for target in TARGETS if target != "sms"]
        self._sees("the others have the new name", lambda: all(self._right(ada, target) for target in others))
        self._sees("Sakari is tried again", lambda: self._state(ada, "sms") == State.RETRYING)
        self.check(True, "the other three got the new name at once; for Sakari it is retried")
        trouble.times = 0
        self.screen.tell("Sakari is back.")
        self._arrive([ada])
        good = self._pushes(ada, only_good=True)["sms"] - pushes["sms"]
        self.check(
            good == 1 and self._right(ada, "sms") and self._city(ada) == f"Town {EDITS}",
            f"{EDITS + 1} edits were one push, with the last state",
        )

    def a_key_is_refused(self) -> None:
        dorothy = self.people["Dorothy"]
        self.screen.title("7. Clerk Chat refuses bridge's key while Dorothy marries.")
        trouble = self.stage.platforms.inbox.trouble(status=401, body={"message": "no"}, times=FOREVER)
        dorothy.last = "Vaughan-Smith"
        self._shop(dorothy)
        self._sees("her delivery is held", lambda: self._state(dorothy, "inbox") == State.HELD)
        self.check(True, "the target is held, with the reason; nothing is lost, and nothing is hammered")
        trouble.times = 0
        self.stage.api("POST", "/targets/inbox/resume", {"reason": "the key was mended"})
        self.screen.tell("Somebody mends the key and resumes the target.")
        self._arrive([dorothy])
        self.check(self._right(dorothy, "inbox"), "what was held is delivered")

    def the_worker_is_killed(self) -> None:
        self.screen.title("8. The worker is killed (kill -9) right after three more edits came in.")
        before = self.stage.worker_pid()
        edited = [self.people[name] for name in ("Ada", "Grace", "Annie")]
        for person in edited:
            person.last = f"{person.last.split('-')[0]}-Byron"
            self._hubspot(self.stage.platforms.hubspot.change(person.id, lastname=person.last))
        if before:
            os.kill(before, signal.SIGKILL)
        self._sees("another worker runs", lambda: self.stage.worker_pid() not in {before, None})
        self._sees(
            "every edit has arrived",
            lambda: not self._wrong(edited),
        )
        self._arrive(edited)
        self.check(True, "a new one took over, and every edit is in every platform")

    def an_old_webhook_comes_late(self) -> None:
        grace = self.people["Grace"]
        self.screen.title("9. A webhook from an hour ago comes late: Grace under another name.")
        before = self._totals()
        event = self.stage.platforms.hubspot.change(grace.id, lastname=grace.last)[0]
        an_hour_ago = utc_now() - timedelta(hours=1)
        epoch = datetime(1970, 1, 1, tzinfo=UTC)
        late = {
            **event,
            "propertyValue": "Murray",
            "occurredAt": int((an_hour_ago - epoch).total_seconds() * 1000),
        }
        self._hubspot([late])
        self._quiet()
        self.check(
            all(self._right(grace, target) for target in TARGETS) and self._totals() == before,
            "it changes nothing: an older value never overwrites a newer one",
        )

    def somebody_is_deleted(self) -> None:
        mary = self.people["Mary"]
        self.screen.title("10. Mary is deleted in HubSpot.")
        self._hubspot(self.stage.platforms.hubspot.delete(mary.id))
        self._arrive([mary])
        self.check(
            self._held("marketing", mary) == self._held("sms", mary) == Held(),
            "she is gone where the route says remove, and kept where it says keep",
        )

    def the_end(self) -> None:
        self.screen.title("How everybody stands, looked up in the platforms themselves:")
        deliveries = self._look()
        for person in self.people.values():
            self.screen.tell("")
            self.screen.tell(f"{person.name} ({person.source} {person.id})")
            for target in TARGETS:
                found = deliveries.get((target, person.source, person.id), {})
                state = found.get("state", "nothing")
                self.screen.tell(f"  {target:9}  {state:9}  {self._held(target, person)}")
                if state != State.SYNCED:
                    self.screen.tell(f"  {'':9}  {'':9}  {found.get('reason', '')}")
        self.screen.title("Does it add up?")
        self._add_up(deliveries)

    def _add_up(self, deliveries: Mapping[tuple[str, str, str], Mapping[str, Any]]) -> None:
        """Compare everything with what is to have become of it."""
        pairs = [(person, target) for person in self.people.values() for target in TARGETS]
        wrong = [
            f"{person.name} in {target}"
            for person, target in pairs
            if deliveries.get((target, person.source, person.id), {}).get("state") != person.state_in(target)
        ]
        synced = sum(person.state_in(target) is State.SYNCED for person, target in pairs)
        self.check(
            not wrong,
            f"of {len(pairs)} pairs of contact and platform {synced} are synced, {len(pairs) - synced} are not, "
            f"as expected{_but(wrong)}",
        )
        self.check(all(one["reason"].strip() for one in deliveries.values()), "every state says why it is so")
        differ = self._wrong(self.people.values())
        self.check(not differ, f"what the platforms hold of synced contacts is what the CRM says{_but(differ)}")
        platforms = self.stage.platforms
        loosened = [*platforms.marketing.loosened, *platforms.sms.loosened()]
        self.check(not loosened, "no call loosened an opt-out")
        twice = [target for target, count in self._counts().items() if count[0] != count[1]]
        self.check(not twice, f"no platform has anybody twice{_but(twice)}")

    # --- doing ---

    def _hubspot(self, events: Iterable[Mapping[str, Any]]) -> None:
        self._post("hubspot", self.stage.platforms.hubspot.webhook([dict(event) for event in events]))

    def _shop(self, person: Person) -> None:
        self._post("shop", self._shop_body(person))

    def _shop_body(self, person: Person) -> bytes:
        data = {
            "id": person.id,
            "email": person.email,
            "phone": f"({person.phone[2:5]}) {person.phone[5:8]}-{person.phone[8:]}",
            "firstname": person.first,
            "lastname": person.last,
            "wants_news": "yes",
        }
        return json.dumps({"type": "contact.updated", "timestamp": iso(utc_now()), "data": data}).encode()

    def _post(self, source: str, body: bytes) -> None:
        reply = self.stage.post(source, body)
        if reply.status_code != 200:
            raise DemoFailed(f"Bridge answered a genuine webhook with HTTP {reply.status_code}.")

    # --- looking ---

    def check(self, ok: bool, text: str) -> None:
        self.screen.checked(ok, text)
        if not ok:
            self.failures.append(text)

    def _of(self, source: str) -> list[Person]:
        return [person for person in self.people.values() if person.source == source]

    def _look(self) -> dict[tuple[str, str, str], dict[str, Any]]:
        """Return every delivery by its target, source and source id, and show them."""
        deliveries = self.stage.deliveries()
        self.screen.show(list(self.people.values()), deliveries)
        return {(one["target"], one["source"], one["source_id"]): one for one in deliveries}

    def _state(self, person: Person, target: str) -> str:
        state: str = self._look().get((target, person.source, person.id), {}).get("state", "")
        return state

    def _sees(self, what: str, look: Callable[[], bool]) -> None:
        def look_and_show() -> bool:
            self._look()
            return look()

        self.stage.wait(what, look_and_show)

    def _arrive(self, people: Sequence[Person], instead: Mapping[str, Mapping[str, State]] | None = None) -> None:
        """Wait until *people* are in the state that is expected of them in the end, or that *instead* says."""
        wanted = {
            (target, person.source, person.id): (instead or {})
            .get(person.first, person.expected)
            .get(target, State.SYNCED)
            for person in people
            for target in TARGETS
        }

        def arrived() -> bool:
            found = self._look()
            return all(found.get(key, {}).get("state") == state for key, state in wanted.items())

        names = " and ".join(person.first for person in people) if len(people) < 3 else "everybody"
        try:
            self.stage.wait(f"{names} in the expected states", arrived)
        except DemoFailed as failure:
            found = self._look()
            lines = [
                f"{target} {source}/{source_id}: {one.get('state')}, not {state}. {one.get('reason')}"
                for (target, source, source_id), state in wanted.items()
                if (one := found.get((target, source, source_id), {})).get("state") != state
            ]
            raise DemoFailed("\n".join([*lines, str(failure)])) from failure

    def _quiet(self) -> None:
        """Wait until nothing is to be done."""

        def done() -> bool:
            status = self.stage.api("GET", "/status")
            waiting = sum(source["unprocessed"] for source in status["sources"])
            return not waiting and not any(one["state"] in BUSY for one in self._look().values())

        self.stage.wait("nothing is to be done", done)

    def _held(self, target: str, person: Person) -> Held:
        return held(self.stage.platforms, target, person)

    def _wrong(self, people: Iterable[Person]) -> list[str]:
        """Return where *people* should be synced and the platform does not hold what the CRM says."""
        return [
            f"{person.name} in {target}"
            for person in people
            for target in TARGETS
            if person.state_in(target) is State.SYNCED and not self._right(person, target)
        ]

    def _right(self, person: Person, target: str) -> bool:
        """Say whether the platform holds what the CRM says of the person."""
        name = person.first if target == "register" else person.name  # Artu keeps the names of a client apart
        return self._held(target, person) == Held(name, person.email, person.phone)

    def _city(self, person: Person) -> str:
        found = self.stage.platforms.sms.person(person.phone) or {"attributes": {}}
        return str(found["attributes"].get("city", ""))

    def _totals(self) -> dict[str, int]:
        """Return how many calls each platform got so far."""
        platforms = self.stage.platforms
        fakes = zip(
            TARGETS, (platforms.marketing, platforms.sms, platforms.inbox, platforms.register), strict=True
        )
        return {target: len(fake.made()) for target, fake in fakes}

    def _pushes(self, person: Person, *, only_good: bool = False) -> dict[str, int]:
        """Return how many pushes of the person each target got, by the audit log."""
        entries = self.stage.api(
            "GET", f"/audit?kind=delivery&source={person.source}&source_id={person.id}&limit=200"
        )["items"]
        return {
            target: sum(one["target"] == target and not (only_good and one["error"]) for one in entries)
            for target in TARGETS
        }

    def _counts(self) -> dict[str, tuple[int, int]]:
        """Return for each platform how many contacts it has, and how many it should have."""
        platforms = self.stage.platforms
        return {
            "marketing": (len(platforms.marketing.people()), 8),
            "sms": (len(platforms.sms.contacts), 6),
            "inbox": (len(platforms.inbox.contacts), 10),
            "register": (len(platforms.register.registers["test"].clients), 9),
        }


def _but(names: Sequence[str]) -> str:
    return f", but not: {', '.join(names)}" if names else ""
