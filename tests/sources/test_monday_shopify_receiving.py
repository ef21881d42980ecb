"""What monday.com and Shopify hear when they send: the answer to a question, and 401 where nothing is proven."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from flask.testing import FlaskClient

from bridge.app import create_app
from bridge.config import load
from bridge.database import SqliteDatabase
from bridge.environment import Environment
from bridge.model import InboundRequest, Outcome
from bridge.sources.base import Source
from bridge.store.group_commit import GroupCommit
from bridge.store.protocol import Filter, Store
from bridge.web.tokens import make_token
from tests.sources.kit import BASE_URL, FIXTURES, HEAD, NOW, TARGET, vectors

QUESTION = vectors("monday")[0]
BY_URL = '[sources.crm]\ntype = "monday"\nboard_id = 1771812698\nproof = "url"\nrequire_token = true\n'
SECRET_KEY = "k" * 40
ACCEPTED, REFUSED = 200, 401


@dataclass
class Site:
    client: FlaskClient
    store: Store
    source: Source

    def send(self, request: InboundRequest, token: str = "") -> tuple[int, bytes]:
        path = request.url.removeprefix(BASE_URL) + (f"/{token}" if token else "")
        reply = self.client.post(path, data=request.body, headers=dict(request.headers))
        return reply.status_code, reply.data

    def kept(self) -> int:
        found = self.store.inbound_page(Filter(), None, 100).items
        return len([inbound for inbound in found if inbound.outcome is not Outcome.REFUSED])

    def token(self) -> str:
        self.store.add_token("crm", "t1", NOW)
        return make_token(SECRET_KEY, "crm", "t1")


@contextmanager
def site(folder: Path, section: str) -> Iterator[Site]:
    path = folder / "bridge.toml"
    path.write_text(f"{HEAD}{section}\n{TARGET}", "utf-8")
    config = load(path, {})
    database = SqliteDatabase(folder / "bridge.db")
    with (
        closing(database.open({name: one.lanes for name, one in config.targets.items()}, "web")) as store,
        closing(GroupCommit(store.receive, store.refuse)) as commit,
    ):
        settings = Environment(secret_key=SECRET_KEY)
        app = create_app(config, store, settings, commit=commit, ring=lambda: None, clock=lambda: NOW)
        yield Site(app.test_client(), store, config.sources["crm"].source)


def recorded(kind: str, more: str = "") -> str:
    return (FIXTURES / kind / "connection.toml").read_text("utf-8") + more


def asked(body: bytes, **headers: str) -> InboundRequest:
    return InboundRequest("POST", f"{BASE_URL}/hooks/crm", {"content-type": "application/json", **headers}, body)


def test_mondays_question_is_answered_and_nothing_of_it_is_kept(tmp_path: Path) -> None:
    with site(tmp_path, recorded("monday")) as one:
        asking = asked(QUESTION["request_body"].encode())
        assert one.send(asking) == (ACCEPTED, QUESTION["response_body"].encode())
        body = json.dumps({**json.loads(QUESTION["request_body"]), "event": {"type": "delete_pulse"}}).encode()
        assert one.send(asked(body))[0] == REFUSED
        assert one.send(one.source.sign(asked(body), NOW))[0] == ACCEPTED  # an event after all
        assert one.kept() == 1


def test_without_an_app_the_urls_token_proves_everything_and_the_question_needs_it_too(tmp_path: Path) -> None:
    with site(tmp_path, BY_URL) as one:
        question, event = asked(QUESTION["request_body"].encode()), asked(b'{"event":{"type":"x"}}')
        for token in ("", "bad"):
            assert one.send(question, token)[0] == one.send(event, token)[0] == REFUSED
        token = one.token()
        assert one.send(question, token) == (ACCEPTED, QUESTION["response_body"].encode())
        assert one.kept() == 0
        assert one.send(event, token)[0] == ACCEPTED
        assert one.kept() == 1


def test_a_token_of_mondays_names_the_whole_url_with_the_token_in_it(tmp_path: Path) -> None:
    with site(tmp_path, recorded("monday", "require_token = true")) as one:
        request, token = asked(b'{"event":{"type":"x"}}'), one.token()
        for url, status in ((f"{request.url}/{token}", ACCEPTED), ("https://elsewhere.example.com", REFUSED)):
            signed = one.source.sign(replace(request, url=url), NOW)
            assert one.send(replace(signed, url=request.url), token)[0] == status
            assert one.send(replace(signed, url=request.url))[0] == REFUSED


def test_shopify_hears_401_of_a_wrong_signature_and_200_of_all_that_is_genuine(tmp_path: Path) -> None:
    """Whoever checks an app for the topics that each must take looks for the first."""
    with site(tmp_path, recorded("shopify")) as one:
        topics = ("customers/redact", "customers/data_request", "shop/redact", "customers/update", "orders/create")
        for topic in topics:
            body = b'{"shop_id":1,"shop_domain":"acme.myshopify.com"}'
            signed = one.source.sign(asked(body, **{"x-shopify-topic": topic}), NOW)
            assert one.send(signed)[0] == ACCEPTED
            for wrong in ("AAAA", ""):
                headers = {**signed.headers, "x-shopify-hmac-sha256": wrong}
                assert one.send(replace(signed, headers=headers))[0] == REFUSED
        assert one.kept() == len(topics)
