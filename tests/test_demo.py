"""The demo is the first thing that anybody sees of bridge: it must come out right, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.store.protocol import Filter
from bridge.store.sqlite import SqliteStore
from tests.following import Terminal, marked, open_terminal
from tests.processes import until

DEMO = [sys.executable, "-m", "bridge", "demo"]
PATIENCE_S = (
    240  # the demo takes some 15 seconds on an idle machine, and gives up by itself on anything that hangs
)


def shown_in_readme() -> set[str]:
    """Return the lines of the demo's output that README.md quotes."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    excerpt = text.partition("```\n1. ")[2].partition("```")[0]
    quoted = {line for line in f"1. {excerpt}".splitlines() if line not in {"", "..."}}
    assert len(quoted) > 30
    return quoted


def descendants() -> set[int]:
    """Return the processes of any demo that runs in our temporary folder, by their environment."""
    mark = f"DATABASE_URL=sqlite:///{tempfile.gettempdir()}/".encode()
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes() and b"bridge" in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for everything temporary, so that what is left behind is seen."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    for name in ("BRIDGE_CONFIG", "DATABASE_URL", "PORT", "PUBLIC_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_it_comes_out_right_and_leaves_nothing_behind(folder: Path) -> None:
    done = subprocess.run([*DEMO, "--once"], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "FAIL" not in done.stdout
    assert sum(line.startswith("ok  ") for line in lines) >= 15
    assert shown_in_readme() - set(lines) == set(), "README.md quotes what the demo does not say any more"
    assert lines[-1] == "Everything came out as it should."
    assert "\x1b" not in done.stdout  # no colours where no terminal is
    assert list(folder.iterdir()) == []
    assert descendants() == set()


@contextlib.contextmanager
def on_a_terminal() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run the demo on a terminal of its own; give the process and our end of it."""
    ours, theirs = pty.openpty()
    running = subprocess.Popen(DEMO, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    try:
        yield running, ours
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        os.close(ours)


def read_until(terminal: int, wanted: bytes) -> bytes:
    """Return what the terminal shows, up to *wanted*."""
    shown = b""
    deadline = time.monotonic() + PATIENCE_S
    while wanted not in shown:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, shown.decode("utf-8", "replace")[-3000:]
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # Linux says so when the other end is closed
            raise AssertionError(shown.decode("utf-8", "replace")[-3000:]) from None
    return shown


def test_on_a_terminal_it_stays_for_the_person_who_looks_on(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """That person follows docs/quickstart.md, and then makes a backup, as docs/operating.md says."""
    home = tmp_path_factory.mktemp("home")
    with on_a_terminal() as (running, terminal):
        shown = read_until(terminal, b"It keeps running until you press Ctrl-C")
        assert b"Everything came out as it should." in shown
        shown += read_until(terminal, b"The first line sets variables")
        stage = next(folder.glob("bridge-demo-*"))
        command = f"{sys.executable} -m bridge send shop {stage}/customer.json"
        assert command.encode() in shown  # in one line, however narrow the terminal
        by_hand = f". {stage}/env && {command}"
        sent = subprocess.run(["/bin/sh", "-c", by_hand], capture_output=True, text=True, timeout=60)
        assert sent.returncode == 0, sent.stderr
        assert '"accepted"' in sent.stdout
        read_until(terminal, b"Your Name (shop)")
        with open_terminal(home, TMPDIR=str(folder)) as second:
            second.follow("quickstart.md")
            take_home(second, stage, home)
        running.send_signal(signal.SIGINT)
        running.send_signal(signal.SIGINT)  # impatience changes nothing
        read_until(terminal, b"everything was taken away")
        assert running.wait(60) == 0
    assert list(folder.iterdir()) == []
    assert descendants() == set()


def take_home(terminal: Terminal, stage: Path, home: Path) -> None:
    """Back the demo's database up while bridge runs, and restore it elsewhere, as docs/operating.md says."""
    back_up, restore = (block for block, _ in marked("operating.md"))
    terminal.type(f"ln -s {stage} data")
    terminal.type(back_up)
    terminal.type("rm data; export DATABASE_URL=sqlite:///data/bridge.db")
    assert "up to date" in terminal.type(restore)
    with contextlib.closing(SqliteStore(home / "data" / "bridge.db", {})) as restored:
        found = restored.delivery_page(Filter(state="opted_out", source_id="7001"), None, 10).items
    assert {one.target for one in found} == {"marketing", "sms", "inbox", "register"}


def test_ctrl_c_before_the_end_is_no_success(folder: Path) -> None:
    with on_a_terminal() as (running, terminal):
        read_until(terminal, b"1. Seven people")
        running.send_signal(signal.SIGINT)
        read_until(terminal, b"everything was taken away")
        assert running.wait(60) == 130
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux's kernel ends the children of a killed process")
def test_nothing_runs_on_when_the_demo_is_killed(folder: Path) -> None:
    with on_a_terminal() as (running, terminal):
        read_until(terminal, b"1. Seven people")
        assert descendants()
        running.kill()
        running.wait()
        until(lambda: descendants() == set(), what="the end of bridge")
