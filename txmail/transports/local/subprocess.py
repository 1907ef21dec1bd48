"""Runs a program that reads octets from its standard input, within a time limit.

No other module starts a process. If a program has to be ended before it had all of its input, its
process group is killed *before* the standard input is closed, so that no program ever takes a part
of a message for the whole.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO, Self, cast

from ...common.ascii_text import ascii_strip

#: Octets that are kept of the program's standard error. More is read, and dropped, so that the
#: program does not block.
SAID_LIMIT = 1024
#: Seconds between two looks whether the program has ended: short ones after it has closed a pipe,
#: which is usually the end; long ones while it works, or while a child in the background holds its
#: standard error open.
_FIRST_TICK, _LAST_TICK = 0.0005, 0.05
#: Seconds to wait for a killed process group. It dies at once unless it hangs in the kernel.
_GRACE = 2.0
_CHUNK = 65536


class Program:
    """One run of a program: a context manager, which kills the program at its end."""

    def __init__(
        self,
        arguments: Sequence[bytes],
        octets: bytes,
        environment: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The program runs from `start` on."""
        #: the exit code, negative for a signal; None while the program runs, or cannot be ended
        self.code: int | None = None
        #: True once the program had all octets, and the end of its input
        self.complete = False
        #: True if `end` has killed the program
        self.killed = False
        #: True if other code in this process took the exit code (or SIGCHLD is ignored): then
        #: `subprocess` reports an exit code of 0
        self.lost = False
        self._arguments = arguments
        self._environment = dict(environment)
        self._said = b""
        self._rest = memoryview(octets)
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._error: BaseException | None = None
        self._starting = False
        self._settled = threading.Event()

    @property
    def started(self) -> bool:
        """True if a process was started."""
        return self._process is not None

    @property
    def said(self) -> str:
        """The head of the program's standard error, `SAID_LIMIT` octets at most; not escaped."""
        return ascii_strip(self._said.decode("utf-8", "replace"))

    def start(self) -> None:
        """Start the program. Raises OSError if it cannot be started.

        If `subprocess` is interrupted while it starts a process, it forgets the process and closes
        its pipes, and the program takes the end of its input for an empty message. Only the main
        thread can be interrupted: there, another thread starts the process.
        """
        self._starting = True
        if threading.current_thread() is threading.main_thread():
            threading.Thread(target=self._start, name="txmail-start").start()
            self._settled.wait()
        else:
            self._start()
        if self._error is not None:
            raise self._error

    def _start(self) -> None:
        try:
            # A session of its own: Ctrl-C does not reach it, and its children can be killed.
            process = subprocess.Popen(  # noqa: S603 - no shell, and the caller says what is run
                self._arguments,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
                env=self._environment,
                start_new_session=True,
            )
            self._stdin = cast("IO[bytes]", process.stdin)
            self._stderr = cast("IO[bytes]", process.stderr)
            os.set_blocking(self._stdin.fileno(), False)
            os.set_blocking(self._stderr.fileno(), False)
            self._process = process
        except BaseException as error:
            self._error = error
        finally:
            self._settled.set()

    def run(self, seconds: float) -> None:
        """Feed the program until it ends, or the time is over: then it has no `code`."""
        deadline = self._clock() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdin, selectors.EVENT_WRITE, self._feed)
            selector.register(self._stderr, selectors.EVENT_READ, self._listen)
            tick = _FIRST_TICK
            while not self._has_ended():
                left = deadline - self._clock()
                if left <= 0:
                    return
                events = selector.select(min(left, tick))
                tick = _FIRST_TICK if events else min(2 * tick, _LAST_TICK)
                for key, _ in events:
                    if not key.data():
                        selector.unregister(key.fileobj)
        while len(self._said) < SAID_LIMIT and self._listen(stop_when_empty=True):
            pass

    def _has_ended(self) -> bool:
        assert self._process is not None
        if self.code is None:
            try:
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                self.lost = True
            self.code = self._process.poll()
        return self.code is not None

    def _feed(self) -> bool:
        """Write some octets; False if all are written, or the program reads no more."""
        try:
            while self._rest:
                written = os.write(self._stdin.fileno(), self._rest[:_CHUNK])
                self._rest = self._rest[written:]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False  # its exit code tells why
        self.complete = True  # before `close`: after an interrupt in between it is in doubt
        self._stdin.close()
        return False

    def _listen(self, stop_when_empty: bool = False) -> bool:
        """Read some octets; False at the end, and with `stop_when_empty` if none are there."""
        try:
            data = os.read(self._stderr.fileno(), _CHUNK)
        except BlockingIOError:
            return not stop_when_empty
        self._said = (self._said + data)[:SAID_LIMIT]
        return bool(data)

    def end(self) -> None:
        """Kill the program and its children, unless it has ended by itself.

        Afterwards `complete` is also True if a process may still be reading its input.
        """
        if self._starting:
            self._settled.wait(_GRACE)
        if self._process is None:
            return
        if not self._has_ended():
            self.killed = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            deadline = self._clock() + _GRACE
            while not self._has_ended() and self._clock() < deadline:
                select.select([], [], [], _FIRST_TICK)
            if not self.complete and self._is_read():
                self.complete = True
        self._stdin.close()

    def _is_read(self) -> bool:
        """True if a process may still hold the reading end of its standard input."""
        if self._stdin.closed:
            return False
        poll = select.poll()
        poll.register(
            self._stdin, 0
        )  # poll always reports an error, and a closed reading end is one
        return not poll.poll(_GRACE * 1000)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()
        if self._process is not None:
            self._stderr.close()
