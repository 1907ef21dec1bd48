"""Several connections for one ``send``: ``connections=N``, from one thread."""

from __future__ import annotations

import itertools
import threading
import time

import pytest
from commits import commit, note
from many import CHUNKING, FAULTS, TIERS, check, count, notes, opened

from txmail.smtp.refusals import REFUSALS_LIMIT
from txmail.testing import CLOSE, HANG, Callback, ScriptedServer, then
from txmail.transports import smtp

LARGE = (10_000_000, 300_000, 3_000_000)


@pytest.fixture
def server():
    with ScriptedServer(extensions=CHUNKING) as server:
        yield server


# How many, and from where


@pytest.mark.parametrize("listed", [True, False], ids=["list", "generator"])
@pytest.mark.parametrize(("envelopes", "connections"), [(0, 1), (1, 1), (2, 2), (3, 3), (20, 3)])
def test_there_are_as_many_connections_as_there_is_use_for(
    server, tier, envelopes, connections, listed
):
    given = notes(envelopes)
    with opened(server, 3, tier) as session:
        outcomes = list(session.send(given if listed else iter(given)))
        assert len(server.connections) == connections
    assert count(outcomes, "accepted") == envelopes
    check(outcomes, given, server)


def test_all_work_at_the_same_time(server, tier):
    """No connection gets an answer before each of them has a message."""
    together = threading.Barrier(4)
    for number in range(1, 5):
        server.on("MAIL", Callback(lambda: together.wait(10)), connection=number)
    given = notes(8)
    with opened(server, 4, tier) as session:
        outcomes = list(session.send(given))
    check(outcomes, given, server)
    assert not together.broken
    assert {m.connection for m in server.messages} == {1, 2, 3, 4}


def test_one_thread_drives_them_all(server, tier):
    before, opening = set(threading.enumerate()), []

    def ours():
        # A thread of an earlier test may still be ending: only new ones count.
        threads = [t for t in threading.enumerate() if t not in before]
        return [t.name for t in threads if t.name != "ScriptedServer"]

    server.on("EHLO", Callback(lambda: opening.extend(ours())), times=None)
    given = notes(40)
    with opened(server, 4, tier) as session:
        for outcome in session.send(given):
            assert outcome.status == "accepted"
            assert not ours()
    opened_by = {name.partition("_")[0] for name in opening}
    assert opened_by == {"txmail-connect"}


# A small one beside a large one


@pytest.mark.representative(every=5)
@pytest.mark.parametrize("lazily", [False, True], ids=["list", "generator"])
@pytest.mark.parametrize("size", LARGE)
@pytest.mark.parametrize("ahead", [0, 3])
def test_a_small_message_does_not_wait_behind_a_large_one(server, tier, size, ahead, lazily):
    """The server reads nothing of the large one's connection until all small ones are accepted."""
    release = threading.Event()
    wait = Callback(lambda: release.wait(30))
    if tier and not ahead:  # its content is on its way
        server.on("DATA", then("354 Go on", wait), connection=1)
    else:
        server.on("MAIL", then("250 2.1.0 Ok", wait), matching="<large")
    (large,), small = notes(1, size, "large"), notes(6, name="small")
    given = [*small[:ahead], large, *small[ahead:]]
    outcomes = []
    with opened(server, 2, tier) as session:
        for outcome in session.send(iter(given) if lazily else given):
            outcomes.append(outcome)
            if len(outcomes) == len(small):
                release.set()
    assert outcomes[-1].position == ahead
    assert count(outcomes, "accepted") == len(given)
    check(outcomes, given, server)


def test_a_small_message_finds_the_one_connection_that_no_large_one_keeps_busy(server, tier):
    release = threading.Event()
    wait = then("250 2.0.0 Ok", Callback(lambda: release.wait(30)))
    server.on("RCPT", wait, matching="<large", times=None)
    given = [
        *(note(f"large{size}", body=b"x" * 76 * (size // 76) + b"\r\n") for size in LARGE),
        *notes(20),
    ]
    outcomes = []
    with opened(server, 4, tier) as session:
        for outcome in session.send(iter(given)):
            outcomes.append(outcome)
            if len(outcomes) == 20:
                assert {o.position for o in outcomes} == set(range(3, 23))
                release.set()
    check(outcomes, given, server)


# Connections that end


@pytest.mark.representative(every=5)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", ".", "RSET"])
def test_the_others_go_on_when_one_ends(server, tier, verb, fault):
    server.on("BDAT" if verb == "." and not tier else verb, FAULTS[fault], connection=2, after=1)
    given = notes(60)
    with opened(server, 3, tier + "&window=4") as session:
        outcomes = list(session.send(given))
        # Without CHUNKING there is no RSET where nothing was refused.
        assert any(s.closed for s in session._sessions) or (verb == "RSET" and tier)
    check(outcomes, given, server)
    assert count(outcomes, "unsent") == 0
    assert count(outcomes, "in_doubt") <= (1 if tier else 4)
    assert count(outcomes, "accepted") >= 60 - (2 if tier else 5)
    if tier and verb == "MAIL":  # nothing of it had been sent: another one takes it
        assert count(outcomes, "accepted") >= 59
        assert count(outcomes, "accepted") == 60 or fault != "421"


def test_one_that_has_nothing_to_do_any_more_goes_on_for_one_that_ends(server):
    """What is waiting on the second connection comes back when the first has no more work."""
    first_is_done = threading.Event()
    server.on("MAIL", then(Callback(lambda: first_is_done.wait(30)), CLOSE), connection=2)
    outcomes, given = [], notes(2)
    with opened(server, 2, TIERS["pipeline"]) as session:
        for outcome in session.send(given):
            outcomes.append(outcome)
            first_is_done.set()
    check(outcomes, given, server)
    assert [m.connection for m in server.messages] == [1, 1]
    assert len(server.connections) == 2


def test_one_that_was_left_for_its_refusals_does_not_take_what_comes_back(server):
    enough = threading.Event()
    server.on("MAIL", then(Callback(lambda: enough.wait(30)), CLOSE), connection=2)
    server.on("RCPT", "550 5.1.1 no such user", times=None)
    given = notes(30)
    outcomes, rest = [], iter(given)
    with opened(server, 2, TIERS["lockstep"]) as session:
        for outcome in session.send(rest, keep_untaken=True):
            outcomes.append(outcome)
            if count(outcomes, "failed") == REFUSALS_LIMIT:
                enough.set()
    assert count(outcomes, "failed") == REFUSALS_LIMIT
    assert count(outcomes, "unsent") == 1
    assert list(rest) == given[len(outcomes) :]
    check(outcomes, given[: len(outcomes)], server)


@pytest.mark.parametrize("fault", FAULTS)
def test_all_end(server, tier, fault):
    for number in (1, 2, 3):
        server.on(".", FAULTS[fault], connection=number, after=2)
    given = notes(30)
    with opened(server, 3, tier + "&window=2") as session:
        outcomes = list(session.send(given))
    check(outcomes, given, server)
    assert count(outcomes, "accepted") == 6
    assert count(outcomes, "in_doubt") + count(outcomes, "deferred") <= 6
    unsent = [o for o in outcomes if o.status == "unsent"]
    assert len(unsent) >= 18
    assert {(o.scope, o.action) for o in unsent} == {("route", "defer_route")}
    assert all(server.url in o.reason or fault in o.reason for o in unsent if fault != "421")
    assert all(o.reason for o in unsent)


@pytest.mark.parametrize("verb", ["EHLO", "RSET", "MAIL", "."])
def test_what_was_not_taken_stays_in_the_iterator(server, tier, verb):
    """With `leave`; also of what was looked at to know how many connections it takes."""
    for number in (1, 2, 3):
        server.on(verb, CLOSE, connection=number, after=verb == "EHLO")
    given = notes(30)
    rest = iter(given)
    with opened(server, 3, tier + "&window=2") as session:
        if verb == "EHLO":
            server.kill()
        outcomes = list(session.send(rest, keep_untaken=True))
    left = list(rest)
    assert given[len(given) - len(left) :] == left
    check(outcomes, given[: len(given) - len(left)], server)
    assert len(left) >= 20 or (verb == "RSET" and tier)


def test_one_that_cannot_be_opened_is_done_without(server, tier):
    server.on("connect", then("421 4.7.0 too many connections", CLOSE), connection=3)
    given = notes(40)
    with opened(server, 4, tier) as session:
        outcomes = list(session.send(given))
        assert len(server.connections) == 4
    assert count(outcomes, "accepted") == 40
    check(outcomes, given, server)
    assert {m.connection for m in server.messages} == {1, 2, 4}


def test_one_that_nobody_answers_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr(smtp, "MORE_TIMEOUT", 0.2)
    server.on("connect", HANG, connection=2)
    given = notes(10)
    with opened(server, 2) as session:
        assert count(session.send(given), "accepted") == 10
    assert {m.connection for m in server.messages} == {1}


def test_if_there_is_no_server_any_more_everything_is_unsent_and_says_why(server):
    given = notes(10)
    with opened(server, 3) as session:
        server.stop()
        outcomes = list(session.send(given))
    check(outcomes, given, server)
    assert {(o.status, o.action) for o in outcomes} == {("unsent", "defer_route")}
    assert all("has closed the connection" in o.reason for o in outcomes)


def test_what_needs_another_server_is_not_tried_for_ever():
    """HELO does not offer SMTPUTF8: that is nothing another connection would change."""
    with ScriptedServer(ehlo=False) as server:
        given = [
            *notes(5),
            note("utf8", recipients=["j\u00fcrgen@example.net"]),
            *notes(5, name="m"),
        ]
        with opened(server, 2) as session:
            outcomes = list(session.send(given))
        check(outcomes, given, server)
        assert {(o.position, o.action) for o in outcomes if o.status != "accepted"} == {
            (5, "stop_route")
        }


# Time


@pytest.mark.representative(every=3)
def test_the_time_is_for_all_of_it(server, tier):
    server.on(".", HANG, times=None)
    server.on("connect", HANG, connection=3)
    given = notes(30)
    with opened(server, 3, tier + "&window=2") as session:
        started = time.monotonic()
        outcomes = list(session.send(given, timeout=0.5))
        assert time.monotonic() - started < 4  # opening the third alone may take 5 seconds
    server.stop()
    check(outcomes, given, server)
    assert count(outcomes, "accepted") == 0
    assert count(outcomes, "unsent") >= 26
    assert all("no answer from" in o.reason for o in outcomes)


@pytest.mark.representative(every=3)
def test_one_that_says_nothing_any_more_does_not_delay_the_others(server, tier):
    server.on(".", HANG, connection=2)
    given = notes(30)
    outcomes, late = [], []
    with opened(server, 3, tier + "&window=2&timeout=1") as session:
        for outcome in session.send(given):
            if outcome.status == "in_doubt":
                late.append(len(outcomes))
            outcomes.append(outcome)
    check(outcomes, given, server)
    assert min(late) >= 26


def test_others_that_are_busy_do_not_keep_it_from_being_given_up(server, tier):
    server.on(".", HANG, connection=2)
    given, found = [], []

    def endless():
        for number in itertools.count():
            if "in_doubt" in found or number == 30_000:
                return
            given.append(note(f"n{number}"))
            yield given[-1]

    with opened(server, 3, tier + "&window=2&timeout=0.3") as session:
        found.extend(outcome.status for outcome in session.send(endless()))
    assert found.count("in_doubt") in (1, 2)
    assert len(given) < 30_000


# All or nothing


def test_strictly_only_the_first_is_used(server, tier):
    given = notes(10)
    with opened(server, 4, tier) as session:
        assert session.preflight(given) == []
        assert [o.position for o in session.send(given, strict=True)] == list(range(10))
        assert len(server.connections) == 1
        server.refuse("n3@example.net")
        outcomes = list(session.send(notes(6), strict=True))
        assert [str(o.status) for o in outcomes] == ["accepted"] * 3 + ["failed"] + ["unsent"] * 2
        assert len(server.connections) == 1
        assert not session.restartable
        server.kill()
        assert count(session.send(notes(2), strict=True), "unsent") == 2
        assert session.restartable
        assert session.unsettled() == []


def test_a_commit_sends_over_one(server, tm, make_mailer):
    mailer = make_mailer(f"{server.url}?connections=4")
    ended = commit(tm, mailer, *notes(8))
    assert ended.statuses == ["accepted"] * 8
    assert len(server.connections) == 1
    server.refuse("n5@example.net")
    assert set(commit(tm, mailer, *notes(8)).statuses) == {"unsent", "failed"}
    assert len(server.connections) == 1
    assert len(server.messages) == 8
