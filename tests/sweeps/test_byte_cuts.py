"""A session of two messages, or three in a stream, cut after every single octet.

Through `transaction.commit()`, which succeeds only when all messages were accepted and raises
otherwise; and through `ISession.send` as a worker calls it. What is said of each message agrees
with what the server holds, and no more are in doubt than were to be on their way at once.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading

import pytest
from commits import Ended, check_error, check_held, commit, note
from smtp_helpers import CHUNKING, RawServer, opened
from thin import one_in

from txmail import Mailer, transport_from_url
from txmail.exceptions import TransportError
from txmail.testing import ScriptedServer

CLIENT, SERVER = 0, 1
#: one with a line that is a dot, and one whose last line is
ONE, TWO = note("one", body=b"a\r\n.\r\nb\r\n"), note("two", body=b".\r\n")
#: with two recipients, who pass the preflight, between two with one
STREAM = (ONE, note("pair", body=b"\r\n", recipients=["a@example.net", "b@example.net"]), TWO)


class Cuts:
    """Passes octets on between client and server, and cuts after so many of one direction."""

    def __init__(self, target):
        self._target = target
        #: which direction is cut after how many octets, how often, and with a reset or not
        self.side, self.octets, self.times, self.reset = CLIENT, None, None, False
        self.passed = [0, 0]
        self._condition = threading.Condition()
        self._open = 0
        self.connections = 0

    def cut(self, side, octets, *, times=None, reset=False):
        """Cut the next `times` connections, or all; None octets cuts none."""
        self.side, self.octets, self.times, self.reset = side, octets, times, reset
        self.connections, self.passed = 0, [0, 0]

    def serve(self, connected, stopping):
        with self._condition:
            self._open += 1
            self.connections += 1
            cuts = self.octets is not None and self.connections <= (self.times or 99)
        try:
            with socket.create_connection(self._target) as server:
                left = [None, None]
                left[self.side] = self.octets if cuts else None
                self._pump((connected, server), left)
                self._end((connected, server), cuts)
        finally:
            with self._condition:
                self._open -= 1
                self._condition.notify_all()

    def _pump(self, pair, left):
        for one in pair:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):
            while left[self.side] != 0:
                readable, _, _ = select.select(pair, [], [])
                for one in readable:
                    way = pair.index(one)
                    octets = one.recv(65536)[: left[way]]
                    if not octets:
                        return
                    pair[1 - way].sendall(octets)
                    self.passed[way] += len(octets)
                    if left[way] is not None:
                        left[way] -= len(octets)

    def _end(self, pair, cuts):
        for one in pair:
            with contextlib.suppress(OSError):
                if cuts and self.reset:
                    linger = struct.pack("ii", 1, 0)
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    one.close()
                else:
                    one.shutdown(socket.SHUT_RDWR)

    def wait(self):
        """Wait until nobody is connected."""
        with self._condition:
            assert self._condition.wait_for(lambda: not self._open, 10)


@pytest.fixture
def relayed(tm):
    """`relayed(query)` is a server, what cuts, and a mailer."""
    with contextlib.ExitStack() as stack:

        def make(query, **options):
            server = stack.enter_context(ScriptedServer(**options))
            cuts = Cuts(server.address)
            host, port = cuts.address = stack.enter_context(RawServer(cuts.serve)).address
            transport = transport_from_url(f"smtp://{host}:{port}?{query}")
            mailer = Mailer(transport, transaction_manager=tm)
            stack.callback(mailer.close)
            return server, cuts, mailer

        yield make


def one_commit(tm, server, cuts, mailer, envelopes=(ONE, TWO), window=1):
    """A commit of `envelopes` over new connections; what it came to agrees with the server."""
    before, known = len(server.messages), len(server.connections)
    ended = commit(tm, mailer, *envelopes)
    mailer.close()
    settle(server, cuts, known)
    check_error(ended)
    check(ended, server.messages[before:], window)
    return ended


def settle(server, cuts, known):
    """Wait until the server has seen all that there was of connections after `known`."""
    cuts.wait()
    server.wait_for(lambda: len(server.connections) == known + cuts.connections)
    server.wait_closed()


def check(ended, messages, window):
    check_held(ended, messages)
    assert len({o.message_id for o in ended.outcomes if o.status == "in_doubt"}) <= window


@pytest.mark.representative(every=8)
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("side", [CLIENT, SERVER], ids=["client", "server"])
@pytest.mark.parametrize("query", ["pipelining=yes", "pipelining=no"])
def test_every_connection_is_cut_after_so_many_octets(relayed, tm, query, side, reset):
    server, cuts, mailer = relayed(query)
    assert one_commit(tm, server, cuts, mailer).error is None
    total = cuts.passed[side]
    assert total > 200
    seen = set()
    for octets in range(0, total, one_in(3)):
        cuts.cut(side, octets, reset=reset)
        ended = one_commit(tm, server, cuts, mailer)
        assert cuts.connections <= 2
        seen.update(ended.statuses)
        if ended.error is None:  # all that was cut off is the answer to our QUIT, or QUIT itself
            assert total - octets <= len("221 2.0.0 Bye\r\n")
    assert {"accepted", "in_doubt", "unsent"} <= seen


@pytest.mark.representative(every=16)
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("side", [CLIENT, SERVER], ids=["client", "server"])
@pytest.mark.parametrize("window", [1, 2, 3, 16])
def test_a_commit_of_three_in_a_stream_is_cut_after_so_many_octets(
    relayed, tm, window, side, reset
):
    server, cuts, mailer = relayed(f"window={window}", extensions=CHUNKING)
    assert one_commit(tm, server, cuts, mailer, STREAM, window).error is None
    assert [line[:4] for line in server.commands].count("BDAT") == 3
    total = cuts.passed[side]
    seen = set()
    most = 0
    for octets in range(0, total, one_in(3)):
        cuts.cut(side, octets, reset=reset)
        ended = one_commit(tm, server, cuts, mailer, STREAM, window)
        assert cuts.connections <= 2
        seen.update(ended.statuses)
        most = max(most, ended.statuses.count("in_doubt"))
        if ended.error is None:
            assert total - octets <= len("221 2.0.0 Bye\r\n")
    assert {"accepted", "in_doubt", "unsent"} <= seen
    # The one with two recipients is in the window; cut on the way there, all of it is.
    assert most == {1: 2, 2: 3}.get(window, 4)


@pytest.mark.representative(every=16)
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("side", [CLIENT, SERVER], ids=["client", "server"])
@pytest.mark.parametrize("window", [1, 2, 3, 16])
def test_a_stream_of_a_worker_is_cut_after_so_many_octets(relayed, window, side, reset):
    server, cuts, _ = relayed("", extensions=CHUNKING)
    envelopes = [note(str(number), body=b"\r\n") for number in range(3)]
    assert set(one_send(server, cuts, envelopes, window).statuses) == {"accepted"}
    total = cuts.passed[side]
    seen = set()
    for octets in range(0, total, one_in(3)):
        cuts.cut(side, octets, reset=reset)
        ended = one_send(server, cuts, envelopes, window)
        seen.update(ended.statuses)
        if set(ended.statuses) == {"accepted"}:
            assert total - octets <= len("221 2.0.0 Bye\r\n")
    assert {"accepted", "in_doubt"} <= seen


def one_send(server, cuts, envelopes, window):
    """As a worker sends; what it came to agrees with the server."""
    before, known = len(server.messages), len(server.connections)
    left = iter(envelopes)
    outcomes = []
    with contextlib.suppress(TransportError), opened(cuts.address) as session:
        outcomes = list(session.send(left, window=window, keep_untaken=True))
        assert [o.position for o in outcomes] == list(range(len(outcomes)))
    settle(server, cuts, known)
    # What was not said anything of is still there.
    assert list(left) == envelopes[len(outcomes) :]
    ended = Ended(None, tuple(outcomes), "")
    check(ended, server.messages[before:], window)
    return ended


@pytest.mark.representative(every=2)
@pytest.mark.parametrize("side", [CLIENT, SERVER], ids=["client", "server"])
def test_only_the_first_connection_is_cut(relayed, tm, side):
    """What was lost before any content had been sent goes out over a second one, once."""
    server, cuts, mailer = relayed("")
    one_commit(tm, server, cuts, mailer)
    replaced = failed = 0
    for octets in range(0, cuts.passed[side], one_in(3)):
        cuts.cut(side, octets, times=1)
        ended = one_commit(tm, server, cuts, mailer)
        if ended.error is None:
            replaced += cuts.connections == 2
        elif cuts.connections == 1 and set(ended.statuses) & {"accepted", "in_doubt", "deferred"}:
            failed += 1
        else:  # nothing of the preflight can be cut: there is no connection yet to be replaced
            assert octets <= max_opening(server, side)
    assert replaced > 50 / one_in(3)
    assert failed > 30 / one_in(3)


def max_opening(server, side):
    """How many octets go to and fro until EHLO is answered."""
    octets = b"".join(o for _, who, o in server.connections[0].octets if who == "CS"[side])
    return octets.index(b"MAIL FROM") if side == CLIENT else octets.index(b"250 2.")
