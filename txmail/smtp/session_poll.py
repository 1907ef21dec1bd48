"""Waits for several connections at once."""

from __future__ import annotations

import math
import select
from collections.abc import Sequence

from .session_run import SessionRun


class SessionPoll:
    """Waits for several runs at once."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._known: dict[int, tuple[SessionRun, int]] = {}

    def wait(self, runs: Sequence[SessionRun]) -> list[tuple[SessionRun, int]]:
        """The runs with events, and their events; 0 for a run whose time is over."""
        left = tick = math.inf
        happened: dict[SessionRun, int] = {}
        for run in runs:
            run.driver.stream.acknowledge()
            writing, seconds = run.driver.interest()
            left = min(left, seconds)
            tick = min(tick, run.driver.tick)
            self._register(run, select.POLLIN | (select.POLLOUT if writing else 0))
            if run.driver.stream.buffered:
                happened[run] = select.POLLIN
        for fd, events in self._poll.poll(0 if happened else min(left, tick) * 1000):
            run = self._known[fd][0]
            happened[run] = happened.get(run, 0) | events
        if left == 0 or not happened:
            late = [run for run in runs if run not in happened and not run.driver.left]
            happened.update(dict.fromkeys(late, 0))
        if not happened and not any(run.driver.carries_content for run in runs):
            runs[0].driver.rest()
        return list(happened.items())

    def _register(self, run: SessionRun, interest: int) -> None:
        fd = run.driver.stream.fileno()
        if self._known.get(fd) != (run, interest):
            self._poll.register(fd, interest)
            self._known[fd] = run, interest

    def forget(self, run: SessionRun) -> None:
        """Stop waiting for `run`: its socket may be closed."""
        for fd in [fd for fd, (known, _) in self._known.items() if known is run]:
            del self._known[fd]
            self._poll.unregister(fd)
