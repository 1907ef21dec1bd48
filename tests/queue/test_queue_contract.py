"""What every queue does, wherever its tables are: mail is in it if the transaction commits."""

from __future__ import annotations

import copy
import logging
import pickle
import threading
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
import transaction
import zope.sqlalchemy
from databases import Failure, Recorder, Synchronizer
from forking import in_child
from letters import letter, statuses, subjects
from queues import (
    BETWEEN,
    FAILURES,
    FIRST,
    IN_POSTGRESQL,
    IN_SQLITE,
    IN_TWO_PHASE,
    OWN_POSTGRESQL,
    OWN_QUEUES,
    OWN_SQLITE,
    QUEUES,
    kinds,
)
from sqlalchemy.orm import scoped_session, sessionmaker
from transaction.interfaces import DoomedTransaction, NoTransaction, TransientError
from zope.interface.verify import verifyObject

from txmail import Mailer, transport_from_url
from txmail.delivery.last_hook import HOOK_TURNS
from txmail.events import MessageQueued
from txmail.exceptions import ConfigurationError, InvalidMessage, TransactionClosed
from txmail.interfaces import IBatch, IQueue
from txmail.queue import schema
from txmail.queue.queue import Queue
from txmail.queue.sql.publish import CHUNK

ONE, TWO, THREE = "one@example.com", "two@example.com", "three@example.com"


@pytest.fixture(params=QUEUES)
def app(request, make_queue):
    """An application with a queue of each kind in turn."""
    return make_queue(request.param)


@pytest.fixture
def mailer(app):
    return app.mailer()


@pytest.fixture
def no_warnings(caplog):
    """Nothing is logged that somebody would have to look at."""
    yield
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


# -- together or not at all


def test_it_keeps_the_contracts(app, tm):
    assert verifyObject(IQueue, app.queue)
    tm.begin()
    assert verifyObject(IBatch, app.queue.begin(tm.get(), tm))


def test_mail_is_there_when_the_transaction_has_committed_and_not_before(
    app, mailer, tm, server, no_warnings
):
    seen = []
    recorder = Recorder(BETWEEN, do={"vote": lambda: seen.append(app.queue.counts().get("ready"))})
    tm.begin().join(recorder)
    app.database.write("order")
    mailer.enqueue(letter("one", ONE))
    assert app.queue.counts() == {}
    tm.commit()
    # One-phase sessions commit in their vote, which comes before.
    assert seen == [1 if app.in_session and app.one_phase else None]
    assert app.database.values() == ["order"]
    assert app.ready() == [ONE]
    assert app.batches() == ["published"]
    assert [(str(o.status), o.queued) for o in mailer.last_outcomes] == [("unsent", True)]
    assert server.connections == []


def test_of_an_aborted_transaction_nothing_is_left(app, mailer, tm, no_warnings):
    tm.begin()
    app.database.write("order")
    mailer.enqueue(letter("one", ONE))
    tm.abort()
    assert app.database.values() == []
    assert app.is_empty()
    assert mailer.last_outcomes == ()


def test_a_transaction_without_anybody_else_commits_its_mail(app, mailer, tm, no_warnings):
    for name in (ONE, TWO):
        with tm:
            mailer.enqueue(letter(name, name))
        assert app.queue.counts()["ready"] == (1 if name == ONE else 2)
    tm.begin()
    mailer.enqueue(letter("three", THREE))
    tm.abort()
    assert app.ready() == [ONE, TWO]
    assert app.batches() == ["published"] * 2


def test_a_doomed_transaction_leaves_nothing(app, mailer, tm):
    tm.begin()
    mailer.enqueue(letter("one", ONE))
    tm.doom()
    mailer.enqueue(letter("two", TWO))
    with pytest.raises(DoomedTransaction):
        tm.commit()
    tm.abort()
    assert app.is_empty()


@pytest.mark.representative(every=4)
@pytest.mark.parametrize(("key", "phase"), FAILURES)
@pytest.mark.parametrize("kind", OWN_QUEUES)
def test_in_its_own_database_mail_is_there_only_if_the_data_is_whoever_fails(
    make_queue, tm, kind, phase, key
):
    app = make_queue(kind, witness=True)
    mailer = app.mailer()
    tm.begin().join(Recorder(key, fails=phase))
    app.database.write("order")
    mailer.enqueue(letter("one", ONE))
    with pytest.raises(Failure):
        tm.commit()
    tm.abort()
    app.queue.flush(20)
    app.queue.resolve()
    there = bool(app.database.values())
    if phase == "vote" and key == BETWEEN and app.one_phase:
        # The database has committed, and the transaction was aborted all the same.
        assert there
        assert app.is_empty()
    else:
        assert app.ready() == ([ONE] if there else [])
    assert app.states() in ({}, {ONE: "ready"}) or app.batches() == ["discarded"]


# -- savepoints


def test_mail_that_a_savepoint_takes_back_is_not_queued(app, mailer, tm):
    tm.begin()
    mailer.enqueue(letter("one", ONE))
    savepoint = tm.savepoint()
    mailer.enqueue(letter("two", TWO))
    savepoint.rollback()
    mailer.enqueue(letter("three", THREE))
    savepoint.rollback()
    mailer.enqueue(letter("two", TWO))
    tm.commit()
    assert app.ready() == [ONE, TWO]


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("again", [True, False])
def test_a_savepoint_from_before_there_was_mail_takes_all_of_it_back(app, mailer, tm, again):
    tm.begin()
    savepoint = tm.savepoint()
    mailer.enqueue(letter("one", ONE))
    savepoint.rollback()
    if again:
        mailer.enqueue(letter("two", TWO))
    tm.commit()
    assert app.ready() == ([TWO] if again else [])
    assert app.is_empty() is not again


def late_hook(tm, work):
    """A hook that insists on being the last, until ours gives up: do `work` after it."""

    def insist(turn=0):
        if turn == HOOK_TURNS + 2:
            work()
        else:
            tm.get().addBeforeCommitHook(insist, (turn + 1,))

    return insist


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("wake", [True, False])
def test_what_is_taken_back_after_it_was_written_is_not_queued(app, mailer, tm, no_warnings, wake):
    """A hook after ours rolls back a savepoint, and sends something else."""
    savepoints = []

    def begin():
        savepoints.append(tm.savepoint())
        mailer.enqueue(letter("two", TWO))

    def end():
        savepoints[0].rollback()
        mailer.enqueue(letter("three", THREE), wake=wake)

    tm.begin().addBeforeCommitHook(begin)
    tm.get().addBeforeCommitHook(late_hook(tm, end))
    mailer.enqueue(letter("one", ONE))
    tm.commit()
    assert app.ready() == [ONE, THREE]
    assert app.batches() == ["published"]


@pytest.mark.parametrize("end", ["commit", "vote"])
@pytest.mark.parametrize("kind", [OWN_SQLITE, OWN_POSTGRESQL, IN_POSTGRESQL])
def test_nothing_is_left_when_all_that_was_written_is_taken_back(
    make_queue, tm, no_warnings, kind, end
):
    app, other = make_queue(kind), make_queue(OWN_SQLITE)
    savepoints = []

    def begin():
        savepoints.append(tm.savepoint())
        app.mailer().enqueue(letter("one", ONE))

    tm.begin().addBeforeCommitHook(begin)
    tm.get().addBeforeCommitHook(late_hook(tm, lambda: savepoints[0].rollback()))
    other.mailer().enqueue(letter("two", TWO))
    if end == "vote":
        tm.get().join(Recorder(FIRST, fails="vote"))
        with pytest.raises(Failure):
            tm.commit()
        tm.abort()
    else:
        tm.commit()
        assert other.ready() == [TWO]
    assert app.is_empty()
    assert not app.queue.host.open


# -- hooks and retries


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize("kind", QUEUES)
def test_a_second_commit_after_a_hook_that_failed_queues_the_mail_once(
    make_queue, tm, kind, data, no_warnings
):
    app = make_queue(kind)
    mailer = app.mailer()

    def fail():
        raise Failure("in a hook")

    tm.begin().addBeforeCommitHook(fail)
    if data:
        app.database.write("order")
    mailer.enqueue(letter("one", ONE))
    with pytest.raises(Failure):
        tm.commit()
    tm.commit()
    assert app.ready() == [ONE]
    assert app.batches() == ["published"]


@pytest.mark.parametrize("data", [True, False])
def test_mail_of_a_synchronizer_is_queued(app, mailer, tm, data):
    synchronizer = Synchronizer(before=lambda: mailer.enqueue(letter("one", ONE)))
    tm.registerSynch(synchronizer)
    tm.begin()
    if data:
        app.database.write("order")
    tm.commit()
    assert app.ready() == [ONE]


def test_mail_of_a_hook_is_queued(app, mailer, tm):
    tm.begin().addBeforeCommitHook(lambda: mailer.enqueue(letter("one", ONE)))
    mailer.enqueue(letter("two", TWO))
    tm.commit()
    assert app.ready() == [ONE, TWO]


def test_mail_of_an_after_commit_hook_is_refused(app, mailer, tm):
    refused = []

    def hook(success):
        with pytest.raises(TransactionClosed):
            mailer.enqueue(letter("one", ONE))
        refused.append(success)

    tm.begin().addAfterCommitHook(hook)
    mailer.enqueue(letter("two", TWO))
    tm.commit()
    assert refused == [True]
    assert app.ready() == [TWO]


def test_an_after_commit_hook_does_not_undo_the_mail(app, mailer, tm):
    tm.begin().addAfterCommitHook(lambda success: None)
    app.database.write("order")
    mailer.enqueue(letter("one", ONE), idempotency_key="key")
    tm.commit()
    assert app.ready() == [ONE]


class Conflict(TransientError):
    pass


def test_a_transaction_that_is_tried_again_queues_its_mail_once(app, mailer, tm):
    tries = []

    def conflict():
        if len(tries) < 3:
            raise Conflict("try again")

    for attempt in tm.attempts(5):
        with attempt:
            tries.append(attempt)
            tm.get().join(Recorder(FIRST, do={"vote": conflict}))
            app.database.write("order")
            mailer.enqueue(letter("one", ONE))
    assert len(tries) == 3
    assert app.database.values() == ["order"]
    assert app.ready() == [ONE]
    assert app.batches() == ["published"]


# -- what is written


def test_content_is_stored_once_for_all_recipients(app, mailer, tm):
    with tm:
        message_id = mailer.enqueue(letter("one", ONE, TWO, THREE))
    rows = app.deliveries()
    assert list(rows) == [ONE, TWO, THREE]
    assert len({row.message for row in rows.values()}) == 1
    assert {row.message_id for row in rows.values()} == {message_id}
    ((size, content, kind, sender),) = app.read(
        sa.select(*(schema.message.c[n] for n in ("size", "content", "kind", "sender")))
    )
    assert len(content) == size
    assert b"Subject: one\r\n" in content
    assert (kind, sender) == ("plain", "app@example.com")


def test_what_was_asked_for_is_stored(app, mailer, tm):
    now = datetime.now(UTC)
    later, end = now + timedelta(hours=1), now + timedelta(days=2)
    with tm:
        mailer.enqueue(letter("plain", ONE))
        mailer.enqueue(letter("bulk", TWO), priority="bulk", not_before=later, expires=end)
        # Another zone, and a moment that is over
        mailer.enqueue(
            letter("high", THREE),
            priority="high",
            not_before=(now - timedelta(days=1)).astimezone(),
        )
    assert app.ready() == [ONE, THREE, TWO]
    rows = app.deliveries()
    assert [row.priority for row in rows.values()] == [1, 2, 0]
    assert rows[ONE].due == rows[THREE].due <= rows[ONE].changed
    assert rows[TWO].due == int(later.timestamp() * 1000)
    assert [row.expires for row in rows.values()] == [None, int(end.timestamp() * 1000), None]
    assert {(row.attempts, row.begun, row.duplicate) for row in rows.values()} == {(0, 0, 0)}


TOMORROW = datetime.now(UTC) + timedelta(days=1)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("not_before", {"not_before": datetime(2050, 1, 1)}),
        ("expires", {"expires": datetime(2050, 1, 1)}),
        ("not_before", {"not_before": 2_000_000_000}),
        ("expires", {"expires": "tomorrow"}),
        ("expires", {"expires": datetime(2020, 1, 1, tzinfo=UTC)}),
        ("expires", {"expires": TOMORROW, "not_before": TOMORROW}),
        ("priority", {"priority": "urgent"}),
        ("priority", {"priority": 0}),
        ("priority", {"priority": "HIGH"}),
        ("idempotency_key", {"idempotency_key": ""}),
        ("idempotency_key", {"idempotency_key": 7}),
        ("idempotency_key", {"idempotency_key": b"key"}),
        ("idempotency_key", {"idempotency_key": "x" * 256}),
        ("idempotency_key", {"idempotency_key": "a\0b"}),
        ("idempotency_key", {"idempotency_key": "a\ud800b"}),
    ],
    ids=lambda value: ascii(sorted(value.items()))[:40] if isinstance(value, dict) else None,
)
def test_options_that_are_none_are_refused_at_once(tmp_path, tm, field, options):
    queue = Queue(f"sqlite:///{tmp_path}/folder/mail.db")
    mailer = Mailer(transport_from_url("memory:"), queue=queue, transaction_manager=tm)
    tm.begin()
    with pytest.raises(InvalidMessage) as caught:
        mailer.enqueue(letter("one", ONE), **options)
    assert caught.value.field == field
    tm.commit()
    assert list(tmp_path.iterdir()) == []


@kinds(OWN_SQLITE, IN_SQLITE, OWN_POSTGRESQL)
def test_times_at_the_ends_of_the_calendar_are_stored(make_queue, tm, kind):
    app = make_queue(kind)
    with tm:
        app.mailer().enqueue(
            letter("one", ONE),
            not_before=datetime.min.replace(tzinfo=UTC),
            expires=datetime.max.replace(tzinfo=UTC),
        )
    assert app.ready() == [ONE]


@kinds(OWN_SQLITE, OWN_POSTGRESQL, IN_POSTGRESQL)
def test_what_is_no_ascii_comes_out_as_it_went_in(make_queue, tm, kind):
    app = make_queue(kind)
    with tm:
        app.mailer().enqueue(letter("Grüße 📬", "jörg@exämple.com"), idempotency_key="Grüße 📬")
    assert app.states() == {"jörg@exämple.com": "ready"}
    ((key,),) = app.read(sa.select(schema.message.c.idempotency_key))
    assert key == "Grüße 📬"


def test_a_large_batch_is_made_ready_in_steps(app, mailer, tm, no_warnings):
    envelopes, each = 12, 90
    assert envelopes * each > CHUNK
    with tm:
        app.database.write("order")
        for number in range(envelopes):
            recipients = [f"{number}.{i}@example.com" for i in range(each)]
            mailer.enqueue(letter(number, *recipients), idempotency_key=f"key {number}")
    assert app.queue.flush(30)
    assert app.queue.counts() == {"ready": envelopes * each}
    assert app.batches() == ["published"]


@kinds(OWN_SQLITE, IN_SQLITE)
def test_more_keys_than_fit_into_a_step(make_queue, tm, kind, monkeypatch):
    app = make_queue(kind)
    monkeypatch.setattr("txmail.queue.batch.CHUNK", 3)
    monkeypatch.setattr("txmail.queue.host.CHUNK", 3)
    mailer = app.mailer()
    with tm:
        for number in range(10):
            mailer.enqueue(letter(number, f"{number}@example.com"), idempotency_key=f"{number % 9}")
    states = app.states()
    assert sorted(states.values()) == ["cancelled"] + ["ready"] * 9
    assert app.batches() == ["published"]


# -- workers are told


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("wake", [True, False])
def test_workers_are_woken_unless_it_is_said_otherwise(app, mailer, tm, wake):
    woken = threading.Event()
    app.queue.host.notifier.listeners.append(woken.set)
    with tm:
        mailer.enqueue(letter("one", ONE), wake=wake)
    app.queue.flush(20)
    assert woken.is_set() is wake


def test_subscribers_hear_of_what_is_queued(app, mailer, tm):
    told = []
    mailer.events.subscribe(told.append)
    tm.begin()
    mailer.enqueue(letter("one", ONE))
    mailer.enqueue(letter("two", TWO))
    tm.abort()
    assert told == []
    tm.begin()
    ids = [mailer.enqueue(letter("one", ONE)), mailer.enqueue(letter("two", TWO, THREE))]
    assert told == []
    tm.commit()
    assert [type(event) for event in told] == [MessageQueued] * 2
    assert [event.message_id for event in told] == ids
    assert [[o.recipient for o in event.outcomes] for event in told] == [[ONE], [TWO, THREE]]
    assert {event.queue for event in told} == {app.queue.name}


# -- transaction managers and sessions


def test_an_explicit_manager_without_a_transaction_says_so(app, mailer):
    explicit = transaction.TransactionManager(explicit=True)
    with pytest.raises(NoTransaction):
        mailer.bind(transaction_manager=explicit).enqueue(letter("one", ONE))
    assert app.is_empty()


@pytest.mark.parametrize("kind", OWN_QUEUES)
def test_mail_follows_the_transaction_manager_it_is_bound_to(make_queue, tm, kind):
    app = make_queue(kind)
    other = transaction.TransactionManager()
    tm.begin()
    other.begin()
    app.mailer().bind(transaction_manager=other).enqueue(letter("one", ONE))
    tm.commit()
    assert app.is_empty()
    other.commit()
    assert app.ready() == [ONE]


@kinds(OWN_SQLITE, OWN_POSTGRESQL)
def test_beside_a_session_that_has_only_read_the_vote_decides(make_queue, tm, kind):
    app = make_queue(kind)
    tm.begin()
    assert app.database.session.execute(sa.text("SELECT name FROM item")).all() == []
    app.mailer().enqueue(letter("one", ONE))
    tm.commit()
    assert app.queue.counts() == {"ready": 1}


# -- several of everything


def test_several_mailers_of_one_queue_make_one_batch(app, mailer, tm):
    others = [mailer.bind(default_sender="app@example.com"), app.mailer()]
    tm.begin()
    for name, each in zip((ONE, TWO, THREE), [mailer, *others], strict=True):
        each.enqueue(letter(name, name))
    tm.commit()
    assert app.ready() == [ONE, THREE, TWO]
    assert app.batches() == ["published"]


@pytest.mark.representative(every=4)
@pytest.mark.parametrize("end", ["commit", "abort", "fail"])
@kinds(IN_SQLITE, IN_TWO_PHASE, OWN_POSTGRESQL)
def test_two_queues_in_one_transaction(make_queue, tm, kind, end):
    app, other = make_queue(kind), make_queue(OWN_SQLITE)
    tm.begin()
    app.mailer().enqueue(letter("one", ONE))
    other.mailer().enqueue(letter("two", TWO))
    if end == "fail":
        tm.get().join(Recorder(FIRST, fails="vote"))
        with pytest.raises(Failure):
            tm.commit()
        tm.abort()
    else:
        getattr(tm, end)()
    expected = [[ONE], [TWO]] if end == "commit" else [[], []]
    assert [app.ready(), other.ready()] == expected


def test_direct_and_queued_mail_in_one_transaction(app, mailer, tm, server, no_warnings):
    with tm:
        app.database.write("order")
        mailer.send(letter("one", ONE))
        mailer.enqueue(letter("two", TWO))
        mailer.send(letter("three", THREE))
    assert subjects(server) == ["one", "three"]
    assert app.states() == {ONE: "sent", TWO: "ready", THREE: "sent"}
    # In call order
    assert [o.recipient for o in mailer.last_outcomes] == [ONE, TWO, THREE]
    assert statuses(mailer.last_outcomes) == ["accepted", "unsent", "accepted"]
    assert app.batches() == ["published"]
    assert not app.queue.host.open


def test_mailers_can_be_told_to_queue_what_is_sent(app, tm, server):
    mailer = app.mailer(delivery="queue")
    with tm:
        mailer.send(letter("one", ONE))
    assert app.ready() == [ONE]
    assert server.connections == []


@pytest.mark.representative(every=3)
def test_threads_queue_their_own_mail(app, server, tm):

    threads, each = 4, 5
    manager = transaction.ThreadTransactionManager()
    sessions = scoped_session(sessionmaker(app.engine, twophase=app.kind == IN_TWO_PHASE))
    zope.sqlalchemy.register(sessions, transaction_manager=manager)
    mailer = app.mailer(transaction_manager=manager)
    if app.in_session:
        mailer = mailer.bind(session=sessions)
    failures = []
    start = threading.Barrier(threads)

    def work(thread):
        start.wait(10)
        for number in range(each):
            name = f"{thread}.{number}@example.com"
            try:
                manager.begin()
                if number % 2:
                    mailer.send(letter(name, name))
                else:
                    mailer.enqueue(letter(name, name), idempotency_key=name)
                mailer.enqueue(letter("x", f"x{name}"))
                manager.abort() if number == 3 else manager.commit()
            except Exception as error:
                manager.abort()
                failures.append(error)

    running = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
    assert failures == []
    expected = {}
    for thread in range(threads):
        for number in (0, 1, 2, 4):
            name = f"{thread}.{number}@example.com"
            expected[name] = "sent" if number % 2 else "ready"
            expected[f"x{name}"] = "ready"
    assert app.states() == expected
    assert len(server.messages) == threads


# -- now, without a transaction


def test_what_is_sent_immediately_is_written_down(app, mailer, server):
    outcomes = mailer.send_immediately(letter("one", ONE, TWO))
    assert statuses(outcomes) == ["accepted"] * 2
    assert app.states() == {ONE: "sent", TWO: "sent"}
    assert app.batches() == ["published"]


def test_what_cannot_be_sent_immediately_waits_in_the_queue(app, mailer, server):
    server.stop()
    outcomes = mailer.send_immediately(letter("one", ONE))
    assert [(str(o.status), o.queued) for o in outcomes] == [("unsent", True)]
    assert app.states() == {ONE: "ready"}


# -- copies and processes


@kinds(OWN_SQLITE)
def test_a_pickled_mailer_has_its_queue(make_queue, kind, tm, server):
    app = make_queue(kind, limit=2)
    original = Mailer(transport_from_url(server.url), queue=app.queue)
    mailer = pickle.loads(pickle.dumps(original))
    copied = copy.copy(mailer)
    bound = [m.bind(transaction_manager=tm) for m in (mailer, copied, copy.deepcopy(mailer))]
    with tm:
        bound[0].enqueue(letter("one", ONE))
    with tm:
        bound[1].send(letter("two", TWO))
    tm.begin()
    bound[2].enqueue(letter("three", THREE, "four@example.com"))
    with pytest.raises(Exception, match="limit"):
        tm.commit()
    tm.abort()
    mailer.close()
    assert app.states() == {ONE: "ready", TWO: "sent"}


@kinds(OWN_POSTGRESQL, IN_SQLITE)
def test_a_mailer_whose_queue_is_no_file_is_not_pickled(make_queue, kind, server):
    app = make_queue(kind)
    mailer = Mailer(transport_from_url(server.url), queue=app.queue)
    with pytest.raises(ConfigurationError) as caught:
        pickle.dumps(mailer)
    assert caught.value.field == "queue"


@kinds(OWN_SQLITE, OWN_POSTGRESQL)
@pytest.mark.parametrize("used", [True, False])
def test_a_forked_child_queues_mail_as_well(make_queue, tm, kind, used):
    app = make_queue(kind)
    mailer = app.mailer()
    if used:
        with tm:
            mailer.enqueue(letter("one", ONE))

    def child():
        manager = transaction.TransactionManager()
        bound = mailer.bind(transaction_manager=manager)
        with manager:
            bound.enqueue(letter("two", TWO))
        return app.queue.flush(10)

    assert in_child(child) == "True"
    with tm:
        mailer.enqueue(letter("three", THREE))
    assert app.ready() == sorted([TWO, THREE] + [ONE] * used)


@kinds(OWN_SQLITE, OWN_POSTGRESQL)
def test_a_child_of_a_process_in_mid_transaction_has_nothing_of_it(make_queue, tm, kind):
    app = make_queue(kind)
    mailer = app.mailer()
    tm.begin()
    said = []

    def child():
        manager = transaction.TransactionManager()
        alive = threading.active_count()
        with manager:
            mailer.bind(transaction_manager=manager).enqueue(letter("two", TWO))
            manager.get().join(Recorder(FIRST))
        return alive, app.queue.flush(10), sorted(app.queue.host.open)

    tm.get().join(Recorder(BETWEEN, do={"vote": lambda: said.append(in_child(child))}))
    mailer.enqueue(letter("one", ONE))
    tm.commit()
    assert said == ["(1, True, [])"]
    assert app.ready() == [ONE, TWO]


def test_a_closed_queue_can_be_used_again(app, mailer, tm):
    with tm:
        mailer.enqueue(letter("one", ONE))
    mailer.close()
    app.queue.close()
    with tm:
        mailer.enqueue(letter("two", TWO))
    assert app.ready() == [ONE, TWO]


def test_a_queue_that_is_not_used_touches_nothing(tmp_path, tm, server):
    queue = Queue(f"sqlite:///{tmp_path}/folder/mail.db")
    mailer = Mailer(transport_from_url(server.url), queue=queue, transaction_manager=tm)
    tm.begin()
    mailer.enqueue(letter("one", ONE))
    tm.abort()
    mailer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_closed_queue_opens_nothing_by_itself(make_queue, tm):
    app = make_queue(OWN_SQLITE)
    mailer = app.mailer()
    for _ in range(20):
        with tm:
            mailer.enqueue(letter("one", "x@example.com"))
        app.queue.close()
        thread = app.queue.host.background._thread
        if thread is not None:
            thread.join(10)
        assert app.queue.database._connections._states.known() is None
