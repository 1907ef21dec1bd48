"""Exceptions that come out of the blue while the queue's database is written."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from interrupting import OURS, Alarm, AtLine, Limit

sa = pytest.importorskip("sqlalchemy")

from txmail.queue.database.database import Database  # noqa: E402
from txmail.queue.schema import control, metadata  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("no_collector"),
    # A connection that was just being made is dropped, which its driver remarks on.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

THEIRS = str(Path(sa.__file__).parent)


@pytest.fixture
def database(url):
    """A queue's database with its tables, and nothing in them."""
    made = Database.from_url(url)
    with made.write(prepared=False) as connection:
        metadata.create_all(connection)
    made.close()
    connected = []
    where, name = made._backend, "_connect"
    if made.is_in_process:
        where, name = made._backend._file, "connect"
    connect = getattr(where, name)

    def connecting():
        connected.append(connect())
        return connected[-1]

    setattr(where, name, connecting)
    yield made
    made.close()
    # SQLAlchemy loses one that it was just taking out when it was interrupted.
    for connection in connected:
        connection.close()


def put(connection, name):
    connection.execute(control.insert(), {"name": name, "value": "x", "actor": "a", "changed": 1})


def names(database):
    with database.read() as connection:
        return sorted(connection.scalars(sa.select(control.c.name)))


def interrupted(database, at, error, folders):
    """A transaction that is interrupted; whether it was, and the error, which is kept alive."""
    raising = AtLine(at, error, folders)
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
