"""What a worker claims and in which order, what it does with it, and what it leaves to others."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter

import pytest
from commits import note
from queues import IN_SQLITE, OWN_POSTGRESQL, OWN_QUEUES, OWN_SQLITE, kinds

sa = pytest.importorskip("sqlalchemy")

from claiming import claim_and_load  # noqa: E402
from workers import (  # noqa: E402
    Heard,
    another,
    change,
    change_delivery,
    claim,
    in_write,
    put,
    put_many,
    received,
    wait_for,
    working,
)

from txmail import transport_from_url  # noqa: E402
from txmail.envelope import Envelope  # noqa: E402
from txmail.outcome import Outcome  # noqa: E402
from txmail.queue import schema  # noqa: E402
from txmail.queue.retry import Settlement  # noqa: E402
from txmail.queue.sql import leases, settlements  # noqa: E402
from txmail.queue.states import State  # noqa: E402
from txmail.testing import Callback, then  # noqa: E402
from txmail.worker import Worker, dispatcher, run_once  # noqa: E402
from txmail.worker.router import Route  # noqa: E402

SENT = Settlement(State.SENT, None, 1, False, 250, "250 ok")
CLASSES = ("high", "normal", "bulk")


def names(works):
    return [r for work in works for r in work.envelope.recipients]


def classes(works):
    counts = Counter(work.priority for work in works)
    return [counts[number] for number in range(3)]


# -- the order of claims


@pytest.mark.parametrize("limit", [1, 2, 5, 8, 20, 24, 64, 100])
@kinds(OWN_SQLITE)
def test_what_is_urgent_is_claimed_first_whatever_the_number(app, limit):
    for word in reversed(CLASSES):
        put_many(app, word, 110, priority=word)
    works = claim(app, limit)
    assert len(works) == limit
    high, normal, bulk = classes(works)
    assert high >= normal >= bulk
    assert high > limit / 2
    assert [work.priority for work in works] == sorted(work.priority for work in works)


@kinds(*OWN_QUEUES)
def test_every_class_gets_its_turn_in_a_full_claim(app):
    for word in CLASSES:
        put_many(app, word, 100, priority=word)
    assert classes(claim(app, 64)) == [40, 16, 8]


@kinds(OWN_SQLITE)
def test_a_class_that_has_nothing_leaves_its_share_to_the_others(app):
    put_many(app, "normal", 10)
    put_many(app, "bulk", 100, priority="bulk")
    assert classes(claim(app, 64)) == [0, 10, 54]


@kinds(*OWN_QUEUES)
def test_of_one_class_what_has_been_due_longest_is_claimed_first(app, clock):
    put(app, note("late"), not_before=clock.at(20))
    put(app, note("early"), not_before=clock.at(10))
    put(app, note("now"))
    clock.advance(30)
    first = claim(app, 2)
    assert sorted(names(first)) == ["early@example.net", "now@example.net"]
    assert names(claim(app, 2)) == ["late@example.net"]


@kinds(*OWN_QUEUES)
def test_nothing_is_claimed_before_it_is_due(app, clock):
    put(app, note("a"), not_before=clock.at(10))
    clock.advance(9.9)
    assert claim(app) == []
    clock.advance(0.1)
    assert names(claim(app)) == ["a@example.net"]


@kinds(*OWN_QUEUES)
def test_what_nobody_wants_any_more_is_not_sent_and_says_so(app, clock, memory):
    put(app, note("old"), expires=clock.at(10))
    put(app, note("new"), expires=clock.at(20))
    clock.advance(10)
    run_once(app.queue, memory)
    assert app.states() == {"old@example.net": "expired", "new@example.net": "sent"}
    assert [e.recipients for e in memory.envelopes] == [("new@example.net",)]
    assert app.deliveries()["old@example.net"].reply == "its time was over"


@kinds(*OWN_QUEUES)
def test_the_recipients_of_one_message_travel_together(app, server, smtp):
    recipients = [f"r{n}@example.net" for n in range(5)]
    put(app, note("a", recipients=recipients), note("b"))
    assert run_once(app.queue, smtp) == 6
    assert [list(m.recipients) for m in server.messages] == [recipients, ["b@example.net"]]


@kinds(OWN_SQLITE)
def test_at_most_a_hundred_recipients_travel_together(app):
    recipients = [f"r{n}@example.net" for n in range(250)]
    put(app, note("a", recipients=recipients))
    works = claim(app, 300)
    assert [len(work.ids) for work in works] == [100, 100, 50]
    assert names(works) == recipients


@kinds(OWN_SQLITE)
def test_one_message_enqueued_twice_is_two_messages(app, server, smtp):
    put(app, note("a"), note("a"))
    assert run_once(app.queue, smtp) == 2
    assert received(server) == ["a@example.net"] * 2


# -- run_once


@kinds(*OWN_QUEUES, IN_SQLITE)
def test_run_once_sends_all_that_is_due_and_returns_how_many_that_were(
    kind, make_queue, server, smtp
):
    app = make_queue(kind)
    if app.in_session:
        with app._tm:
            bound = app.mailer().bind(session=app.database.session)
            for n in range(3):
                bound.enqueue(note(f"n{n}"))
        wanted = [f"n{n}@example.net" for n in range(3)]
    else:
        wanted = put_many(app, "n", 300)
    assert run_once(app.queue, smtp) == len(wanted)
    assert sorted(received(server)) == sorted(wanted)
    assert set(app.states().values()) == {"sent"}
    assert run_once(app.queue, smtp) == 0


@pytest.mark.parametrize("limit", [1, 5, 64, 100])
@kinds(OWN_SQLITE)
def test_run_once_tries_no_more_than_its_limit_and_the_most_urgent(app, limit, memory):
    put_many(app, "high", 120, priority="high")
    put_many(app, "bulk", 20, priority="bulk")
    assert run_once(app.queue, memory, limit=limit) == limit
    assert len(memory.envelopes) == limit
    assert app.queue.counts() == {"sent": limit, "ready": 140 - limit}


@kinds(OWN_SQLITE)
def test_the_limit_holds_while_a_server_is_slow(app, server, smtp, monkeypatch):
    """What is urgent must not be claimed beyond it, however often the worker looks."""
    monkeypatch.setattr(dispatcher, "POLL", 0.01)
    put_many(app, "high", 10, priority="high")
    looked = threading.Event()
    server.on(".", then(Callback(lambda: looked.wait(20))))
    with working(app.queue, smtp, limit=2) as worker:
        server.wait_for(lambda: len(server.connections) > 0)
        worker.wait_rounds(5)
        looked.set()
        wait_for(lambda: app.queue.counts().get("sent", 0) >= 2, "it sends nothing")
        worker.wait_rounds(5)
    assert app.queue.counts() == {"sent": 2, "ready": 8}


@kinds(OWN_SQLITE)
def test_run_once_ends_when_its_time_is_over_and_gives_the_rest_back(app, server, smtp):
    put_many(app, "n", 50)
    over = threading.Event()
    worker = Worker(app.queue, smtp)
    server.on(".", then(Callback(lambda: over.wait(20))))
    stopping = worker.stop
    worker.stop = lambda: (stopping(), over.set())
    done = worker.run_once(seconds=1)
    counts = app.queue.counts()
    assert (counts.get("sent", 0), counts["ready"]) == (done, 50 - done)
    assert 0 < done < 50
    assert all(not row.attempts for row in app.deliveries().values() if row.state == "ready")


@kinds(OWN_SQLITE)
def test_run_once_goes_on_to_the_end_when_a_slow_server_becomes_fast(
    app, server, smtp, monkeypatch
):
    """The worker has claimed all it has room for; there is more behind it."""
    monkeypatch.setattr(dispatcher, "POLL", 0.01)
    put_many(app, "n", 300)
    full = threading.Event()
    server.on(".", then(Callback(lambda: full.wait(20))))
    worker = Worker(app.queue, smtp)
    cycle = worker._ledger.cycle

    def watched():
        cycle()
        if sum(lane.waiting for lane in worker._lanes) >= 100 and worker._ledger._room() == 0:
            watched.times += 1
            if watched.times > 3:
                full.set()

    watched.times = 0
    worker._ledger.cycle = watched
    try:
        assert worker.run_once() == 300
    finally:
        full.set()
    assert app.queue.counts() == {"sent": 300}


@kinds(*OWN_QUEUES)
def test_overlapping_runs_in_two_threads_send_nothing_twice(app, server):
    wanted = put_many(app, "n", 400)
    queues = [app.queue, another(app)]
    transports = [transport_from_url(server.url) for _ in queues]
    done = [0, 0]
    start = threading.Barrier(2)

    def run(number):
        start.wait(20)
        done[number] = run_once(queues[number], transports[number])

    threads = [threading.Thread(target=run, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for transport in transports:
        transport.close()
    queues[1].close()
    assert sorted(received(server)) == sorted(wanted)
    assert sum(done) == 400
    assert app.queue.counts() == {"sent": 400}


RUN = """
import sys
from txmail import transport_from_url
from txmail.queue.queue import Queue
from txmail.worker import run_once
queue, transport = Queue(sys.argv[1]), transport_from_url(sys.argv[2])
print("here", flush=True)
sys.stdin.readline()
print(run_once(queue, transport))
"""


@pytest.mark.representative(every=2)
@kinds(*OWN_QUEUES)
def test_overlapping_runs_in_two_processes_send_nothing_twice(kind, make_queue, server):
    app = make_queue(kind)
    wanted = put_many(app, "n", 400)
    url = app.engine.url.render_as_string(hide_password=False)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, url, server.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for child in children:
        assert child.stdout.readline() == "here\n"
    said = []
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        said.append(int(child.communicate(timeout=60)[0]))
        assert child.returncode == 0
    assert sorted(received(server)) == sorted(wanted)
    assert sum(said) == 400
    assert app.queue.counts() == {"sent": 400}


@kinds(OWN_POSTGRESQL)
def test_who_claims_does_not_wait_for_one_who_is_claiming(app):
    put_many(app, "n", 20)
    database = app.queue.database
    first = database.write()
    connection = first.__enter__()
    try:
        now = database.now_ms(connection)
        mine = claim_and_load(connection, token=1, now_ms=now, lease_ms=now + 1000, limit=10)
        others = claim(app, 20, token=2)
    finally:
        first.__exit__(None, None, None)
    assert len(mine) == len(others) == 10
    assert not set(names(mine)) & set(names(others))


# -- tokens


@kinds(*OWN_QUEUES)
def test_a_result_without_its_token_is_not_written_and_leaves_no_trace(app):
    put(app, note("a"))
    (work,) = claim(app, token=7)
    before = app.deliveries()["a@example.net"]
    failed = Settlement(State.FAILED, None, 1, False, 550, "550 no")
    for made in (SENT, failed):
        late = [(work.ids[0], 8, made)]
        assert in_write(app, lambda c, now, late=late: settlements.settle(c, late, now)) == 0
    assert app.deliveries()["a@example.net"] == before
    assert app.attempts("a@example.net") == []
    assert in_write(app, lambda c, now: settlements.settle(c, [(work.ids[0], 7, failed)], now)) == 1
    (attempt,) = app.attempts("a@example.net")
    assert (attempt.state, attempt.code, attempt.reply) == ("failed", 550, "550 no")


@kinds(*OWN_QUEUES)
def test_a_result_is_written_once(app):
    put(app, note("a"))
    (work,) = claim(app, token=7)
    results = [(work.ids[0], 7, SENT)]
    assert in_write(app, lambda c, now: settlements.settle(c, results, now)) == 1
    assert in_write(app, lambda c, now: settlements.settle(c, results, now)) == 0
    assert app.deliveries()["a@example.net"].attempts == 1


@kinds(*OWN_QUEUES)
def test_what_is_given_back_is_ready_for_anybody_and_has_cost_nothing(app):
    put(app, note("a"))
    (work,) = claim(app, token=7, begun=True)
    assert app.deliveries()["a@example.net"].begun == 1
    back = Settlement(State.READY, int(app.queue.database._clock() * 1000), 0, False, None, None)
    in_write(app, lambda c, now: settlements.settle(c, [(work.ids[0], 7, back)], now))
    row = app.deliveries()["a@example.net"]
    assert (row.state, row.attempts, row.begun, row.token, row.lease, row.process) == (
        "ready", 0, 0, None, None, None
    )  # fmt: skip
    assert app.attempts("a@example.net") == []
    assert len(claim(app, token=8)) == 1


# -- leases


@kinds(*OWN_QUEUES)
def test_a_lease_that_ends_leaves_what_was_not_begun_ready_and_the_rest_in_doubt(app, clock):
    put(app, note("claimed"))
    claim(app, token=1)
    put(app, note("begun"))
    claim(app, token=2, begun=True)
    clock.advance(60)
    assert in_write(app, leases.end_leases) == 0
    clock.advance(0.1)
    assert in_write(app, leases.end_leases) == 2
    rows = app.deliveries()
    claimed, begun = rows["claimed@example.net"], rows["begun@example.net"]
    assert (claimed.state, claimed.attempts, claimed.duplicate) == ("ready", 0, 0)
    assert (begun.state, begun.attempts, begun.duplicate) == ("in_doubt", 1, 1)
    assert begun.due > clock() * 1000
    assert "gone" in begun.reply
    assert [a.state for a in app.attempts("begun@example.net")] == ["in_doubt"]
    assert app.attempts("claimed@example.net") == []


@kinds(OWN_SQLITE)
def test_with_on_doubt_hold_a_lease_that_ends_leaves_it_to_a_person(
    make_queue, kind, clock, memory
):
    app = make_queue(kind, clock=clock, on_doubt="hold")
    put(app, note("a"))
    claim(app, begun=True)
    clock.advance(61)
    run_once(app.queue, memory)
    clock.advance(10 * 24 * 3600)
    run_once(app.queue, memory)
    row = app.deliveries()["a@example.net"]
    assert (row.state, row.due) == ("in_doubt", None)
    assert memory.envelopes == []


@kinds(*OWN_QUEUES)
def test_a_lease_that_is_renewed_goes_on(app, clock):
    put(app, note("a"), note("b"))
    claim(app, 1, token=1)
    claim(app, 1, token=2)
    clock.advance(59)
    in_write(app, lambda c, now: leases.renew(c, [1], now + 60_000))
    clock.advance(2)
    assert in_write(app, leases.end_leases) == 1
    assert sorted(row.state for row in app.deliveries().values()) == ["ready", "sending"]


@kinds(OWN_SQLITE)
def test_what_a_worker_had_that_is_gone_is_sent_by_the_next(app, clock, memory):
    wanted = put_many(app, "n", 20)
    claim(app, 10, token=1)
    claim(app, 10, token=2, begun=True)
    run_once(app.queue, memory)
    assert memory.envelopes == []
    clock.advance(61)
    run_once(app.queue, memory)
    assert [r for e in memory.envelopes for r in e.recipients] == wanted[:10]
    clock.advance(301)
    run_once(app.queue, memory)
    assert [r for e in memory.envelopes for r in e.recipients] == wanted
    flags = {r: row.duplicate for r, row in app.deliveries().items()}
    assert flags == {r: int(r in wanted[10:]) for r in wanted}


@pytest.mark.parametrize("state", ["deferred", "in_doubt"])
@kinds(*OWN_QUEUES)
def test_what_has_to_wait_is_ready_when_its_time_has_come(app, clock, memory, state):
    put(app, note("a"), note("held"))
    for recipient, due in (("a@example.net", 300), ("held@example.net", None)):
        moment = None if due is None else int((clock() + due) * 1000)
        change_delivery(app, recipient, state="sending")
        change_delivery(app, recipient, state=state, due=moment)
    clock.advance(299)
    assert run_once(app.queue, memory) == 0
    clock.advance(1)
    assert run_once(app.queue, memory) == 1
    # What is in doubt may wait for a person; what is deferred has a time, or would wait for ever.
    left = "failed" if state == "deferred" else state
    assert app.states() == {"a@example.net": "sent", "held@example.net": left}


# -- rows that nobody can read


def _no_message(app):
    ids = sa.select(schema.delivery.c.message).where(
        schema.delivery.c.recipient == "bad@example.net"
    )
    change(app, schema.message.delete().where(schema.message.c.id.in_(ids)))


def _content(value):
    return _message("content", value)


def _message(column, value):
    def poison(app):
        ids = sa.select(schema.delivery.c.message).where(
            schema.delivery.c.recipient == "bad@example.net"
        )
        statement = sa.text(f"UPDATE txmail_message SET {column} = {value} WHERE id = :number")
        with app.engine.connect() as connection:
            number = connection.scalar(ids)
        change(app, statement.bindparams(number=number))

    return poison


def _column(column, value):
    def poison(app):
        change(
            app,
            sa.text(
                f"UPDATE txmail_delivery SET {column} = {value} WHERE recipient = 'bad@example.net'"
            ),
        )

    return poison


POISON = {
    "an address that is none": _column("recipient", "'no address'"),
    "an address with a line end": _column("recipient", "'a@b.example' || char(13,10) || 'QUIT'"),
    "an empty address": _column("recipient", "''"),
    "no message": _no_message,
    "as many tries as can be counted": _column("attempts", "32767"),
}
SQLITE_POISON = {
    "text for content": _content("'text'"),
    "a number for content": _content("1000000000000"),
    "octets that are no text": _column("recipient", "CAST(x'ff40622e63' AS TEXT)"),
    "a word for attempts": _column("attempts", "'many'"),
    "a word for expires": _column("expires", "'soon'"),
    "a word for the time it was enqueued": _message("created", "'once'"),
}


@pytest.mark.representative(every=8)
@pytest.mark.parametrize("poison", [*POISON, *SQLITE_POISON])
@kinds(*OWN_QUEUES)
def test_a_row_that_cannot_be_read_is_failed_and_nothing_else_suffers(app, kind, poison, memory):
    if kind == OWN_POSTGRESQL and poison in SQLITE_POISON:
        pytest.skip("PostgreSQL does not let that in")
    put_many(app, "before", 3)
    put(app, note("bad"))
    put_many(app, "after", 70)
    (id_,) = [row.id for r, row in app.deliveries().items() if r == "bad@example.net"]
    change_ = {**POISON, **SQLITE_POISON}[poison]
    if kind == OWN_POSTGRESQL and "line end" in poison:
        change_ = _column("recipient", "'a@b.example' || chr(13) || chr(10) || 'QUIT'")
    change_(app)
    assert run_once(app.queue, memory) == 73
    assert app.queue.counts() == {"sent": 73, "failed": 1}
    d = schema.delivery.c
    ((state, reply),) = app.read(sa.select(d.state, d.reply).where(d.id == id_))
    assert state == "failed"
    assert reply.startswith("it cannot be read: ")
    assert run_once(app.queue, memory) == 0


@kinds(OWN_SQLITE)
def test_one_bad_address_among_the_recipients_of_a_message_spares_the_others(app, server, smtp):
    put(app, note("a", recipients=["one@example.net", "bad@example.net", "two@example.net"]))
    _column("recipient", "'no address'")(app)
    run_once(app.queue, smtp)
    assert sorted(received(server)) == ["one@example.net", "two@example.net"]
    assert app.queue.counts() == {"sent": 2, "failed": 1}


@kinds(OWN_SQLITE)
def test_a_whole_claim_of_bad_rows_does_not_end_a_run(app, memory):
    put_many(app, "bad", 64)
    change(app, sa.text("UPDATE txmail_delivery SET recipient = 'no address'"))
    wanted = put_many(app, "good", 10)
    assert run_once(app.queue, memory) == 10
    assert [r for e in memory.envelopes for r in e.recipients] == wanted


@kinds(OWN_SQLITE)
def test_a_message_that_the_gate_would_not_let_through_is_failed_at_the_wire(app, server, smtp):
    """A queue can be written to by others: its content is octets, and looked at before it goes."""
    put(app, note("bad"), note("good"))
    _content("CAST('a: b\n.\n\nMAIL' AS BLOB)")(app)
    run_once(app.queue, smtp)
    assert app.states() == {"bad@example.net": "failed", "good@example.net": "sent"}
    assert received(server) == ["good@example.net"]


# -- a queue that cannot be reached


@kinds(*OWN_QUEUES)
def test_a_worker_outlives_a_queue_that_is_gone_for_a_while(app, server, smtp):
    (first,) = put_many(app, "first", 1)
    with working(app.queue, smtp) as worker:
        server.wait_for(lambda: first in received(server))
        worker.wait_rounds()
        with Heard() as heard:
            change(app, sa.text("ALTER TABLE txmail_process RENAME TO gone"))
            worker._ledger._next_round = 0.0
            worker._ledger.wake()
            heard.wait_for("trying again")
            change(app, sa.text("ALTER TABLE gone RENAME TO txmail_process"))
        (second,) = put_many(app, "second", 1)
        server.wait_for(lambda: second in received(server))
        worker.wait_rounds()
    assert app.states() == {first: "sent", second: "sent"}


@kinds(OWN_POSTGRESQL)
def test_a_worker_whose_connections_are_ended_under_its_hands_goes_on(app, server, smtp):
    def end_connections():
        with app.engine.connect() as connection:
            connection.execute(
                sa.text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )

    wanted = put_many(app, "n", 200)
    for number in (3, 50, 120):
        server.on(".", then(Callback(end_connections)), matching=f"<n{number}@example.com>")
    assert run_once(app.queue, smtp) == 200
    assert sorted(received(server)) == sorted(wanted)
    assert app.queue.counts() == {"sent": 200}


@kinds(OWN_SQLITE)
def test_results_wait_for_a_file_that_is_locked(app, server, smtp):
    wanted = put_many(app, "n", 20)
    locked = app.engine.connect()
    server.on("MAIL", then(Callback(lambda: locked.exec_driver_sql("BEGIN IMMEDIATE"))))
    # As much as may be begun at once.
    route = Route.to("default", smtp, window=20)
    runs = threading.Thread(target=lambda: run_once(app.queue, [route]))
    runs.start()
    server.wait_for(lambda: len(server.messages) == 20)
    assert app.queue.counts() == {"sending": 20}
    locked.rollback()
    locked.close()
    runs.join(60)
    assert not runs.is_alive()
    assert received(server) == wanted
    assert app.queue.counts() == {"sent": 20}


@kinds(*OWN_QUEUES)
def test_nothing_leaves_before_it_is_written_that_it_may_have(app):
    """Should the worker die now, what is on its way is in doubt, and not sent again unflagged."""
    put_many(app, "n", 150)
    transport = transport_from_url("memory:")
    outcomes, wrong = transport.outcomes, []
    d = schema.delivery.c

    def looking(envelope: Envelope, position: int = 0) -> list[Outcome]:
        ((state, begun),) = app.read(
            sa.select(d.state, d.begun).where(d.recipient == envelope.recipients[0])
        )
        if (state, begun) != ("sending", 1):
            wrong.append((envelope.recipients[0], state, begun))
        return outcomes(envelope, position)

    transport.outcomes = looking
    worker = Worker(app.queue, transport)
    committed = worker._ledger._committed

    def lately(*args):
        # The lanes have all the time there is to take what they have.
        with worker._ledger.changed:
            worker._ledger.changed.wait_for(
                lambda: not any(lane.ready for lane in worker._lanes), 1.0
            )
        committed(*args)

    worker._ledger._committed = lately
    assert worker.run_once() == 150
    assert wrong == []


@kinds(OWN_SQLITE)
def test_a_result_does_not_wait_until_the_worker_looks_for_mail_again(
    app, server, smtp, monkeypatch
):
    """It waits for others a moment only, also if the keeper has nothing to do by then."""
    monkeypatch.setattr(dispatcher, "POLL", 3600.0)
    monkeypatch.setattr(dispatcher, "ROUND", 3600.0)
    app.queue.subscribe = lambda listener: app.queue.host.notifier.listeners.append(listener)
    app.queue.unsubscribe = lambda listener: app.queue.host.notifier.listeners.remove(listener)
    put(app, note("a"))
    waits = threading.Event()
    server.on(".", then(Callback(lambda: waits.wait(20))))
    with working(app.queue, smtp) as worker:
        server.wait_for(lambda: "DATA" in server.commands)
        worker.wait_rounds()
        waits.set()
        wait_for(lambda: app.states() == {"a@example.net": "sent"}, "it is not written")
