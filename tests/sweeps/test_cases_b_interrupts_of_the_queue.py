"""Exceptions that come out of the blue while the queue's database is written."""

from __future__ import annotations

import gc
import sys
import threading
from pathlib import Path

import pytest
from interrupting import may_raise

import txmail

sa = pytest.importorskip("sqlalchemy")

from txmail.queue.database.database import Database  # noqa: E402
from txmail.queue.schema import control, metadata  # noqa: E402

# A connection that was just being made is dropped, which its driver remarks on.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

OURS = str(Path(txmail.__file__).parent)
THEIRS = str(Path(sa.__file__).parent)


class Alarm(BaseException):
    """What a handler raises that knows nothing of us."""


class Limit(Exception):
    """The same as an ordinary error, as Celery's time limit is."""


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def database(request, tmp_path):
    connected = []

    def opened(url):
        made = Database.from_url(url)
        where, name = made._backend, "_connect"
        if made.is_in_process:
            where, name = made._backend._file, "connect"
        connect = getattr(where, name)

        def connecting():
            connected.append(connect())
            return connected[-1]

        setattr(where, name, connecting)
        return made

    yield from _database(request, tmp_path, opened)
    # SQLAlchemy loses one that it was just taking out when it was interrupted.
    for connection in connected:
        connection.close()


def _database(request, tmp_path, opened):
    if request.param == "SQLite":
        made = opened(f"sqlite:///{tmp_path}/mail.db")
        made.prepare()
    else:
        url = request.getfixturevalue("postgresql_url")
        made = opened(url)
        with made.write(prepared=False) as connection:
            metadata.drop_all(connection)
            metadata.create_all(connection)
    yield made
    made.close()
    if request.param != "SQLite":
        with made.write(prepared=False) as connection:
            metadata.drop_all(connection)
        made.close()


@pytest.fixture
def file(tmp_path):
    """The file of a queue in SQLite."""
    database = Database.from_url(f"sqlite:///{tmp_path}/mail.db")
    database.prepare()
    database.close()
    return tmp_path / "mail.db"


@pytest.fixture(autouse=True)
def no_collector():
    """Nothing here may be put right by the garbage collector."""
    gc.collect()
    gc.disable()
    handled = sys.exception()
    yield
    gc.enable()
    assert sys.exception() is handled  # none is left behind for the tests to come
    gc.collect()


def put(connection, name):
    connection.execute(control.insert(), {"name": name, "value": "x", "actor": "a", "changed": 1})


def names(database):
    with database.read() as connection:
        return sorted(connection.scalars(sa.select(control.c.name)))


class Raising:
    """Raises `error` before line number `at` of those in `folders`, or the next that can raise."""

    def __init__(self, at, error=Alarm, folders=(OURS,)):
        self._left, self._error, self._folders = at, error, folders
        self.done = False

    def __enter__(self):
        self._previous = sys.gettrace()
        sys.settrace(self._called)

    def __exit__(self, *_):
        sys.settrace(self._previous)

    def _called(self, frame, event, argument):
        if frame.f_code.co_name == "__del__":  # Python itself swallows what is raised there
            return None
        return self._line if frame.f_code.co_filename.startswith(self._folders) else None

    def _line(self, frame, event, argument):
        if event == "line":
            self._left -= 1
            if self._left <= 0 and not self.done and may_raise(frame):
                self.done = True
                sys.settrace(self._previous)
                raise self._error
        return self._line


def interrupted(database, at, error, folders):
    """A transaction that is interrupted; whether it was, and the error, which is kept alive."""
    raising = Raising(at, error, folders)
    caught = None
    with raising:
        try:
            with database.write() as connection:
                put(connection, f"n{at}")
                connection.execute(sa.select(control.c.name)).first()
        except Alarm as raised:
            caught = raised
        except Exception as raised:  # SQLAlchemy may have swallowed it, and fail a little later
            assert raising.done
            caught = raised
    return raising.done, caught


def check_free(database):
    """Nobody holds anything: other threads and connections can write at once."""
    done = []

    def write():
        with database.write(timeout=5) as connection:
            connection.execute(control.delete())
        done.append(True)

    thread = threading.Thread(target=write)
    thread.start()
    thread.join(10)
    assert done == [True]


def sweep(database, error, folders, step, start=1):
    """Interrupt at every line in turn, or one of so many; how many were interrupted."""
    count, at = 0, start
    while True:
        done, caught = interrupted(database, at, error, folders)
        # As the data manager does when the transaction is aborted.
        database.abandon()
        check_free(database)
        if not done:
            return count
        assert caught is not None or at
        count += 1
        at += step


@pytest.mark.parametrize("error", [Alarm, Limit])
def test_b1_an_exception_at_a_line_of_ours_leaves_nothing_locked(database, error):
    """Kind: something asynchronous ends our work between any two steps."""
    assert sweep(database, error, (OURS,), step=7) > 10


@pytest.mark.sweep
@pytest.mark.parametrize("error", [Alarm, Limit])
def test_b1_an_exception_at_every_line_of_ours_leaves_nothing_locked(database, error):
    """Kind: something asynchronous ends our work between any two steps."""
    assert sweep(database, error, (OURS,), step=1) > 100


def test_b1_an_exception_at_a_line_of_sqlalchemys_leaves_nothing_locked(database):
    """Kind: the same, in the middle of the library that runs our statements."""
    assert sweep(database, Alarm, (THEIRS,), step=61) > 10


@pytest.mark.sweep
def test_b1_an_exception_at_many_lines_of_sqlalchemys_leaves_nothing_locked(database):
    """Kind: the same, in the middle of the library that runs our statements."""
    assert sweep(database, Alarm, (THEIRS,), step=5) > 100
