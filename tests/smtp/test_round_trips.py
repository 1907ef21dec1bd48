"""How many round trips a commit holds the locks of other databases: from tpc_begin to tpc_finish.

The line is one without time: whatever was written arrives when the client waits, all of it at once,
and what the server says to it is there. So a round trip is a wait, and they can be counted.
"""

from __future__ import annotations

import pytest
from clocks import Clock
from commits import note
from zope.interface import implementer

from txmail import Mailer
from txmail.interfaces import ITransport
from txmail.smtp.options import Options
from txmail.smtp.pool import Pool
from txmail.smtp.session import Session
from txmail.testing._protocol import ServerProtocol
from txmail.testing._settings import Settings

MANY = 50
STREAM = ("PIPELINING", "CHUNKING", "SIZE 1000000", "8BITMIME", "ENHANCEDSTATUSCODES")
PIPELINE = tuple(name for name in STREAM if name != "CHUNKING")


class Line:
    """A `Stream` to a server that answers when the client waits."""

    encrypted = buffered = False
    local_literal = "[127.0.0.1]"

    def __init__(self, server):
        self._server = ServerProtocol(Settings("mx.example.com", server.extensions), server)
        self._trips = server
        self._sent = b""
        self._said = b"".join(self._server.greet())

    def send(self, buffers):
        octets = b"".join(buffers)
        self._sent += octets
        return len(octets)

    def wait(self, write, timeout):
        if not self._said and self._sent:
            sent, self._sent = self._sent, b""
            self._trips.count += 1
            self._said = b"".join(o for o in self._server.receive(sent) if isinstance(o, bytes))
        return bool(self._said)

    def receive(self):
        said, self._said = self._said, b""
        return said or None

    @property
    def quiet(self):
        return not self._said

    def close(self):
        pass


@implementer(ITransport)
class FarAway:
    """A server at the end of a `Line`. See `ITransport`."""

    name = "smtp://mx.example.com:25"
    asks_server = True

    def __init__(self, extensions, **options):
        self.extensions = extensions
        self.count = 0
        self.messages = []
        self._options = Options("mx.example.com", local_hostname="client.example", **options)
        self._pool = Pool(self._connect)

    def _connect(self, timeout):
        session = Session(Line(self), self._options, Clock(0.0))
        session.greet(timeout)
        return session

    def open(self, *, timeout=None, wait=True, fresh=False, verify=True):
        return self._pool.take(60.0, wait=wait, fresh=fresh, verify=verify)

    def close(self):
        self._pool.close()

    # what a `ServerProtocol` asks and tells

    def choose(self, verb, argument, content):
        return None

    def command(self, line):
        pass

    def channel_binding(self):
        return None

    def accepted(self, transaction, content):
        self.messages.append(content)


class Lock:
    """A database that is locked from tpc_begin to tpc_finish, and looks at the count of trips."""

    def __init__(self, transport):
        self._transport = transport
        self.trips = None

    def sortKey(self):
        return "a database"

    def tpc_begin(self, transaction):
        self._before = self._transport.count

    def commit(self, transaction):
        pass

    tpc_vote = abort = tpc_abort = commit

    def tpc_finish(self, transaction):
        self.trips = self._transport.count - self._before


def trips_under_lock(tm, transport, count):
    mailer = Mailer(transport, transaction_manager=tm)
    lock = Lock(transport)
    transaction = tm.begin()
    transaction.join(lock)
    for number in range(count):
        mailer.send(note(f"n{number}", recipients=[f"r{number}@example.net"]))
    tm.commit()
    assert len(transport.messages) == count
    return lock.trips


def test_with_a_window_fifty_mails_take_one_round_trip_under_lock(tm):
    assert trips_under_lock(tm, FarAway(STREAM, window=64), MANY) == 1


def test_a_window_that_is_shorter_takes_a_round_trip_for_each_of_it(tm):
    assert trips_under_lock(tm, FarAway(STREAM, window=16), MANY) == 4


@pytest.mark.parametrize("extensions", [STREAM, PIPELINE], ids=["stream", "pipeline"])
def test_with_one_mail_in_doubt_at_most_it_is_a_round_trip_for_each_mail(tm, extensions):
    assert trips_under_lock(tm, FarAway(extensions), MANY) <= MANY + 1


@pytest.mark.parametrize(
    ("extensions", "trips"), [(STREAM, 1), (PIPELINE, 2)], ids=["stream", "pipeline"]
)
def test_one_mail_takes_what_cannot_be_done_before(tm, extensions, trips):
    """The content, and DATA before it where there is no BDAT; all else is done in the hook."""
    assert trips_under_lock(tm, FarAway(extensions), 1) == trips
