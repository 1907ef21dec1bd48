"""The background thread of a queue: it does what the transactions of a process leave to do.

It tries a publish that failed again as long as the process lives, for its transaction has
committed. It deletes rows of aborted transactions. In each round it writes the heartbeat of the
process, and resolves batches of dead processes. It ends when there is nothing to do.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

from ..common.locks import hold
from ..common.logs import quiet_logger
from ..common.per_process import this_process

log = quiet_logger("txmail.queue")

#: Seconds between two tries of a task that fails: the first pause doubles up to the last.
FIRST_PAUSE, LAST_PAUSE = 0.1, 30.0
#: Seconds between two rounds.
ROUND = 30.0
#: Seconds that a process waits for its tasks when it ends.
LAST_CHANCE = 5.0
#: Seconds that closing waits for tasks that have failed before, and for a round.
ONCE_MORE = 1.0
#: Seconds that the thread waits for another task before it ends.
IDLE = 5.0

Task = Callable[[], object]


class Background:
    """Does tasks soon, and a round from time to time.

    It calls `round` every `ROUND` seconds while `busy` returns true.
    """

    def __init__(self, name: str, round: Task, busy: Callable[[], bool]) -> None:
        self._name = name
        self._round = round
        self._busy = busy
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._process = this_process()
        self._tasks: deque[Task] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._working = False
        self._hurry = False
        self._resting = False
        #: the ids of tasks that were tried without success
        self._failed: set[int] = set()
        #: the last problem, so that it is logged once
        self._said = ""

    def do(self, task: Task) -> None:
        """Do `task` soon, and again until it raises nothing. Never blocks."""
        self._start(task)

    def start(self) -> None:
        """Do rounds from now on."""
        self._start(None)

    def _start(self, task: Task | None) -> None:
        if self._process != this_process():
            # The parent does its own tasks.
            self._reset()
        hold(self._changed, lambda: self._wake(task))

    def _wake(self, task: Task | None) -> None:
        self._resting = False
        if task is not None:
            self._tasks.append(task)
        # An exception may have come between making and starting a thread.
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=self._run, name=f"txmail upkeep of {self._name}", daemon=True
            )
            try:
                self._thread.start()
            except RuntimeError:  # the interpreter is shutting down, or there are too many
                self._thread = None
        self._changed.notify_all()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all tasks are done, at most `timeout` seconds; True if they are."""
        if self._process != this_process():
            return True
        return hold(self._changed, lambda: self._flushed(timeout))

    def _flushed(self, timeout: float | None) -> bool:
        self._hurry = True
        self._changed.notify_all()
        try:
            return self._changed.wait_for(
                lambda: not (self._tasks or self._working) or self._thread is None, timeout
            )
        finally:
            self._hurry = False

    def rest(self, timeout: float = ROUND) -> bool:
        """Wait at most `timeout` seconds until all tasks are done or have failed; True if done.

        A task that has failed before is tried once more, for at most `ONCE_MORE` seconds: a
        database may refuse it for hours. The thread goes on trying. Rounds stop until the next
        task.
        """
        if self._process != this_process():
            return True
        self._resting = True
        return hold(self._changed, lambda: self._rested(timeout))

    def _rested(self, timeout: float) -> bool:
        self._hurry = True
        if not self._fresh():
            self._failed.clear()
            timeout = min(timeout, ONCE_MORE)
        self._changed.notify_all()
        try:
            self._changed.wait_for(lambda: not self._fresh() or self._thread is None, timeout)
            # A round may be under way, and wait for the database.
            self._changed.wait_for(lambda: not self._working, ONCE_MORE)
        finally:
            self._hurry = False
        return not (self._tasks or self._working)

    def _fresh(self) -> bool:
        """True if there is a task that has not failed yet."""
        return any(id(task) not in self._failed for task in self._tasks)

    def _run(self) -> None:
        pause = FIRST_PAUSE
        next_round = time.monotonic()
        while True:
            with self._changed:
                if self._thread is not threading.current_thread():
                    return  # another thread has taken over
                left = next_round - time.monotonic()
                self._changed.wait_for(
                    lambda: self._tasks or self._resting, max(0.0, min(IDLE, left))
                )
                if not self._tasks and (self._resting or time.monotonic() < next_round):
                    if self._busy() and not self._resting:
                        continue
                    self._thread = None
                    self._changed.notify_all()
                    return
                # A task that fails must not hold up rounds.
                late = pause > FIRST_PAUSE and time.monotonic() >= next_round
                task = self._tasks[0] if self._tasks and not late else None
                self._working = True
            done = self._try(task or self._round, bool(task))
            with self._changed:
                self._working = False
                if task is None:
                    next_round = time.monotonic() + ROUND
                elif done:
                    self._failed.discard(id(self._tasks.popleft()))
                    pause = FIRST_PAUSE
                else:
                    self._failed.add(id(task))
                self._changed.notify_all()
                if task is not None and not done:
                    # Nor other tasks.
                    self._tasks.rotate(-1)
                    hurried = self._changed.wait_for(lambda: self._hurry, pause)
                    # Once only: while `flush` waits, tries still need pauses.
                    self._hurry = False
                    pause = FIRST_PAUSE if hurried else min(LAST_PAUSE, pause * 2)

    def _try(self, task: Task, again: bool) -> bool:
        try:
            task()
        except Exception as error:
            words = str(error)
            if not words.startswith(self._name):
                words = f"{self._name}: {words or type(error).__name__}"
            if words != self._said:
                log.warning("%s%s", words, "; it will be tried again" if again else "")
            self._said = words
            return False
        self._said = ""
        return True


_all: weakref.WeakSet[Background] = weakref.WeakSet()


def _at_exit() -> None:
    end = time.monotonic() + LAST_CHANCE
    for background in list(_all):
        background.flush(max(0.0, end - time.monotonic()))


atexit.register(_at_exit)
