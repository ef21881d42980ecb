"""The documentation: what it says is so, its links lead somewhere, and its commands exist."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path

import click
import pytest

from bridge.cli import COMMANDS, main
from bridge.config import load
from bridge.demo.fakes.base import Call
from bridge.expressions import _ENVIRONMENT, Expression
from bridge.model import Outcome, State, utc_now
from bridge.targets import TARGETS
from bridge.values import BadValue
from tests.following import DOCS, ROOT, code, name_of, table
from tests.platforms import open_bench, serve_platforms, signed, webhook

_spec = importlib.util.spec_from_file_location("tables", DOCS / "tables.py")
assert _spec is not None
assert _spec.loader is not None
tables = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tables)

PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


# --- rules ---------------------------------------------------------------------------------------------------

EXAMPLES = table(DOCS / "rules.md", "examples")


def gives(text: str, contact: str) -> str:
    """Return what the page says of an expression over a contact, which is written as in TOML."""
    try:
        found = Expression.compile(text, region="US").result(tomllib.loads(f"it = {{{contact}}}")["it"])
    except BadValue as error:
        return f"left out: {error}"
    if found.unknown:
        return f"not known yet: {found.unknown}"
    return f"`{json.dumps(found.value, ensure_ascii=False)}`"


@pytest.mark.parametrize(("text", "contact", "result"), EXAMPLES)
def test_an_example_of_a_rule_gives_what_the_page_says(text: str, contact: str, result: str) -> None:
    assert gives(code(text), code(contact)) == result


def test_every_filter_has_an_example() -> None:
    shown = {name for text, *_ in EXAMPLES for name in re.findall(r"\|\s*([a-z0-9_]+)", text)}
    assert shown == {name for name in _ENVIRONMENT.filters if name.isidentifier()}


# --- logs ----------------------------------------------------------------------------------------------------


LOGGING = {"log.event", "log.bug", "self._tell"}


@cache
def events() -> dict[str, set[str]]:
    """Return each event that the code logs, with the names of the facts that it may have."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "bridge").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) in LOGGING):
                continue
            if not isinstance(node.args[0], ast.Constant):  # it passes on what is named elsewhere
                continue
            name = str(node.args[0].value)
            facts = {str(keyword.arg) for keyword in node.keywords} - {"level"}
            if ast.unparse(node.func) == "log.bug":
                facts |= {"error", "trace"}
            found.setdefault(name, set()).update(facts)
    return found


def test_every_event_in_the_logs_is_documented_with_its_facts() -> None:
    rows = table(DOCS / "operating.md", "events")
    assert {code(name): set(re.findall(r"`(\w+)`", facts)) for name, facts, _ in rows} == events()
    names = [name for name, *_ in rows]
    assert names == sorted(names)


# Who and what, when and how long: nothing else may be logged. A new fact is added here after a look at its values.
IDS_AND_COUNTS = {
    "again_in_s", "by", "calls", "changed", "chore", "clean", "code", "count", "duration_ms", "error", "gone",
    "inbound", "kind", "lane", "lanes", "message", "missed", "outcome", "owner", "pid", "read_again", "reason",
    "records", "role", "seen", "source", "source_id", "state", "status", "target", "trace", "tries",
}  # fmt: skip


def test_an_event_has_ids_and_counts_only() -> None:
    assert {fact for facts in events().values() for fact in facts} <= IDS_AND_COUNTS


# --- words ---------------------------------------------------------------------------------------------------


def words(page: str) -> dict[str, str]:
    """Return what *page* says that each word means."""
    found = re.findall(r"(?m)^\| (\*\*.+\*\*) \| (.*) \|$", (DOCS / page).read_text("utf-8"))
    assert len(found) > 10
    return dict(found)


def test_a_word_has_one_meaning() -> None:
    glossary = words("glossary.md")
    for word, meaning in words("concepts.md").items():
        assert glossary[word].startswith(meaning)
    assert sorted(glossary, key=lambda word: word.strip("*")) == list(glossary)


def test_every_state_and_outcome_is_explained() -> None:
    page = (DOCS / "concepts.md").read_text("utf-8")
    for one in (*State, *Outcome):
        assert f"\n| `{one.value}` | " in page


# --- errors --------------------------------------------------------------------------------------------------


def test_every_class_of_error_is_in_the_glossary() -> None:
    parts = ["errors.py", "outbound.py", "worker.py", "targets", "pipeline"]
    files = [
        file for part in parts for file in ((ROOT / "bridge").glob(f"{part}/**/*.py" if "." not in part else part))
    ]
    raised = {name for file in files for name in re.findall(r'\bcode ?= ?"([a-z_]+)"', file.read_text("utf-8"))}
    listed = [code(name) for name, *_ in table(DOCS / "glossary.md", "errors")]
    assert listed == sorted(raised)


# --- links ---------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Return the anchors that a page's headings have on the usual hosts."""
    titles = re.findall(r"(?m)^#+ (.+)$", re.sub(r"(?s)```.*?```", "", page.read_text("utf-8")))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"(?s)```.*?```", "", page.read_text("utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{name_of(page)} links to {link}"


def test_every_page_is_found_from_the_first_one() -> None:
    listed = (DOCS / "README.md").read_text("utf-8")
    for page in DOCS.rglob("*.md"):
        name = str(page.relative_to(DOCS))
        assert name == "README.md" or f"]({name})" in listed, f"docs/README.md does not name {name}"


# --- commands ------------------------------------------------------------------------------------------------


def blocks(page: Path) -> list[str]:
    """Return the page's blocks of shell commands, with continued lines joined."""
    found: list[str] = re.findall(r"(?s)```sh\n(.*?)```", page.read_text("utf-8"))
    return [block.replace("\\\n", " ") for block in found]


def calls_of_bridge() -> Iterator[tuple[str, list[str]]]:
    """Yield every call of ``bridge`` in a block or in the text of a page, as its arguments."""
    for page in PAGES:
        inline = re.findall(r"`(bridge [^`]+)`", re.sub(r"(?s)```.*?```", "", page.read_text("utf-8")))
        for line in [line for block in blocks(page) for line in block.splitlines()] + inline:
            for call in re.findall(r"(?:^|[ /])(?:python -m )?bridge ((?:[a-z-]+)(?: [^|;&>#…]*)?)", line):
                yield name_of(page), shlex.split(call)


@pytest.mark.parametrize(("page", "arguments"), [*calls_of_bridge()])
def test_a_command_on_a_page_exists_with_its_options(page: str, arguments: list[str]) -> None:
    name, *given = arguments
    assert name in COMMANDS, f"{page} calls bridge {name}"
    command = main.get_command(click.Context(main), name)
    assert command is not None
    if isinstance(command, click.Group) and given:
        assert given[0] in command.commands, f"{page} calls bridge {' '.join(arguments)}"
        command = command.commands[given[0]]
    real = {option for parameter in command.params for option in parameter.opts}
    used = {one.partition("=")[0] for one in given if re.match(r"--?[a-z]", one)}
    assert used <= real | {"--help"}, f"{page} calls bridge {' '.join(arguments)}"


# --- what is sent --------------------------------------------------------------------------------------------


def told(calls: Iterable[Call]) -> str:
    """Return calls as the pages show them: without secrets, and with ``<id>`` for ids that a platform draws."""
    lines = []
    for call in calls:
        lines.append(f"{call.method} {call.path}")
        if call.json is not None:
            said = {**call.json} if "client_secret" not in call.json else {"grant_type": "client_credentials"}
            lines.append(f"     {json.dumps(said)}")
    uuid = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    return re.sub(uuid, "<id>", "\n".join(lines)) + "\n"


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """Return by target what was sent for a new contact, and then for another name and e-mail address."""
    folder = tmp_path_factory.mktemp("sent")
    ada = {"id": "84001", "email": "ada@example.com", "phone": "+525512340001", "name": "Ada", "surname": "King"}
    with serve_platforms() as platforms, pytest.MonkeyPatch.context() as patched:
        for name, value in platforms.environ.items():
            patched.setenv(name, value)
        with open_bench(folder, load(platforms.write_config(folder))) as bench:
            made: list[dict[str, int]] = [dict.fromkeys(platforms.fakes, 0)]
            for number, data in enumerate((ada, {**ada, "name": "Ada Augusta", "email": "ada@new.example"})):
                bench.receive(signed(bench.config, webhook("changed", data, utc_now()), f"msg_{number}"))
                bench.settle()
                made.append({name: len(fake.calls) for name, fake in platforms.fakes.items()})
        return {
            name: (told(fake.calls[: made[1][name]]), told(fake.calls[made[1][name] :]))
            for name, fake in platforms.fakes.items()
        }


TARGET_PAGES = {"marketing": "activecampaign", "sms": "sakari", "inbox": "clerk_chat", "register": "artu"}


@pytest.mark.parametrize("target", TARGET_PAGES)
def test_a_targets_page_shows_what_is_sent(target: str, sent: dict[str, tuple[str, str]]) -> None:
    page = (DOCS / "targets" / f"{TARGET_PAGES[target]}.md").read_text("utf-8")
    section = page.partition("\n## What is sent\n")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"(?s)```text\n(.*?)```", section)) == sent[target]


AROUND = """
[bridge]
public_url = "https://bridge.example.com"
[sources.hubspot]
type = "hubspot"
secrets = ["$HUBSPOT_CLIENT_SECRET"]
"""


@pytest.mark.parametrize("kind", TARGETS)
def test_the_page_of_a_target_explains_it_and_its_example_loads(kind: str, tmp_path: Path) -> None:
    text = (DOCS / "targets" / f"{kind}.md").read_text("utf-8")
    for heading in ("What to click", "Fields", "Opt-outs", "What is sent", "Limits", "Traps"):
        assert re.search(rf"(?m)^## .*{heading}", text, re.IGNORECASE), f"{kind}.md has nothing about {heading}"
    for setting in fields(TARGETS[kind].settings):
        assert re.search(rf"(?m)^\| .*`{setting.name}`", text), f"{kind}.md does not explain {setting.name}"
    (example,) = re.findall(r"(?s)```toml\n(.*?)```", text)
    path = tmp_path / "bridge.toml"
    path.write_text(AROUND + example)
    environ = {name: f"https://{name.lower()}.example" for name in re.findall(r"\$([A-Z_]+)", AROUND + example)}
    (route,) = load(path, environ).routes
    assert route.target in tomllib.loads(example)["targets"]


# --- the pages -----------------------------------------------------------------------------------------------


def test_every_page_of_the_menu_and_every_key_is_explained() -> None:
    text = (DOCS / "pages.md").read_text("utf-8")
    frame = (ROOT / "templates" / "base.html").read_text("utf-8")
    menu = re.findall(r'ui\.nav\("([^"]+)", "([^"]+)"', frame)
    assert len(menu) > 5
    for path, title in menu:
        section = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        assert section.startswith(f"\n`{path}` "), f"docs/pages.md does not explain {title}"
    keys = re.findall(r"<dt>(.+?)</dt><dd>(.+?)</dd>", frame)
    shown = [(re.findall(r"<kbd>(.+?)</kbd>", names), what) for names, what in keys]
    assert [(re.findall(r"`(.+?)`", names), what) for names, what in table(DOCS / "pages.md", "keys")] == shown


@pytest.mark.parametrize("path", tables.PAGES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_tables_say_what_sources_declare(path: Path) -> None:
    page = path.read_text("utf-8")
    assert tables.renewed(page) == page, "run: make tables"
