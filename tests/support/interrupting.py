"""What ends a commit in the middle: a context manager each, `done` when it has."""

from __future__ import annotations

import dis
import random
import signal
import sys
import time
from pathlib import Path

import txmail

OURS = str(Path(txmail.__file__).parent)
#: the server that an application is tested with, which is no part of its process
TESTING = str(Path(txmail.__file__).parent / "testing")
_POP_EXCEPT = dis.opmap["POP_EXCEPT"]


def may_raise(frame):
    """Whether an exception can come here: not where a handler is just being left.

    Python looks for signals at calls and loops only, and never before ``POP_EXCEPT``. What a trace
    function raises there leaves the handled exception behind as the thread's current one, for good:
    every later exception of the process has it as its ``__context__``.
    """
    return frame.f_code.co_code[frame.f_lasti] != _POP_EXCEPT


class Alarm(BaseException):
    """What a handler raises that knows nothing of us."""


class Limit(Exception):
    """The same as an ordinary error, as Celery's time limit is."""


class Never:
    """Does not interrupt."""

    done = may_be_early = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class AtLine:
    """Raises before the line with number `at` of those in `folders`, or the next that can raise.

    At -1, it only counts them.
    """

    may_be_early = False

    def __init__(self, at, error=Alarm, folders=(OURS,)):
        self._at, self._left, self._error, self._folders = at, at, error, folders
        self.done = False
        self.lines = 0

    def __enter__(self):
        self._previous = sys.gettrace()
        sys.settrace(self._called)

    def __exit__(self, *_):
        sys.settrace(self._previous)

    def _called(self, frame, event, argument):
        code = frame.f_code
        if code.co_name == "__del__" or not code.co_filename.startswith(self._folders):
            return None
        return None if code.co_filename.startswith(TESTING) else self._line

    def _line(self, frame, event, argument):
        if event == "line":
            self.lines += 1
            self._left -= 1
            if self._at > 0 >= self._left and not self.done and may_raise(frame):
                self.done = True
                sys.settrace(self._previous)
                raise self._error
        return self._line


class AfterSeconds:
    """Raises after so many seconds, wherever that is: before anything of ours, too."""

    may_be_early = True

    def __init__(self, seconds, error=Alarm):
        self._seconds, self._error = seconds, error
        self.done = self._armed = False
        self.took = 0.0

    def _raise(self, *_):
        if self._armed:
            self._armed, self.done = False, True
            raise self._error

    def __enter__(self):
        signal.signal(signal.SIGALRM, self._raise)
        self._began = time.perf_counter()
        self._armed = True
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *_):
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.took = time.perf_counter() - self._began


def alarms_within(run, count, seed):
    """``run(alarm)`` so often, with alarms from all over what it takes; what it returned each time.

    However fast or busy the machine is: what ended before its alarm shortens the next ones.
    """
    chance, found, longest = random.Random(seed), [], 0.02
    for _ in range(count):
        alarm = AfterSeconds(chance.uniform(0.02, 1) * longest)
        found.append(run(alarm))
        longest = longest * 1.1 if alarm.done else max(alarm.took, 0.0005)
    return found
