"""What every engine promises: each implementation runs all of this by having a subclass with its `make_engine`."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from bridge.engine.protocol import Chore, Engine
from bridge.model import utc_now

PATIENCE_S = 15.0
SOON = timedelta(milliseconds=50)
LATE = timedelta(hours=1)

MakeEngine = Callable[[], Engine]


class Lanes:
    """A `Run` that keeps count, and does what a test wants of it."""

    def __init__(self) -> None:
        self.began: list[tuple[str, datetime]] = []
        self.changed = threading.Condition()
        self.under_way: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.does: Callable[[str], datetime | None] = lambda lane: None

    def run(self, lane: str) -> datetime | None:
        with self.changed:
            self.began.append((lane, utc_now()))
            self.under_way[lane] += 1
            self.most[lane] = max(self.most[lane], self.under_way[lane])
            self.changed.notify_all()
        try:
            return self.does(lane)
        finally:
            with self.changed:
                self.under_way[lane] -= 1
                self.changed.notify_all()

    def runs(self, lane: str) -> int:
        return sum(name == lane for name, _ in self.began)

    def wait_for(self, lane: str, runs: int) -> datetime:
        """Wait until *lane* ran that often; return when the last of these began."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.runs(lane) >= runs, PATIENCE_S), self.began
            return [moment for name, moment in self.began if name == lane][runs - 1]

    def wait_until_idle(self) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: not any(self.under_way.values()), PATIENCE_S)


class Done:
    """What a chore does: it keeps count, and says that there is more to do until it was done *needed* times."""

    def __init__(self, needed: int = 1, failures: int = 0) -> None:
        self.times = 0
        self.under_way = 0
        self.most = 0
        self.changed = threading.Condition()
        self.hold = threading.Event()
        self.hold.set()
        self._needed = needed
        self._failures = failures

    def __call__(self) -> bool:
        with self.changed:
            self.times += 1
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            self.changed.notify_all()
        assert self.hold.wait(PATIENCE_S)
        with self.changed:
            self.under_way -= 1
            if self.times <= self._failures:
                raise ValueError("broken")
            return self.times < self._needed

    def wait_for(self, times: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.times >= times, PATIENCE_S), self.times


def wait_for(event: threading.Event, only: str = "") -> Callable[[str], datetime | None]:
    """Return what a lane does that stands still until *event*; other lanes than *only* do not, if it is given."""

    def does(lane: str) -> None:
        if only in {"", lane}:
            assert event.wait(PATIENCE_S)

    return does


class EngineContract:
    """Subclasses have a fixture `make_engine`, which stops what it made."""

    @pytest.fixture
    def engine(self, make_engine: MakeEngine) -> Engine:
        return make_engine()

    @pytest.fixture
    def lanes(self) -> Lanes:
        return Lanes()

    def test_every_lane_runs_once_at_the_start(self, engine: Engine, lanes: Lanes) -> None:
        engine.start(["a", "b", "c"], lanes.run)
        for lane in ("a", "b", "c"):
            lanes.wait_for(lane, 1)
        assert engine.stop(PATIENCE_S)
        assert sorted(lane for lane, _ in lanes.began) == ["a", "b", "c"]

    def test_a_lane_runs_when_it_is_woken(self, engine: Engine, lanes: Lanes) -> None:
        engine.start(["a", "b"], lanes.run)
        lanes.wait_for("a", 1)
        lanes.wait_for("b", 1)
        lanes.wait_until_idle()
        engine.wake(["b", "unknown"])
        lanes.wait_for("b", 2)
        assert lanes.runs("a") == 1

    def test_a_lane_runs_at_the_moment_it_is_woken_for(self, engine: Engine, lanes: Lanes) -> None:
        engine.start(["a"], lanes.run)
        lanes.wait_for("a", 1)
        when = utc_now() + SOON
        engine.wake(["a"], when)
        assert lanes.wait_for("a", 2) >= when

    def test_a_lane_runs_again_when_it_asks_for_it(self, engine: Engine, lanes: Lanes) -> None:
        asked: list[datetime] = []

        def again(lane: str) -> datetime | None:
            if len(asked) == 3:
                return None
            asked.append(utc_now() + SOON)
            return asked[-1]

        lanes.does = again
        engine.start(["a"], lanes.run)
        assert lanes.wait_for("a", 4) >= asked[2]

    def test_a_wake_for_now_is_not_swallowed_by_one_for_later(self, engine: Engine, lanes: Lanes) -> None:
        lanes.does = lambda lane: utc_now() + LATE
        engine.start(["a"], lanes.run)
        lanes.wait_for("a", 1)
        lanes.wait_until_idle()
        engine.wake(["a"], utc_now() + LATE)
        engine.wake(["a"])
        lanes.wait_for("a", 2)
        lanes.wait_until_idle()
        engine.wake(["a"])
        engine.wake(["a"], utc_now() + LATE)
        lanes.wait_for("a", 3)

    def test_a_wake_during_a_run_leads_to_another(self, engine: Engine, lanes: Lanes) -> None:
        going_on = threading.Event()
        lanes.does = wait_for(going_on)
        engine.start(["a"], lanes.run)
        lanes.wait_for("a", 1)
        engine.wake(["a"])
        engine.wake(["a"])
        going_on.set()
        lanes.wait_for("a", 2)

    def test_a_lane_is_run_by_one_runner_at_a_time(self, engine: Engine, lanes: Lanes) -> None:
        stopping = threading.Event()

        def wake_all() -> None:
            while not stopping.wait(0.0005):
                engine.wake(["a", "b"])

        engine.start(["a", "b"], lanes.run)
        wakers = [threading.Thread(target=wake_all) for _ in range(4)]
        for waker in wakers:
            waker.start()
        lanes.wait_for("a", 10)
        lanes.wait_for("b", 10)
        stopping.set()
        for waker in wakers:
            waker.join()
        assert lanes.most == {"a": 1, "b": 1}

    def test_lanes_do_not_wait_for_each_other(self, engine: Engine, lanes: Lanes) -> None:
        going_on = threading.Event()
        lanes.does = wait_for(going_on, only="a")
        engine.start(["a", "b"], lanes.run)
        lanes.wait_for("a", 1)
        lanes.wait_for("b", 1)
        engine.wake(["b"])
        lanes.wait_for("b", 2)
        assert lanes.runs("a") == 1
        going_on.set()

    def test_a_run_that_raises_is_tried_again(self, engine: Engine, lanes: Lanes) -> None:
        def fail(lane: str) -> datetime | None:
            if lanes.runs("a") < 3:
                raise ValueError("broken")
            return None

        lanes.does = fail
        engine.start(["a"], lanes.run)
        lanes.wait_for("a", 3)
        lanes.wait_until_idle()
        engine.wake(["a"])
        lanes.wait_for("a", 4)

    def test_a_run_can_wake_other_lanes(self, engine: Engine, lanes: Lanes) -> None:
        def pass_on(lane: str) -> datetime | None:
            if lane == "a":
                engine.wake(["b"])
            return None

        lanes.does = pass_on
        engine.start(["a", "b"], lanes.run)
        lanes.wait_for("a", 1)
        lanes.wait_for("b", 1)
        before = lanes.runs("b")
        engine.wake(["a"])
        lanes.wait_for("b", before + 1)

    def test_stopping_waits_for_runs_under_way_and_starts_no_more(self, engine: Engine, lanes: Lanes) -> None:
        going_on = threading.Event()
        lanes.does = lambda lane: utc_now() if going_on.wait(PATIENCE_S) else None
        engine.start(["a"], lanes.run)
        lanes.wait_for("a", 1)
        assert not engine.stop(0.01)
        going_on.set()
        assert engine.stop(PATIENCE_S)
        engine.wake(["a"])
        assert lanes.runs("a") == 1

    def test_a_chore_is_done_at_the_start_and_then_at_its_intervals(self, engine: Engine, lanes: Lanes) -> None:
        often, seldom = Done(), Done()
        engine.start(["a"], lanes.run, [Chore("often", 1, often), Chore("seldom", 3600, seldom)])
        seldom.wait_for(1)
        often.wait_for(3)
        assert engine.stop(PATIENCE_S)
        assert seldom.times == 1
        assert lanes.runs("a") == 1

    def test_a_chore_with_more_to_do_goes_on_at_once(self, engine: Engine, lanes: Lanes) -> None:
        done = Done(needed=5)
        engine.start([], lanes.run, [Chore("prune", 3600, done)])
        done.wait_for(5)
        assert engine.stop(PATIENCE_S)
        assert done.times == 5

    def test_a_chore_that_fails_is_tried_again(self, engine: Engine, lanes: Lanes) -> None:
        failing, other = Done(failures=3), Done()
        engine.start(["a"], lanes.run, [Chore("failing", 3600, failing), Chore("other", 3600, other)])
        failing.wait_for(4)
        other.wait_for(1)
        engine.wake(["a"])
        lanes.wait_for("a", 2)
        assert engine.stop(PATIENCE_S)
        assert failing.times == 4

    def test_stopping_waits_for_a_chore_under_way(self, engine: Engine, lanes: Lanes) -> None:
        done = Done(needed=100)
        done.hold.clear()
        engine.start([], lanes.run, [Chore("prune", 3600, done)])
        done.wait_for(1)
        assert not engine.stop(0.01)
        done.hold.set()
        assert engine.stop(PATIENCE_S)
        assert done.under_way == 0
        assert done.times == 1
