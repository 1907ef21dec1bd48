"""The pool keeps what is worth keeping, makes nobody wait for ever, and survives its users."""

from __future__ import annotations

import gc
import os
import threading
import time

import pytest
from smtp_helpers import RawServer, greeted, make_envelope, statuses, transport_to

from txmail import transport_from_url
from txmail.budget import Budget
from txmail.delivery.direct import DirectDelivery
from txmail.exceptions import TransportError
from txmail.smtp import pool as pool_module
from txmail.smtp.options import Options
from txmail.smtp.pool import MAX_AGE, MAX_IDLE, MAX_MESSAGES, VERIFY_AFTER, Pool
from txmail.smtp.session import Session
from txmail.smtp.stream import Stream
from txmail.submission import Submission
from txmail.testing import CLOSE, RESET

ONE = make_envelope(1)


@pytest.fixture
def pool(server):
    """A pool of two."""

    def connect(timeout):
        session = Session(Stream.connect(*server.address, timeout), Options(*server.address))
        session.greet(timeout)
        return session

    pool = Pool(connect, 2)
    yield pool
    pool.close()


@pytest.fixture
def impatient(monkeypatch):
    """Nobody waits long for a session."""
    monkeypatch.setattr(pool_module, "WAIT_LIMIT", 0.05)


def test_a_session_given_back_is_taken_again(server, pool):
    session = pool.take(10)
    session.close()
    assert pool.take(10) is session
    assert len(server.connections) == 1


def test_the_session_given_back_last_is_taken_first(pool):
    first, second = pool.take(10), pool.take(10)
    first.close()
    second.close()
    assert [pool.take(10), pool.take(10)] == [second, first]


def test_a_session_in_use_is_nobody_elses(pool):
    assert pool.take(10) is not pool.take(10)


def test_a_session_given_back_twice_is_kept_once(pool):
    session = pool.take(10)
    session.close()
    session.close(dirty=True)
    assert pool.take(10) is session
    assert (
        not session.connection.preflights.dirty
    )  # the second time it was not the caller's any more
    assert pool.take(10) is not session


def test_fresh_is_never_a_kept_one_and_leaves_it_for_others(pool):
    kept = pool.take(10)
    kept.close()
    fresh = pool.take(10, fresh=True)
    assert fresh is not kept
    assert fresh.fresh
    assert pool.take(10) is kept
    assert not kept.fresh


def test_at_the_limit_one_waits_until_a_session_is_given_back(pool):
    sessions = [pool.take(10), pool.take(10)]
    taken, waits = [], threading.Event()
    has_room = pool._has_room

    def tell():
        waits.set()
        return has_room()

    pool._has_room = tell
    waiting = threading.Thread(target=lambda: taken.append(pool.take(10)))
    waiting.start()
    assert waits.wait(10)
    assert not taken
    sessions[0].close()
    waiting.join(10)
    assert taken == [sessions[0]]


@pytest.mark.usefixtures("impatient")
def test_the_wait_is_bounded_and_a_session_then_opened_beyond_the_limit(server, pool):
    sessions = {pool.take(10), pool.take(10), pool.take(10)}
    assert len(sessions) == len(server.connections) == 3


def test_who_may_not_wait_opens_a_session_beyond_the_limit_at_once(pool):
    sessions = {pool.take(10) for _ in range(2)}
    began = time.monotonic()
    sessions.add(pool.take(10, wait=False))
    assert time.monotonic() - began < pool_module.WAIT_LIMIT / 2
    assert len(sessions) == 3


def test_no_more_are_kept_than_the_limit(server, pool):
    sessions = [pool.take(10, wait=False) for _ in range(4)]
    for session in sessions:
        session.close()
    server.wait_for(lambda: sum(c.ended_by_quit for c in server.connections) == 2)
    assert [s.closed for s in sessions] == [False, False, True, True]


def test_the_wait_counts_as_time_for_connecting(pool):
    for _ in range(2):
        pool.take(10)
    with pytest.raises(TransportError, match="in time"):
        pool.take(0.05)
    assert pool._connecting == 0


def test_a_failed_connection_leaves_room_for_the_next(server, pool):
    server.on("connect", "421 busy", times=2)
    for _ in range(2):
        with pytest.raises(TransportError):
            pool.take(10)
    assert len({pool.take(0.5), pool.take(0.5)}) == 2


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_a_session_that_died_while_it_was_kept_is_dropped(server, pool, how):
    dead = [pool.take(10), pool.take(10)]
    for session in dead:
        session.close()
    getattr(server, how)()
    server.start()
    alive = pool.take(10)
    assert alive not in dead
    assert all(session.closed for session in dead)
    assert statuses(alive.send([ONE])) == ["accepted"]


@pytest.mark.parametrize("said", [b"421 4.4.2 idle too long\r\n", b"250 what\r\n", b"2"])
def test_a_session_that_was_told_something_while_it_was_kept_is_dropped(said):
    tell, told = threading.Event(), threading.Event()

    def serve(connected, stopping):
        greeted(connected)
        assert tell.wait(10)
        connected.sendall(said)
        told.set()
        stopping.wait(10)

    with RawServer(serve) as server, transport_to(server) as transport:
        session = transport.open()
        session.close()
        tell.set()
        assert told.wait(10)
        assert transport.open() is not session
        assert session.closed


def test_a_session_with_replies_unread_is_closed_and_not_kept(server, pool):
    session = pool.take(10)
    sending = session.send([ONE, make_envelope(2)], strict=True)
    next(sending)
    session.close()
    assert session.closed
    assert pool.take(10) is not session
    server.wait_for(lambda: server.connections[0].closed)
    assert len(server.messages) == 1


def test_close_ends_idle_sessions_and_leaves_those_in_use(server, pool):
    idle, used = pool.take(10), pool.take(10)
    idle.close()
    pool.close()
    assert idle.closed
    assert not used.closed
    server.wait_for(lambda: server.connections[0].ended_by_quit)
    used.close()
    assert pool.take(10) is used


def test_a_closed_transport_connects_anew(server):
    with transport_to(server) as transport:
        transport.open().close()
        transport.close()
        transport.close()
        assert statuses(transport.open().send([ONE])) == ["accepted"]


def test_a_child_process_opens_connections_of_its_own(server):
    with transport_to(server) as transport:
        kept, used = transport.open(), transport.open()
        kept.close()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                session = transport.open(timeout=10)
                found = statuses(session.send([ONE]))
                session.close()
                used.close()
                transport.close()
                code = 0 if found == ["accepted"] and session is not kept else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        server.wait_for(lambda: len(server.connections) == 3)
        assert [c.ended_by_quit for c in server.connections] == [False, False, True]
        assert transport.open() is kept
        assert statuses(kept.send([ONE])) == ["accepted"]
        assert statuses(used.send([ONE])) == ["accepted"]
    assert [m.connection for m in server.messages] == [3, 1, 2]


def test_a_lock_held_by_another_thread_at_the_fork_does_not_hang_the_child(server):
    with transport_to(server) as transport:
        transport.open().close()
        held, release = threading.Event(), threading.Event()

        def hold():
            with transport._pool._changed:
                held.set()
                release.wait(10)

        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(10)
        child = os.fork()
        if child == 0:
            try:
                transport.open(timeout=5).close()
            finally:
                os._exit(0)
        try:
            deadline = time.monotonic() + 20
            ended = 0
            while not ended and time.monotonic() < deadline:
                ended, status = os.waitpid(child, os.WNOHANG)
            if not ended:
                os.kill(child, 9)
                os.waitpid(child, 0)
            assert ended == child
            assert os.waitstatus_to_exitcode(status) == 0
        finally:
            release.set()
            holder.join(10)


def test_a_dropped_transaction_gives_its_connection_back(server):
    with transport_to(server, "pool=1") as transport:
        run = DirectDelivery(transport).begin(Budget())
        assert run.prepare([Submission(ONE)], True) == []
        session = run._session
        del run
        gc.collect()
        again = transport.open(timeout=10)
        assert again is session
        assert statuses(again.send([ONE])) == ["accepted"]
        assert server.commands[1:4] == [
            *(f"MAIL FROM:<a@example.com> SIZE={ONE.size}", "RCPT TO:<b@example.com>", "RSET")
        ]


def test_a_dropped_transport_closes_its_connections_without_a_warning(server):
    transport = transport_from_url(server.url)
    transport.open().close()
    transport.open()
    transport.itself = transport
    del transport
    gc.collect()
    server.wait_closed()


def test_threads_share_the_kept_sessions(server):
    rounds, threads = 15, 8
    problems = []
    with transport_to(server, "pool=3") as transport:
        delivery = DirectDelivery(transport)

        def work(number):
            for turn in range(rounds):
                run = delivery.begin(Budget())
                envelope = make_envelope(number * rounds + turn)
                items = [Submission(envelope)]
                found = [*run.prepare(items, True), *run.send(items)]
                if statuses(found) != ["accepted"]:
                    problems.append(found)
                run.finish()

        workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert not problems
        assert len({m.content for m in server.messages}) == rounds * threads
        assert len(server.messages) == rounds * threads
        assert len(server.connections) == 3


@pytest.fixture
def clocked(server, clock):
    def connect(timeout):
        session = Session(Stream.connect(*server.address, timeout), Options(*server.address))
        session.greet(timeout)
        return session

    pool = Pool(connect, 2, clock)
    yield pool, clock
    pool.close()


def noops(server):
    return [command for command in server.commands if command == "NOOP"]


def test_a_session_is_not_used_beyond_its_age(server, clocked):
    pool, clock = clocked
    first = pool.take(5)
    first.close()
    for _ in range(int(MAX_AGE / 100) - 1):
        clock.now += 100
        session = pool.take(5)
        assert session is first
        session.close()
    clock.now += 200
    session = pool.take(5)
    assert session is not first
    session.close()
    assert first.closed


def test_a_session_is_not_used_after_so_many_messages(server, clocked):
    pool, _ = clocked
    first = pool.take(5)
    first.connection.messages = MAX_MESSAGES - 1
    assert [o.status for o in first.send([ONE])] == ["accepted"]
    first.close()
    assert first.closed
    server.wait_for(lambda: "QUIT" in server.commands)
    pool.take(5).close()
    assert len(server.connections) == 2


def test_a_session_that_was_idle_for_very_long_is_not_used(server, clocked):
    pool, clock = clocked
    first = pool.take(5)
    first.close()
    clock.now += MAX_IDLE + 1
    second = pool.take(5)
    assert second is not first
    second.close()
    assert noops(server) == []


def test_a_session_that_was_idle_for_long_answers_noop_unless_something_else_verifies(
    server, clocked
):
    pool, clock = clocked
    first = pool.take(5)
    first.close()
    pool.take(5).close()
    assert noops(server) == []
    clock.now += VERIFY_AFTER + 1
    pool.take(5, verify=False).close()
    assert noops(server) == []
    clock.now += VERIFY_AFTER + 1
    session = pool.take(5)
    assert session is first
    session.close()
    assert noops(server) == ["NOOP"]


@pytest.mark.parametrize("fault", [CLOSE, RESET, "421 4.3.2 shutting down", "500 5.5.1 what?"])
def test_a_session_that_does_not_answer_noop_is_replaced(server, clocked, fault):
    pool, clock = clocked
    pool.take(5).close()
    server.on("NOOP", fault)
    clock.now += VERIFY_AFTER + 1
    session = pool.take(5)
    assert [o.status for o in session.send([ONE])] == ["accepted"]
    session.close()
    assert len(server.connections) == 2


def test_a_dirty_session_answers_rset_in_place_of_noop(server, clocked):
    pool, clock = clocked
    session = pool.take(5)
    session.preflight([ONE])
    session.close(dirty=True)
    clock.now += VERIFY_AFTER + 1
    pool.take(5).close()
    assert noops(server) == []
    assert server.commands.count("RSET") == 1
