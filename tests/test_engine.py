"""The embedded engine keeps the contract; its lock and its bell work between processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from bridge.engine.bell import Bell, bell_path
from bridge.engine.embedded import EmbeddedEngine, WorkerLock
from bridge.engine.protocol import Chore
from bridge.errors import ConfigError
from tests.engine_contract import PATIENCE_S, EngineContract, Lanes, MakeEngine

FAST_S = (0.01, 0.04)


class TestEmbeddedEngine(EngineContract):
    @pytest.fixture
    def make_engine(self) -> Iterator[MakeEngine]:
        made: list[EmbeddedEngine] = []

        def make() -> EmbeddedEngine:
            made.append(EmbeddedEngine(lambda lane, error: None, backoff_s=FAST_S, chore_backoff_s=FAST_S))
            return made[-1]

        yield make
        for engine in made:
            assert engine.stop(PATIENCE_S)


# --- failures and stacks ---------------------------------------------------------------------------------


def test_failures_are_told_and_the_pauses_grow_to_a_bound() -> None:
    told: list[tuple[str, str]] = []
    lanes = Lanes()

    def fail(lane: str) -> datetime | None:
        raise ValueError(f"no. {len(told)}")

    lanes.does = fail
    engine = EmbeddedEngine(lambda lane, error: told.append((lane, str(error))), backoff_s=(0.02, 0.08))
    engine.start(["a"], lanes.run)
    moments = [lanes.wait_for("a", count) for count in range(1, 6)]
    # A wake does not make a lane that fails run hot.
    engine.wake(["a"])
    assert engine.stop(PATIENCE_S)
    pauses_s = [(later - earlier).total_seconds() for earlier, later in pairwise(moments)]
    assert all(pause_s >= least_s for pause_s, least_s in zip(pauses_s, [0.02, 0.04, 0.08, 0.08], strict=True))
    assert told[:2] == [("a", "no. 0"), ("a", "no. 1")]


def test_a_lane_survives_a_broken_reporter() -> None:
    lanes = Lanes()

    def broken(lane: str, error: Exception) -> None:
        raise OSError("nowhere to write to")

    def fail(lane: str) -> datetime | None:
        raise ValueError("broken")

    lanes.does = fail
    engine = EmbeddedEngine(broken, backoff_s=FAST_S)
    engine.start(["a"], lanes.run)
    lanes.wait_for("a", 3)
    assert engine.stop(PATIENCE_S)


def test_a_lane_has_stack_enough_for_the_deepest_json() -> None:
    told: list[str] = []
    lanes = Lanes()

    def parse(lane: str) -> datetime | None:
        json.loads("[" * 100_000)
        return None

    lanes.does = parse
    engine = EmbeddedEngine(lambda lane, error: told.append(type(error).__name__), backoff_s=FAST_S)
    engine.start(["a"], lanes.run)
    lanes.wait_for("a", 2)
    assert engine.stop(PATIENCE_S)
    assert set(told) == {"RecursionError"}


def test_failures_of_chores_are_told_by_name_and_their_pauses_grow_to_a_bound() -> None:
    told: list[tuple[str, str]] = []
    moments: list[float] = []
    enough = threading.Event()

    def fail() -> bool:
        moments.append(time.monotonic())
        if len(moments) == 5:
            enough.set()
        raise ValueError("broken")

    engine = EmbeddedEngine(
        lambda lane, error: None,
        chore_failed=lambda name, error: told.append((name, str(error))),
        chore_backoff_s=(0.02, 0.08),
    )
    engine.start([], lambda lane: None, [Chore("prune", 3600, fail)])
    assert enough.wait(PATIENCE_S)
    assert engine.stop(PATIENCE_S)
    pauses_s = [later - earlier for earlier, later in pairwise(moments)]
    assert all(pause_s >= least_s for pause_s, least_s in zip(pauses_s[:4], [0.02, 0.04, 0.08, 0.08], strict=True))
    assert told[0] == ("prune", "broken")


# --- the one worker --------------------------------------------------------------------------------------


def test_a_second_worker_is_refused_and_told_the_way_out(tmp_path: Path) -> None:
    database = tmp_path / "bridge.db"
    with WorkerLock(database):
        with pytest.raises(ConfigError, match="PostgreSQL") as refused:
            WorkerLock(database)
        assert f"process {os.getpid()}" in str(refused.value)
    with WorkerLock(database):
        pass


def test_the_lock_ends_with_the_process_that_had_it(tmp_path: Path) -> None:
    database = tmp_path / "bridge.db"
    script = """
        import sys; from pathlib import Path; from bridge.engine.embedded import WorkerLock
        lock = WorkerLock(Path(sys.argv[1]))
        print("locked", flush=True)
        sys.stdin.read()
        """
    command = [sys.executable, "-c", textwrap.dedent(script), str(database)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ConfigError, match=f"process {other.pid}"):
            WorkerLock(database)
        other.kill()
    with WorkerLock(database):
        pass


def test_a_forked_child_neither_has_nor_keeps_the_lock(tmp_path: Path) -> None:
    database = tmp_path / "bridge.db"
    lock = WorkerLock(database)
    go_on, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(tell)
        os.read(go_on, 1)
        os._exit(0)
    os.close(go_on)
    with pytest.raises(ConfigError):
        WorkerLock(database)
    lock.release()
    with WorkerLock(database):  # though the child still lives
        pass
    os.close(tell)
    os.waitpid(child, 0)


def test_a_lock_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder"):
        WorkerLock(tmp_path / "nowhere" / "bridge.db")


# --- the bell --------------------------------------------------------------------------------------------


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    return bell_path(tmp_path / "bridge.db")


def test_a_bell_without_a_listener_rings_unheard(pipe: Path) -> None:
    Bell(pipe).ring()
    assert not pipe.exists()


def test_a_ring_is_heard_and_heard_once(pipe: Path) -> None:
    with closing(Bell(pipe)) as bell:
        assert not bell.wait(0)
        Bell(pipe).ring()
        Bell(pipe).ring()
        assert bell.wait(PATIENCE_S)
        assert not bell.wait(0)


def test_a_ring_wakes_at_once(pipe: Path) -> None:
    heard: list[bool] = []
    with closing(Bell(pipe)) as bell:
        assert not bell.wait(0)
        listener = threading.Thread(target=lambda: heard.append(bell.wait(PATIENCE_S)))
        listener.start()
        began = time.monotonic()
        Bell(pipe).ring()
        listener.join()
        assert heard == [True]
        assert time.monotonic() - began < PATIENCE_S / 2


def test_more_rings_than_the_pipe_holds_are_one(pipe: Path) -> None:
    with closing(Bell(pipe)) as bell:
        assert not bell.wait(0)
        writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(writer, b"\x00" * 4096)
        os.close(writer)
        Bell(pipe).ring()
        assert bell.wait(PATIENCE_S)
        assert not bell.wait(0)


def test_a_ring_from_another_process(pipe: Path) -> None:
    with closing(Bell(pipe)) as bell:
        assert not bell.wait(0)
        script = "import sys, pathlib; from bridge.engine.bell import Bell; Bell(pathlib.Path(sys.argv[1])).ring()"
        subprocess.run([sys.executable, "-c", script, pipe], check=True, cwd=Path(__file__).parent.parent)
        assert bell.wait(PATIENCE_S)


def test_closing_ends_a_wait(pipe: Path) -> None:
    bell = Bell(pipe)
    assert not bell.wait(0)
    heard: list[bool] = []
    listener = threading.Thread(target=lambda: heard.append(bell.wait(PATIENCE_S)))
    listener.start()
    bell.close()
    listener.join(PATIENCE_S / 2)
    assert heard == [False]
    assert not bell.wait(PATIENCE_S)


def test_a_pipe_of_an_earlier_worker_is_used_again(pipe: Path) -> None:
    with closing(Bell(pipe)) as bell:
        assert not bell.wait(0)
    Bell(pipe).ring()  # nobody is there
    with closing(Bell(pipe)) as bell:
        assert not bell.wait(0)
        Bell(pipe).ring()
        assert bell.wait(PATIENCE_S)


def test_where_no_pipe_is_possible_the_worker_looks_around_by_itself(
    pipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.engine.bell.POLL_S", 0.01)
    pipe.write_bytes(b"a file stands in its place")
    bell = Bell(pipe)
    assert bell.wait(PATIENCE_S)
    assert not bell.wait(0.001)
    bell.ring()
    assert pipe.read_bytes() == b"a file stands in its place"
    bell.close()
    assert not bell.wait(PATIENCE_S)
    assert Bell(pipe.parent / "nowhere" / "bell").wait(PATIENCE_S)
