"""What ends a commit in the middle: a context manager each, `done` when it has."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import txmail

OURS = str(Path(txmail.__file__).parent)
#: the server that an application is tested with, which is no part of its process
TESTING = str(Path(txmail.__file__).parent / "testing")


class Alarm(BaseException):
    """What a handler raises that knows nothing of us."""


class Limit(Exception):
    """The same as an ordinary error, as Celery's time limit is."""


class Never:
    """Does not interrupt."""

    done = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class AtLine:
    """Raises before the line with number `at` of those in `folders`; at -1, only counts them."""

    def __init__(self, at, error=Alarm, folders=(OURS,)):
        self._left, self._error, self._folders = at, error, folders
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
            if self._left == 0:
                self.done = True
                sys.settrace(self._previous)
                raise self._error
        return self._line


class AfterSeconds:
    """Raises after so many seconds, wherever that is."""

    def __init__(self, seconds, error=Alarm):
        self._seconds, self._error = seconds, error
        self.done = self._armed = False

    def _raise(self, *_):
        if self._armed:
            self._armed, self.done = False, True
            raise self._error

    def __enter__(self):
        signal.signal(signal.SIGALRM, self._raise)
        self._armed = True
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *_):
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
