"""`send_all`: what was not begun when a connection ended goes on over another one."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import struct
import sys

import pytest
from commits import Ended, check_held, note
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from many import CHUNKING, FAULTS, TIERS, check, collect, count, notes
from smtp_helpers import RawServer
from thin import one_in

from txmail import Envelope, transport_from_url
from txmail.exceptions import TransportError
from txmail.reply import Reply
from txmail.smtp.refusals import REFUSALS_LIMIT
from txmail.testing import CLOSE, HANG, Callback, ScriptedServer, then
from txmail.transports.failover import FailoverTransport
from txmail.transports.memory import MemoryTransport
from txmail.transports.resend import send_all


@pytest.fixture
def server():
    with ScriptedServer(extensions=CHUNKING) as server:
        yield server


@contextlib.contextmanager
def transport_to(url, query=""):
    transport = transport_from_url(f"{url}?local_hostname=client.example{query}")
    try:
        yield transport
    finally:
        assert not transport._pool._in_use
        transport.close()


def statuses(outcomes):
    return [str(o.status) for o in outcomes]


# How often, and what


@pytest.mark.parametrize("fault", FAULTS)
def test_it_goes_on_as_often_as_a_connection_settles_something(server, tier, fault):
    for number in range(1, 8):
        server.on(".", FAULTS[fault], connection=number, after=3)
    given = notes(20)
    with transport_to(server.url, tier) as transport:
        outcomes = list(send_all(transport, iter(given), window=1))
    check(outcomes, given, server)
    last = "deferred" if fault == "421" else "in_doubt"
    # A reset may overtake replies, and then their messages are in doubt as well.
    assert statuses(outcomes) == ["accepted", "accepted", "accepted", last] * 5
    assert len(server.connections) == 5
    assert [m.sender for m in server.messages] == [
        e.sender for n, e in enumerate(given) if n % 4 < 3
    ]


def test_what_goes_on_keeps_its_order(server, tier):
    for number in range(1, 9):
        server.on("MAIL", CLOSE, connection=number, after=3)
    given = notes(20)
    with transport_to(server.url, tier) as transport:
        outcomes = list(send_all(transport, iter(given), window=1))
    check(outcomes, given, server)
    if tier:  # nothing was in flight
        assert statuses(outcomes) == ["accepted"] * 20
        assert [m.sender for m in server.messages] == [e.sender for e in given]
        assert len(server.connections) == 7
    else:
        assert statuses(outcomes) == (["accepted"] * 3 + ["in_doubt"]) * 5


@pytest.mark.parametrize("fault", FAULTS)
def test_once_if_one_has_settled_nothing(server, tier, fault):
    server.on("MAIL", FAULTS[fault], times=None, after=0)
    given = notes(10)
    with transport_to(server.url, tier) as transport:
        outcomes = list(send_all(transport, given, window=1))
    check(outcomes, given, server)
    assert len(server.connections) == 2
    assert count(outcomes, "unsent") >= 8
    assert count(outcomes, "accepted") == 0
    for outcome in outcomes:
        if outcome.status == "unsent":
            assert outcome.action == "defer_route"
            assert outcome.reason or outcome.reply
            if fault == "421":
                assert outcome.reply.code == 421


def test_a_doubt_settles_nothing(server, tier):
    """A server that always hangs up behind the last octet does not get them all in doubt."""
    server.on(".", CLOSE, times=None, after=2)
    given = notes(20)
    with transport_to(server.url, tier) as transport:
        outcomes = list(send_all(transport, given, window=1))
    check(outcomes, given, server)
    assert statuses(outcomes) == ["accepted"] * 2 + ["in_doubt"] * 3 + ["unsent"] * 15
    assert len(server.connections) == 3


def test_nor_does_a_server_that_wants_us_to_go_slower(server, tier):
    server.on("MAIL", "450 4.7.1 slow down", times=None)
    given = notes(40)
    with transport_to(server.url, tier) as transport:
        outcomes = list(send_all(transport, given, window=1))
    check(outcomes, given, server)
    assert statuses(outcomes) == ["deferred"] * 16 + ["unsent"] * 24
    assert {(o.action, o.reply.code) for o in outcomes} == {("defer_route", 450)}
    assert len(server.connections) == 2


def test_the_one_that_replaces_one_that_settled_nothing_is_new(server, tier):
    """Connections that were kept may all have died of the same."""
    with transport_to(server.url, tier) as transport:
        kept = [transport.open() for _ in range(3)]
        for number, session in enumerate(kept, 1):
            session.close()
            server.on("MAIL", CLOSE, connection=number)
        outcomes = list(send_all(transport, notes(5), window=1))
    assert statuses(outcomes[-4:]) == ["accepted"] * 4
    assert sum("MAIL" in str(c.commands) for c in server.connections) == 2
    assert len(server.connections) == 4


@pytest.mark.parametrize("verb", ["RCPT", "."])
@pytest.mark.parametrize("connections", [1, 2])
def test_a_connection_with_many_refusals_in_a_row_is_left(server, tier, connections, verb):
    given = [*notes(3), *notes(20, name="bad"), *notes(5, name="m")]
    server.on(verb, "554 5.7.1 no", matching="<bad" if verb == "RCPT" else "bad", times=None)
    with transport_to(server.url, f"{tier}&connections={connections}") as transport:
        outcomes = list(send_all(transport, iter(given), window=4))
        failed = {o.position for o in outcomes if o.status == "failed"}
        assert failed == set(range(3, 23))
        assert count(outcomes, "accepted") == 8
    check(outcomes, given, server)
    assert len(server.connections) >= 3
    left = [c for c in server.connections if refused(c) >= REFUSALS_LIMIT]
    assert left
    if verb == "RCPT" or tier != TIERS["pipeline"]:  # else the next message's DATA is under way
        assert all(c.ended_by_quit for c in left)
    # What the window held already is refused as well, and no more.
    assert all(refused(c) < REFUSALS_LIMIT + 4 for c in server.connections)


def refused(connection):
    return sum("MAIL FROM:<bad" in line for line in connection.commands)


def test_a_message_that_went_to_some_goes_on_to_the_others(server, tier):
    """To a hundred at once, as a server has to take them; the connection ends in between."""
    for number in (1, 2):
        server.on("MAIL", CLOSE, connection=number, after=1)
    many = [f"r{n}@example.net" for n in range(250)]
    given = [note("many", recipients=many)]
    with transport_to(server.url, tier) as transport:
        outcomes = list(send_all(transport, given))
    assert sorted(o.recipient for o in outcomes) == sorted(many)
    assert set(statuses(outcomes)) == {"accepted"}
    assert [len(m.recipients) for m in server.messages] == [100, 100, 50]
    assert sorted(r for m in server.messages for r in m.recipients) == sorted(many)


def test_what_needs_another_server_is_not_tried_again():
    with ScriptedServer(ehlo=False) as server, transport_to(server.url) as transport:
        given = [
            *notes(2),
            note("utf8", recipients=["j\u00fcrgen@example.net"]),
            *notes(2, name="m"),
        ]
        outcomes = list(send_all(transport, given))
        assert [str(o.action) for o in outcomes] == ["done", "done", "stop_route", "done", "done"]
        assert len(server.connections) == 1


# Routes that do not open, and time


@pytest.mark.parametrize(
    ("reply", "action"), [("421 4.3.2 busy", "defer_route"), ("554 5.7.1 go away", "stop_route")]
)
@pytest.mark.parametrize("after", [0, 1])
def test_if_none_can_be_opened_the_rest_is_unsent_and_says_why(server, tier, reply, action, after):
    server.on("connect", then(reply, CLOSE), times=None, after=after)
    server.on("QUIT", CLOSE, times=None)
    server.on("MAIL", CLOSE, after=3)
    given = notes(10)
    with transport_to(server.url, tier) as transport:
        outcomes = list(send_all(transport, given, window=1))
    check(outcomes, given, server)
    unsent = [o for o in outcomes if o.status == "unsent"]
    assert len(unsent) >= (6 if after else 10)
    assert {(o.scope, o.action, str(o.reply)) for o in unsent} == {("route", action, reply)}
    assert all("turned away by" in o.reason and not o.preflighted for o in unsent)
    assert len(server.connections) == 1 + after


@pytest.mark.representative(every=3)
def test_the_time_is_for_all_connections(server, tier):
    server.on(".", CLOSE, after=2)
    server.on(".", HANG, times=None, after=5)
    given = notes(10)
    with transport_to(server.url, tier) as transport:
        outcomes = list(send_all(transport, given, window=1, timeout=0.5))
    server.stop()
    check(outcomes, given, server)
    assert statuses(outcomes) == [
        *("accepted", "accepted", "in_doubt", "accepted", "accepted", "in_doubt"),
        *["unsent"] * 4,
    ]
    assert {o.reason for o in outcomes[6:]} == {"the time for it is up"}


def test_no_connection_is_opened_when_the_time_is_up(server):
    now = itertools.count()
    with transport_to(server.url) as transport:
        outcomes = list(send_all(transport, notes(3), timeout=0.5, clock=lambda: next(now)))
    assert statuses(outcomes) == ["unsent"] * 3
    assert server.connections == []


# Where the envelopes come from


@pytest.mark.representative(every=6)
@pytest.mark.parametrize("connections", [1, 3])
def test_no_more_is_held_than_the_window(server, tier, connections):
    alive = most = 0

    class Counted(Envelope):
        __slots__ = ()

        def __del__(self):
            nonlocal alive
            alive -= 1

    def made(number):
        nonlocal alive, most
        one = note(f"n{number}")
        alive += 1
        most = max(most, alive)
        return Counted(one.sender, one.recipients, one.content)

    total = 20_000 // one_in(4) if connections == 1 and not tier else 3000
    with transport_to(server.url, f"{tier}&connections={connections}") as transport:
        outcomes = send_all(transport, map(made, range(total)), window=8)
        assert sum(o.status == "accepted" for o in outcomes) == total
    # Of each connection what is in the window, and as many with an outcome to be handed out.
    assert most <= 2 * 8 * connections + 3
    assert alive <= 1


@pytest.mark.parametrize(
    ("bad", "error"),
    [(OSError("mine"), OSError), (TransportError("mine"), TransportError), (0, TypeError)],
)
@pytest.mark.parametrize("connections", [1, 3])
def test_an_error_of_the_envelopes_waits_for_those_on_their_way(
    server, tier, connections, bad, error
):
    given, outcomes = notes(12), []

    def failing():
        yield from given
        if isinstance(bad, Exception):
            raise bad
        yield bad

    query = f"{tier}&connections={connections}"
    with transport_to(server.url, query) as transport, pytest.raises(error):
        collect(send_all(transport, failing()), outcomes)
    check(outcomes, given, server)
    assert count(outcomes, "accepted") == 12


@pytest.mark.parametrize("connections", [1, 3])
def test_closing_it_ends_sending_at_once(server, tier, connections):
    given = iter(notes(100))
    with transport_to(server.url, f"{tier}&connections={connections}") as transport:
        sending = send_all(transport, given, window=2)
        assert [next(sending).status for _ in range(5)] == ["accepted"] * 5
        sending.close()
        server.wait_closed()
        assert 5 <= len(server.messages) <= 5 + 4 * connections
        assert len(list(given)) >= 100 - 5 - 4 * connections
        # And the transport is as good as before.
        assert statuses(send_all(transport, notes(3, name="m"))) == ["accepted"] * 3


# Other transports


def test_what_is_kept_in_memory():
    transport = MemoryTransport()
    transport.refuse("n2@example.net", Reply(550, ("5.1.1 no",)))
    outcomes = list(send_all(transport, iter(notes(5))))
    assert statuses(outcomes) == ["accepted", "accepted", "failed", "accepted", "accepted"]
    assert [o.position for o in outcomes] == [0, 1, 2, 3, 4]
    assert len(transport.envelopes) == 4


def test_files(tmp_path):
    transport = transport_from_url(f"file://{tmp_path}/mail")
    assert statuses(send_all(transport, iter(notes(20)))) == ["accepted"] * 20
    assert sum(path.is_file() for path in (tmp_path / "mail").rglob("*")) == 20


@pytest.mark.parametrize(
    ("code", "expected", "action"),
    [
        (0, ["accepted"] * 5, "done"),
        (67, ["failed"] * 5, "fail"),
        (78, ["deferred"] * 2 + ["unsent"] * 3, "stop_route"),
    ],
)
def test_programs(tmp_path, code, expected, action):
    program = tmp_path / "sendmail"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.stdin.read()\nsys.exit({code})\n")
    program.chmod(0o755)
    outcomes = list(send_all(transport_from_url(f"sendmail://{program}"), iter(notes(5))))
    assert statuses(outcomes) == expected
    assert {str(o.action) for o in outcomes} == {action}
    assert [o.position for o in outcomes] == [0, 1, 2, 3, 4]


def test_another_route_goes_on_where_one_has_ended(server, tier):
    with (
        ScriptedServer(extensions=CHUNKING) as second,
        transport_to(server.url, tier) as one,
        transport_to(second.url, tier) as two,
    ):
        server.on(".", Callback(server.kill), after=3)
        given = notes(10)
        outcomes = list(send_all(FailoverTransport([one, two]), given, window=1))
        assert statuses(outcomes) == ["accepted"] * 3 + ["in_doubt"] + ["accepted"] * 6
        two.close()
        second.wait_closed()
        check_held(Ended(None, tuple(outcomes), ""), [*server.messages, *second.messages])
        assert len(server.messages) == 3


# Whatever happens


class Relay:
    """Passes octets on; `plans` says of a connection, by its number, where it is cut."""

    def __init__(self, target, plans):
        self._target, self._plans = target, plans
        self._numbers = itertools.count(1)
        #: numbers of those that were
        self.cut = []

    def serve(self, connected, stopping):
        number = next(self._numbers)
        side, left, reset = self._plans.get(number, (0, None, False))
        with socket.create_connection(self._target) as server:
            pair = (connected, server)
            while left != 0:
                for one in select.select(pair, [], [])[0]:
                    way = pair.index(one)
                    octets = one.recv(65536)[: left if way == side else None]
                    if not octets:
                        return
                    pair[1 - way].sendall(octets)
                    if way == side and left is not None:
                        left -= len(octets)
            self.cut.append(number)
            for one in pair:
                if reset:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.close()


@settings(
    max_examples=150 // one_in(4),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    plans=st.dictionaries(
        st.integers(1, 5),
        st.tuples(st.integers(0, 1), st.integers(0, 2500), st.booleans()),
        max_size=5,
    ),
    bad=st.lists(st.booleans(), min_size=1, max_size=24),
    connections=st.integers(1, 3),
    window=st.integers(1, 4),
    tier=st.sampled_from(list(TIERS.values())),
    whole=st.booleans(),
)
def test_whatever_is_cut_and_refused(plans, bad, connections, window, tier, whole):
    envelopes = [
        note(f"n{n}", recipients=["bad@example.net"] if refused else None)
        for n, refused in enumerate(bad)
    ]
    with ScriptedServer(extensions=CHUNKING) as server:
        server.refuse("bad@example.net")
        relay = Relay(server.address, plans)
        with RawServer(relay.serve) as raw:
            url = "smtp://{}:{}".format(*raw.address)
            with transport_to(url, f"{tier}&connections={connections}&timeout=10") as transport:
                if whole:
                    outcomes = list(send_all(transport, envelopes, window=window))
                else:
                    outcomes = of_one_session(transport, envelopes, window)
        if outcomes is None:
            return
        check(outcomes, envelopes, server)
        for outcome in outcomes:
            if outcome.status in ("accepted", "failed"):
                assert (outcome.status == "failed") == bad[outcome.position]
        assert count(outcomes, "in_doubt") <= len(relay.cut) * (1 if tier else window)
        if not relay.cut:
            assert {str(o.status) for o in outcomes} <= {"accepted", "failed"}


def of_one_session(transport, envelopes, window):
    try:
        session = transport.open()
    except TransportError:
        return None
    try:
        return list(session.send(envelopes, window=window))
    finally:
        session.close()
