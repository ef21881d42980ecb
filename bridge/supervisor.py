"""`bridge serve`: web and worker as children. One that dies is started again; all end together.

``python -m bridge.supervisor`` is what the command goes on as, once it has found that they can start. It waits for
months and does nothing, so it imports next to nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

from bridge.environment import Environment

ROLES = ("web", "worker")
GRACE_S = 9.0  # longer than web and worker take for themselves; all have ended 10 seconds after the signal
FIRST_PAUSE_S = 0.5  # before a dead child is started again, doubled each time
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0  # a child that lived for so long had no trouble in starting
USAGE = 2  # the exit code that says: the configuration is wrong, and starting again cannot help
PARENT = "BRIDGE_PARENT"  # in the environment of a child: the process id of its supervisor

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(environ: Mapping[str, str]) -> None:
    """Have the kernel end this process when its supervisor is gone, even if that was killed. Linux only."""
    parent = environ.get(PARENT, "")
    if sys.platform != "linux" or not parent:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if str(os.getppid()) != parent:  # it went before we asked
        os.kill(os.getpid(), signal.SIGTERM)


@dataclass
class Child:
    """One role, and the process that plays it now."""

    role: str
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_again_at: float = 0.0
    deaths: int = 0  # in a row


class Supervisor:
    """Runs a child for each role until it is asked to end. *command* makes the command line of a role."""

    def __init__(self, command: Callable[[str], Sequence[str]], environ: Mapping[str, str]) -> None:
        self._children = [Child(role) for role in ROLES]
        self._command = command
        self._environ = {**environ, PARENT: str(os.getpid())}
        self._settings = Environment.read(environ)

    def run(self) -> int:
        """Return the exit code once all have ended: 0 when asked to end, else that of the child that cannot start.

        To be called by the main thread, which gets the signals and must stay the children's parent.
        """
        with _signals() as wait:
            try:
                code = self._watch(wait)
            finally:
                self._end()
        return code

    def _watch(self, wait: Callable[[float], bool]) -> int:
        while True:
            now = time.monotonic()
            for child in self._children:
                if child.process is None and now >= child.start_again_at:
                    self._start(child, now)
            due = [child.start_again_at - now for child in self._children if child.process is None]
            if wait(max(0.0, min(due, default=LONGEST_PAUSE_S))):
                return 0
            for child in self._children:
                if child.process is not None and (code := child.process.poll()) is not None:
                    if code == USAGE:
                        child.process = None
                        return USAGE
                    self._died(child, code)

    def _start(self, child: Child, now: float) -> None:
        child.process = subprocess.Popen(  # noqa: S603 - it is our own program
            self._command(child.role),
            env=self._environ,
            process_group=0,  # Ctrl-C reaches only us, and we say in which way the children end
        )
        child.started_at = now
        if self._settings.log_level == "debug":
            self._tell("child.started", level="debug", role=child.role, pid=child.process.pid)

    def _died(self, child: Child, code: int) -> None:
        now = time.monotonic()
        child.deaths = 0 if now - child.started_at > STEADY_S else child.deaths
        pause_s = min(FIRST_PAUSE_S * 2**child.deaths, LONGEST_PAUSE_S)
        child.deaths = min(child.deaths + 1, 20)
        child.process, child.start_again_at = None, now + pause_s
        self._tell("child.died", role=child.role, code=code, again_in_s=pause_s)

    def _end(self) -> None:
        """Ask all children to end, and kill those that do not."""
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + GRACE_S
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._tell("child.killed", pid=process.pid)
                process.kill()
                process.wait()

    def _tell(self, name: str, *, level: str = "error", **facts: str | int | float) -> None:
        from bridge import log  # once there is something to tell: it takes as much memory as all else here

        log.configure(self._settings.log_level, self._settings.log_format)
        log.event(name, level=level, **facts)


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[float], bool]]:
    """Catch the signals that ask us to end; yield a function that waits for one, or for a child that died.

    It waits for so many seconds at most, and returns True once we were asked.
    """
    asked = False
    ours, theirs = socket.socketpair()

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    def look(number: int, frame: FrameType | None) -> None:
        """Only to be woken: a signal without a handler does not write to the wake-up socket."""

    def wait(seconds: float) -> bool:
        if not asked:
            select.select([ours], [], [], seconds)
            with contextlib.suppress(BlockingIOError):
                while ours.recv(64):
                    pass
        return asked

    ours.setblocking(False)
    theirs.setblocking(False)
    handlers = {signal.SIGTERM: ask, signal.SIGINT: ask, signal.SIGHUP: ask, signal.SIGCHLD: look}
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup
        del handlers[signal.SIGHUP]
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    woken_before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    try:
        yield wait
    finally:
        signal.set_wakeup_fd(woken_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        ours.close()
        theirs.close()


def main(host: str, *config: str) -> int:
    """Run both roles, with the web process at *host*; return the exit code. *config*: bridge.toml, if given."""

    def command(role: str) -> list[str]:
        options = [*(("--config", *config) if config else ()), *(("--host", host) if role == "web" else ())]
        return [sys.executable, "-m", "bridge", role, *options]

    return Supervisor(command, os.environ).run()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
