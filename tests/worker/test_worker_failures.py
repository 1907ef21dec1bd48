"""The failure table as a worker keeps it: what becomes of each message, and what of all others."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import pairwise

import pytest
from commits import note
from queues import OWN_POSTGRESQL, OWN_QUEUES, OWN_SQLITE, kinds

sa = pytest.importorskip("sqlalchemy")

from workers import (  # noqa: E402
    change_delivery,
    put,
    put_many,
    received,
    working,
)

from txmail import transport_from_url  # noqa: E402
from txmail.events import Events, RouteRecovered  # noqa: E402
from txmail.exceptions import ConfigurationError  # noqa: E402
from txmail.outcome import Action, Outcome, Scope, Status  # noqa: E402
from txmail.queue import schema  # noqa: E402
from txmail.queue.retry import RetryPolicy, Settlement  # noqa: E402
from txmail.queue.states import State  # noqa: E402
from txmail.reply import Reply  # noqa: E402
from txmail.testing import CLOSE, NO_REPLY, RESET, ScriptedServer, then  # noqa: E402
from txmail.testing.server import EXTENSIONS  # noqa: E402
from txmail.worker import run_once  # noqa: E402

BAD, BAD_ID = "bad@example.net", "bad@example.com"
HOUR = 3600.0


@pytest.fixture
def server():
    """Without CHUNKING, so that one message at a time may be in doubt."""
    with ScriptedServer(extensions=EXTENSIONS) as server:
        yield server


def surrounded(app, count=4):
    """A bad message among good ones; the recipients of those."""
    good = put_many(app, "before", count)
    put(app, note("bad"))
    return good + put_many(app, "after", count)


@dataclasses.dataclass(frozen=True)
class Case:
    """What a server does to a message, and what becomes of it."""

    verb: str
    action: object
    state: str
    attempts: int = 1
    code: int | None = None
    #: how often the server has it
    arrived: int = 0
    duplicate: int = 0
    #: False if the route is left alone, so that others may have to wait
    goes_on: bool = True


CASES = {
    "greylisted": Case("RCPT", "451 4.2.0 come back later", "deferred", code=451),
    "a busy mailbox": Case("RCPT", "450 4.2.1 busy", "deferred", code=450),
    "421 at RCPT": Case("RCPT", then("421 4.3.2 down", CLOSE), "ready", 0, 421, goes_on=False),
    "a full mailbox, for a while": Case("RCPT", "452 4.2.2 full", "deferred", code=452),
    "a full mailbox, for good": Case("RCPT", "552 5.2.2 full", "deferred", code=552),
    "no such user": Case("RCPT", "550 5.1.1 no such user", "failed", code=550),
    "a bad mailbox name": Case("RCPT", "553 5.1.3 no", "failed", code=553),
    "policy at RCPT": Case("RCPT", "554 5.7.1 no", "failed", code=554),
    "the sender is refused": Case("MAIL", "550 5.7.1 not you", "failed", code=550),
    "the sender may come later": Case("MAIL", "451 4.3.0 later", "deferred", code=451),
    "the message is refused": Case(".", "554 5.6.0 no", "failed", code=554),
    "the message is too large": Case(".", "552 5.3.4 too big", "failed", code=552),
    "the message may come later": Case(".", "451 4.3.0 later", "deferred", code=451),
    "accepted and hung up": Case(".", then("250 2.0.0 ok", CLOSE), "sent", arrived=1),
    "gone at the final dot": Case(".", CLOSE, "in_doubt", duplicate=1),
    "reset at the final dot": Case(".", RESET, "in_doubt", duplicate=1),
    "half a line at the final dot": Case(
        ".", then(b"250 2.0.0 o", CLOSE), "in_doubt", 1, None, 1, 1
    ),
    "no reply at all at the final dot": Case(".", b"what?\r\n", "in_doubt", duplicate=1),
    "gone at RCPT, once": Case("RCPT", CLOSE, "sent", arrived=1),
    "malformed at RCPT, once": Case("RCPT", b"what?\r\n", "sent", arrived=1),
    "gone at MAIL, once": Case("MAIL", CLOSE, "sent", arrived=1),
    "greylisted, or too fast": Case("RCPT", "450 4.7.1 not now", "deferred", code=450),
    "too fast": Case("MAIL", "450 4.7.1 too fast", "ready", 0, 450, goes_on=False),
    "too fast at the final dot": Case(".", "451 4.7.0 slowly", "ready", 0, 451, goes_on=False),
    "the quota is used up": Case(".", "550 5.4.5 quota", "ready", 0, 550, goes_on=False),
    "a login is wanted": Case("MAIL", "530 5.7.0 who are you", "ready", 0, 530, goes_on=False),
}


@pytest.mark.representative(every=7)
@pytest.mark.parametrize("name", CASES)
@kinds(OWN_POSTGRESQL)
def test_what_becomes_of_one_message_and_that_others_do_not_suffer(app, server, smtp, name):
    """On SQLite each row of the failure table is tried, by `test_worker_table`."""
    case = CASES[name]
    matching = {"MAIL": BAD_ID, "RCPT": BAD, ".": BAD_ID}[case.verb]
    # A fresh connection is asked about a refusal once more.
    times = 1 if name.endswith("once") else None
    server.on(case.verb, case.action, matching=f"<{matching}>", times=times)
    good = surrounded(app)
    run_once(app.queue, smtp)
    row = app.deliveries()[BAD]
    assert (row.state, row.attempts, row.duplicate) == (case.state, case.attempts, case.duplicate)
    if case.code is not None:
        assert row.code == case.code
        assert str(case.code) in row.reply
    assert received(server).count(BAD) == case.arrived
    tried = [] if case.state in ("sent", "ready") else [case.state]
    assert [a.state for a in app.attempts(BAD)] == tried
    states = app.states()
    if case.goes_on:
        assert {states[r] for r in good} == {"sent"}
    assert {states[r] for r in good} <= {"sent", "ready"}
    assert all(app.deliveries()[r].attempts == 0 for r in good if states[r] == "ready")
    counts = Counter(received(server))
    assert all(counts[r] == (states[r] == "sent") for r in good)


#: one of each kind of those that do not fail
AGAIN = (
    "421 at RCPT",
    "the sender may come later",
    "the message may come later",
    "gone at the final dot",
    "half a line at the final dot",
    "gone at RCPT, once",
    "too fast",
    "the quota is used up",
    "a login is wanted",
)


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("name", AGAIN)
@kinds(OWN_SQLITE)
def test_what_did_not_arrive_does_so_once_when_its_time_has_come(app, server, smtp, clock, name):
    case = CASES[name]
    matching = {"MAIL": BAD_ID, "RCPT": BAD, ".": BAD_ID}[case.verb]
    server.on(case.verb, case.action, matching=f"<{matching}>")
    good = surrounded(app)
    run_once(app.queue, smtp)
    clock.advance(HOUR)
    run_once(app.queue, smtp)
    assert set(app.states().values()) == {"sent"}
    times = case.arrived + (case.state != "sent")
    assert Counter(received(server)) == {**dict.fromkeys(good, 1), BAD: times}
    assert app.deliveries()[BAD].duplicate == case.duplicate


@kinds(*OWN_QUEUES)
def test_greylisting_costs_one_try_and_its_history_can_be_read(app, server, smtp, clock):
    server.on("RCPT", "451 4.2.0 greylisted", matching=f"<{BAD}>")
    put(app, note("bad"))
    assert run_once(app.queue, smtp) == 1
    first = clock()
    clock.advance(299)
    assert run_once(app.queue, smtp) == 0
    clock.advance(300)
    assert run_once(app.queue, smtp) == 1
    row = app.deliveries()[BAD]
    assert (row.state, row.attempts, row.code, row.due) == ("sent", 2, 250, row.due)
    (attempt,) = app.attempts(BAD)
    assert (attempt.at, attempt.state, attempt.code, attempt.reply, attempt.route) == (
        first * 1000, "deferred", 451, "451 4.2.0 greylisted", "default"
    )  # fmt: skip
    assert len(attempt.process) == 32
    assert received(server) == [BAD]


@kinds(OWN_SQLITE)
def test_what_was_in_doubt_and_had_arrived_comes_again_flagged_with_the_same_octets(
    app, server, smtp, clock
):
    put(app, note("bad"))
    server.on(".", then(NO_REPLY, CLOSE))
    run_once(app.queue, smtp)
    assert app.states() == {BAD: "in_doubt"}
    clock.advance(HOUR)
    run_once(app.queue, smtp)
    row = app.deliveries()[BAD]
    assert (row.state, row.duplicate, row.attempts) == ("sent", 1, 2)
    assert received(server) == [BAD, BAD]
    assert len({m.content for m in server.messages}) == 1


@kinds(*OWN_QUEUES)
def test_a_drop_at_quit_changes_nothing(app, server, smtp):
    server.on("QUIT", RESET, times=None)
    put_many(app, "n", 3)
    run_once(app.queue, smtp)
    smtp.close()
    assert run_once(app.queue, smtp) == 0
    assert len(received(server)) == 3
    assert set(app.states().values()) == {"sent"}


@kinds(OWN_SQLITE)
def test_a_connection_that_is_lost_in_the_content_costs_no_try(app, clock):
    """The dot has not left: it was certainly not accepted, and that says nothing of the message."""
    with ScriptedServer() as server:
        server.on("DATA", then("354 go on", RESET), times=None)
        transport = transport_from_url(server.url)
        put(app, note("bad", body=b"0123456789abcdef\r\n" * 700_000))
        run_once(app.queue, transport)
        row = app.deliveries()[BAD]
        assert (row.state, row.attempts, row.duplicate) == ("ready", 0, 0)
        assert row.due > clock() * 1000
        server.clear()
        clock.advance(HOUR)
        run_once(app.queue, transport)
        transport.close()
        assert received(server) == [BAD]


@kinds(*OWN_QUEUES)
def test_too_many_recipients_at_once_go_in_several_transactions_and_cost_nothing(app):
    recipients = [f"r{n}@example.net" for n in range(7)]
    with ScriptedServer(max_recipients=3) as server:
        transport = transport_from_url(server.url)
        put(app, note("a", recipients=recipients), note("b"))
        run_once(app.queue, transport)
        transport.close()
        assert [len(m.recipients) for m in server.messages if m.sender[0] == "a"] == [3, 3, 1]
        assert sorted(received(server)) == sorted([*recipients, "b@example.net"])
    rows = app.deliveries()
    assert {(row.state, row.attempts) for row in rows.values()} == {("sent", 1)}
    assert app.read(sa.select(schema.attempt)) == []


@kinds(*OWN_QUEUES)
def test_each_recipient_of_a_message_has_a_verdict_of_its_own(app, server, smtp, clock):
    good, gone, later = "good@example.net", "gone@example.net", "later@example.net"
    server.refuse(gone)
    server.on("RCPT", "451 4.2.0 later", matching=f"<{later}>")
    put(app, note("a", recipients=[good, gone, later]))
    run_once(app.queue, smtp)
    assert app.states() == {good: "sent", gone: "failed", later: "deferred"}
    clock.advance(HOUR)
    run_once(app.queue, smtp)
    assert app.states() == {good: "sent", gone: "failed", later: "sent"}
    assert [m.recipients for m in server.messages] == [(good,), (later,)]
    assert [a.state for a in app.attempts(gone)] == ["failed"]
    assert app.attempts(good) == []
    assert sum(line.startswith(f"RCPT TO:<{gone}>") for line in server.commands) == 1


@kinds(OWN_SQLITE)
def test_a_thousand_good_messages_around_five_bad_ones_all_arrive(app, server, smtp):
    bad = {
        "no user": ("RCPT", "550 5.1.1 no such user"),
        "later": ("RCPT", "451 4.2.0 later"),
        "sender": ("MAIL", "553 5.1.8 no such sender"),
        "content": (".", "554 5.6.0 spam"),
        "gone": (".", RESET),
    }
    good: list[str] = []
    for name, (verb, action) in bad.items():
        good += put_many(app, f"{name[:2].lower()}-good", 200)
        number = list(bad).index(name)
        domain = "example.net" if verb == "RCPT" else "example.com"
        server.on(verb, action, matching=f"<bad{number}@{domain}>")
        put(app, note(f"bad{number}"))
    assert run_once(app.queue, smtp) >= 1005
    states = app.states()
    assert [states[f"bad{n}@example.net"] for n in range(5)] == [
        "failed", "deferred", "failed", "failed", "in_doubt"
    ]  # fmt: skip
    assert {states[r] for r in good} == {"sent"}
    assert sorted(received(server)) == sorted(good)


# -- what is the route's fault


ROUTE_FAULTS = {
    "554 greeting": ("connect", then("554 5.7.1 nothing from you", CLOSE)),
    "421 greeting": ("connect", then("421 4.3.2 busy", CLOSE)),
    "no greeting": ("connect", CLOSE),
    "a greeting that is none": ("connect", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "our name is refused": ("EHLO", "550 5.7.1 not you"),
    "gone at EHLO": ("EHLO", CLOSE),
    "gone at MAIL, always": ("MAIL", CLOSE),
    "gone at RCPT, always": ("RCPT", RESET),
    "malformed at MAIL, always": ("MAIL", b"what?\r\n"),
    "421 at MAIL, always": ("MAIL", then("421 4.3.2 down", CLOSE)),
}


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("name", ROUTE_FAULTS)
@kinds(OWN_SQLITE)
def test_what_is_the_fault_of_the_route_costs_no_message_anything(app, server, smtp, clock, name):
    verb, action = ROUTE_FAULTS[name]
    server.on(verb, action, times=None)
    wanted = put_many(app, "n", 20)
    run_once(app.queue, smtp)
    rows = app.deliveries().values()
    assert {(row.state, row.attempts, row.duplicate) for row in rows} == {("ready", 0, 0)}
    assert all(row.due > clock() * 1000 and row.reply for row in rows)
    assert app.read(sa.select(schema.attempt)) == []
    server.clear()
    clock.advance(HOUR)
    run_once(app.queue, smtp)
    assert sorted(received(server)) == sorted(wanted)
    assert set(app.states().values()) == {"sent"}


@kinds(OWN_SQLITE)
def test_a_server_that_is_not_there_costs_no_message_anything(app, clock):
    server = ScriptedServer().start()
    server.stop()
    transport = transport_from_url(server.url)
    wanted = put_many(app, "n", 100)
    run_once(app.queue, transport)
    rows = app.deliveries().values()
    assert {(row.state, row.attempts) for row in rows} == {("ready", 0)}
    with server:
        clock.advance(HOUR)
        run_once(app.queue, transport)
        assert sorted(received(server)) == sorted(wanted)
        transport.close()


@kinds(OWN_SQLITE)
def test_a_login_that_is_refused_is_not_tried_for_each_message(app):
    with ScriptedServer(credentials={"ann": "right"}) as server:
        url = server.url.replace("//", "//ann:wrong@")
        transport = transport_from_url(url + "?auth=plain&auth_in_clear=yes")
        put_many(app, "n", 200)
        with working(app.queue, transport) as worker:
            server.wait_for(lambda: any("AUTH" in line for line in server.commands))
            worker.wait_rounds(5)
        assert sum(line.startswith("AUTH") for line in server.commands) == 1
        transport.close()
    rows = app.deliveries().values()
    assert {(row.state, row.attempts) for row in rows} == {("ready", 0)}
    assert "wrong" not in str(list(rows))


@kinds(OWN_SQLITE)
def test_a_transport_that_fails_in_its_own_way_loses_nothing(app, clock):
    """What nobody has expected ends in a state, too; and it is not for ever on its way."""
    put_many(app, "n", 20)
    transport = transport_from_url("memory:")
    real, fails = transport.outcomes, [True]

    def outcomes(envelope, position=0):
        if fails and len(transport.envelopes) == 5:
            raise ZeroDivisionError
        return real(envelope, position)

    transport.outcomes = outcomes
    run_once(app.queue, transport)
    assert "sending" not in app.queue.counts()
    fails.clear()
    clock.advance(HOUR)
    run_once(app.queue, transport)
    clock.advance(HOUR)
    run_once(app.queue, transport)
    assert app.queue.counts() == {"sent": 20}
    counts = Counter(r for e in transport.envelopes for r in e.recipients)
    flagged = {r for r, row in app.deliveries().items() if row.duplicate}
    assert {r for r, n in counts.items() if n > 1} <= flagged


@kinds(OWN_SQLITE)
def test_a_transport_that_cannot_even_be_opened_has_sent_nothing(app):
    put_many(app, "n", 20)
    transport = transport_from_url("memory:")

    def fail(**_):
        raise ConfigurationError("there is no password", field="password")

    transport.open = fail
    run_once(app.queue, transport)
    rows = app.deliveries().values()
    assert {(row.state, row.attempts, row.duplicate) for row in rows} == {("ready", 0, 0)}


# -- the policy


def outcome(status=Status.DEFERRED, scope=Scope.RECIPIENT, action=Action.DEFER):
    return Outcome("a@example.net", status, scope, None, "<m@example.com>", action)


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_the_pause_doubles_up_to_its_longest_and_jitter_only_adds(jitter):
    policy = RetryPolicy(first=100, longest=1500, jitter=lambda: jitter)
    pauses = [policy.delay(attempts) for attempts in range(8)]
    bare = [100, 200, 400, 800, 1500, 1500, 1500, 1500]
    assert pauses == [int(pause * (1 + jitter / 4)) for pause in bare]
    assert policy.delay(10_000) == int(1500 * (1 + jitter / 4))


def test_what_is_deferred_is_tried_until_it_expires():
    policy = RetryPolicy(first=100, longest=1000, lifetime=10_000, jitter=float)
    now, attempts = 0, 0
    moments = []
    while True:
        made = policy.settle(outcome(), now, attempts=attempts, created=0)
        if made.state is not State.DEFERRED:
            break
        assert made.due > now
        now, attempts = made.due, attempts + 1
        moments.append(now)
    assert (made.state, made.due) == (State.EXPIRED, None)
    assert moments[:4] == [100, 300, 700, 1500]
    assert 9000 <= moments[-1] < 10_000


@pytest.mark.parametrize(
    ("said", "days"),
    [
        ("452 4.2.2 full", 3),
        ("552 5.2.2 full", 3),
        ("452 4.3.1 no space", 5),
        ("450 4.2.1 busy", 5),
        ("450 busy", 5),
    ],
)
def test_a_full_mailbox_is_waited_for_three_days_and_all_else_five(said, days):
    policy = RetryPolicy(jitter=float)
    full = dataclasses.replace(outcome(), reply=Reply(int(said[:3]), (said[4:],)))
    day = 24 * 3_600_000
    last = days * day - policy.delay(0)
    assert policy.settle(full, last - 1, created=0).state is State.DEFERRED
    made = policy.settle(full, last, created=0)
    assert (made.state, made.due, made.attempts) == (State.EXPIRED, None, 1)
    assert policy.settle(full, day, created=0, expires=day).state is State.EXPIRED
    late = policy.settle(full, last, created=0, expires=9 * day)
    assert (late.state is State.EXPIRED) is (days == 3)


def test_an_end_of_its_own_goes_before_the_lifetime():
    policy = RetryPolicy(first=100, lifetime=10_000, jitter=float)
    assert policy.settle(outcome(), 0, created=0, expires=101).state is State.DEFERRED
    assert policy.settle(outcome(), 0, created=0, expires=100).state is State.EXPIRED
    assert policy.settle(outcome(), 9950, created=0, expires=90_000).state is State.DEFERRED


def test_what_is_in_doubt_again_and_again_waits_longer_each_time_and_at_last_for_a_person():
    policy = RetryPolicy(jitter=float)
    doubt = outcome(Status.IN_DOUBT, Scope.MESSAGE, Action.IN_DOUBT)
    now, attempts, pauses = 0, 0, []
    while (made := policy.settle(doubt, now, attempts=attempts, created=0)).due is not None:
        assert made.state is State.IN_DOUBT
        assert made.doubt
        pauses.append(made.due - now)
        now, attempts = made.due, attempts + 1
    assert made.state is State.IN_DOUBT
    assert pauses == sorted(pauses)
    assert pauses[1] > pauses[0] == 300_000
    assert len(pauses) < 50


@pytest.mark.parametrize("attempts", [0, 5])
@pytest.mark.parametrize("status", [Status.UNSENT, Status.DEFERRED])
def test_the_fault_of_the_route_is_no_try_and_never_expires(status, attempts):
    made = RetryPolicy(lifetime=10).settle(
        outcome(status, Scope.ROUTE, Action.DEFER_ROUTE), 10**9, attempts=attempts, created=0
    )
    assert (made.state, made.attempts) == (State.READY, 0)


@kinds(OWN_SQLITE)
def test_a_message_is_tried_ever_more_rarely_until_its_time_is_over(app, server, smtp, clock):
    server.on("RCPT", "451 4.2.0 later", times=None)
    put(app, note("bad"), expires=clock.at(3 * HOUR))
    pauses = []
    while app.states()[BAD] in ("ready", "deferred"):
        before = clock()
        run_once(app.queue, smtp, policy=RetryPolicy(jitter=float))
        row = app.deliveries()[BAD]
        if row.state != "deferred":
            break
        pauses.append(row.due / 1000 - before)
        clock.advance(pauses[-1])
    assert pauses == [300, 600, 1200, 2400, 4800]
    row = app.deliveries()[BAD]
    assert (row.state, row.attempts, row.code) == ("expired", 6, 451)
    assert [a.state for a in app.attempts(BAD)] == ["deferred"] * 5 + ["expired"]


class Patient:
    """Knows `settle`, and nothing else."""

    def settle(self, outcome, now, *, attempts=0, created=None, expires=None):
        assert created <= now
        if outcome.status is Status.FAILED:
            return Settlement(State.DEFERRED, now + 1000, 1, False, 550, f"try {attempts}")
        return RetryPolicy().settle(outcome, now, attempts=attempts)


@kinds(OWN_SQLITE)
def test_a_policy_of_ones_own_need_only_know_how_to_settle(app, server, smtp, clock):
    server.on("RCPT", "550 5.1.1 no such user", times=2)
    put(app, note("bad"))
    for _ in range(3):
        run_once(app.queue, smtp, policy=Patient())
        clock.advance(1)
    assert app.states() == {BAD: "sent"}
    assert [a.reply for a in app.attempts(BAD)] == ["try 0", "try 1"]


class Broken:
    def __init__(self, made):
        self.made = made

    def settle(self, outcome, now, **_):
        if self.made is None:
            raise ZeroDivisionError
        if isinstance(self.made, Settlement):
            return self.made
        return Settlement(self.made, None, 1, False, None, None)


NONSENSE = [
    Settlement(State.DEFERRED, None, 1, False, None, None),
    Settlement(State.DEFERRED, "soon", 1, False, None, None),
    Settlement(State.DEFERRED, 2**63, 1, False, None, None),
    Settlement(State.FAILED, None, 2, False, None, None),
    Settlement(State.FAILED, None, 1, False, "550", None),
    Settlement(State.FAILED, None, 1, False, 2**15, None),
    Settlement(State.FAILED, None, 1, False, None, "a\0b"),
    Settlement(State.FAILED, None, 1, False, None, "\ud800"),
]


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("made", [None, State.HELD, State.STAGED, *NONSENSE])
@kinds(OWN_SQLITE)
def test_a_policy_that_fails_or_asks_for_what_cannot_be_stops_nothing(app, server, smtp, made):
    server.refuse(BAD)
    good = surrounded(app)
    run_once(app.queue, smtp, policy=Broken(made))
    states = app.states()
    assert states.pop(BAD) == "failed"
    assert states == dict.fromkeys(good, "sent")


@kinds(OWN_SQLITE)
def test_with_on_doubt_hold_what_may_have_arrived_is_never_sent_again_by_itself(
    kind, make_queue, server, smtp, clock
):
    app = make_queue(kind, clock=clock, on_doubt="hold")
    server.on(".", CLOSE, matching=f"<{BAD_ID}>")
    good = surrounded(app)
    run_once(app.queue, smtp)
    clock.advance(10 * 24 * HOUR)
    run_once(app.queue, smtp)
    row = app.deliveries()[BAD]
    assert (row.state, row.due, row.duplicate) == ("in_doubt", None, 1)
    assert sorted(received(server)) == sorted(good)
    # Until a person says so.
    change_delivery(app, BAD, state="ready", due=int(clock() * 1000))
    run_once(app.queue, smtp)
    assert app.states()[BAD] == "sent"


# -- what runs of cron know of each other


@kinds(*OWN_QUEUES)
def test_a_route_fails_for_longer_each_time_also_if_each_time_it_is_another_worker_that_tries(
    app, server, smtp, clock
):
    server.on("connect", then("421 4.3.2 busy", CLOSE), times=None)
    put(app, note("a"))
    pauses = []
    for _ in range(4):
        run_once(app.queue, smtp)
        (row,) = app.read(sa.select(schema.route))
        pauses.append(row.until / 1000 - clock())
        clock.advance(pauses[-1] + 1)
    assert row.failures == 4
    assert all(later > sooner * 1.5 for sooner, later in pairwise(pauses))


@pytest.mark.parametrize("greeting", ["421 4.3.2 busy", "554 5.7.1 nothing from you"])
@kinds(*OWN_QUEUES)
def test_a_route_works_again_for_all_also_if_it_was_another_worker_that_saw_it_fail(
    app, server, smtp, clock, greeting
):
    server.on("connect", then(greeting, CLOSE), times=None)
    put(app, note("a"))
    run_once(app.queue, smtp)
    server.clear()
    clock.advance(HOUR)
    told = []
    events = Events()
    events.subscribe(told.append)
    run_once(app.queue, smtp, events=events)
    assert received(server) == ["a@example.net"]
    (row,) = app.read(sa.select(schema.route))
    assert (row.state, row.failures, row.reason) == ("closed", 0, None)
    assert [event.route for event in told if isinstance(event, RouteRecovered)] == ["default"]
