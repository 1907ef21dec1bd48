"""What is known of a commit, whoever ends it and however, and who is told."""

from __future__ import annotations

import contextlib
import logging

import pytest
import transaction
from commits import note
from databases import Failure, Recorder, Synchronizer
from letters import letter, statuses, subjects
from queues import IN_SQLITE, OWN_POSTGRESQL, OWN_SQLITE
from zope.interface.verify import verifyObject

import txmail
from txmail import DummyMailer, Envelope
from txmail.events import MessageSettled
from txmail.exceptions import (
    DeliveryError,
    DeliveryRefused,
    DeliveryUnavailable,
    PartialDelivery,
    TransactionClosed,
)
from txmail.interfaces import IMailDataManager, IMailer
from txmail.testing import CLOSE, RESET, Callback, ScriptedServer, then

ONE, TWO, THREE = "one@example.com", "two@example.com", "three@example.com"


class Alarm(BaseException):
    """What a signal's handler raises."""


def fail(error):
    raise error


# -- B2: last_outcomes


def hook(tm, error):
    tm.get().addBeforeCommitHook(fail, (error,))


#: who makes a commit fail, as what to do before and after mail was handed in
FAILURES = {
    "a hook before ours": (hook, None),
    "a hook after ours": (None, hook),
    "a synchronizer": (None, "synchronizer"),
    **{f"{phase} of {key}": (None, (key, phase)) for key in ("a", "~~~") for phase in
       ("begin", "commit", "vote", "finish")},
}  # fmt: skip


def fails(tm, mailer, how, error):
    """A transaction that fails in `how`; what has to be kept alive meanwhile."""
    before, after = FAILURES[how]
    tm.begin()
    if before is not None:
        before(tm, error)
    mailer.send(letter("one", ONE))
    mailer.send(letter("two", TWO))
    if after == "synchronizer":
        kept = Synchronizer(before=lambda: fail(error))
        tm.registerSynch(kept)
        return kept
    if isinstance(after, tuple):
        key, phase = after
        tm.get().join(Recorder(key, do={phase: lambda: fail(error)}))
    elif after is not None:
        after(tm, error)
    return None


@pytest.mark.filterwarnings("ignore:.*votes after")
@pytest.mark.parametrize("error", [Failure(), Alarm()], ids=["error", "interrupt"])
@pytest.mark.parametrize("how", FAILURES)
def test_b2_last_outcomes_are_those_of_the_commit_that_failed_whoever_failed(
    tm, mailer, server, how, error
):
    """Kind: outcomes that are those of another commit than the last."""
    with tm:
        mailer.send(letter("before", THREE))
    assert [o.recipient for o in mailer.last_outcomes] == [THREE]
    kept = fails(tm, mailer, how, error)
    with pytest.raises(type(error)):
        tm.commit()
    if kept is not None:
        tm.unregisterSynch(kept)
    sent = "finish" in how or how == "vote of ~~~"
    expected = [(r, "accepted" if sent else "unsent") for r in (ONE, TWO)]
    assert [(o.recipient, o.status) for o in mailer.last_outcomes] == expected
    tm.abort()
    assert [(o.recipient, o.status) for o in mailer.last_outcomes] == expected
    assert len(server.messages) == (3 if sent else 1)


def test_b2_an_abort_without_a_commit_empties_them_and_others_leave_them(tm, mailer):
    """Kind: outcomes of a commit that never was."""
    with tm:
        mailer.send(letter("one", ONE))
    kept = mailer.last_outcomes
    assert len(kept) == 1
    # Transactions without its mail: empty, of another mailer, taken back by a savepoint.
    with tm:
        pass
    tm.begin()
    tm.abort()
    with tm:
        DummyMailer(transaction_manager=tm).send(letter("other"))
    tm.begin()
    savepoint = tm.savepoint()
    mailer.send(letter("gone", TWO))
    savepoint.rollback()
    assert mailer.last_outcomes == kept
    tm.abort()
    assert mailer.last_outcomes == kept
    tm.begin()
    mailer.send(letter("two", TWO))
    tm.abort()
    assert mailer.last_outcomes == ()


def test_b2_while_it_is_handed_in_they_are_those_of_the_last_commit(tm, mailer):
    """Kind: outcomes of a commit that has not begun."""
    with tm:
        mailer.send(letter("one", ONE))
    tm.begin()
    mailer.send(letter("two", TWO))
    assert [o.recipient for o in mailer.last_outcomes] == [ONE]
    tm.commit()
    assert [o.recipient for o in mailer.last_outcomes] == [TWO]


@pytest.mark.parametrize("url", ["memory:", "smtp"])
@pytest.mark.parametrize("after", range(3))
def test_b2_an_error_right_behind_an_outcome_loses_none_of_them(
    tm, make_mailer, server, url, after, monkeypatch
):
    """Kind: what was known is forgotten because something unexpected happens next."""
    mailer = make_mailer(server.url if url == "smtp" else url)
    with contextlib.closing(mailer.transport.open()) as session:
        session_type = type(session)
    send = session_type.send

    def sending(*arguments, **options):
        for number, outcome in enumerate(send(*arguments, **options)):
            yield outcome
            if number == after:
                raise Alarm

    monkeypatch.setattr(session_type, "send", sending)
    tm.begin()
    for number in range(4):
        mailer.send(letter(number, f"{number}@example.com"))
    with pytest.raises(Alarm) as caught:
        tm.commit()
    tm.abort()
    found = statuses(mailer.last_outcomes)
    assert found[: after + 1] == ["accepted"] * (after + 1)
    assert str(mailer.last_outcomes[after]) in caught.value.__notes__[0]
    if url == "smtp":
        mailer.close()
        server.wait_closed()
        held = [r for m in server.messages for r in m.recipients]
        for outcome in mailer.last_outcomes:
            allowed = {"accepted": [1], "in_doubt": [0, 1]}.get(outcome.status, [0])
            assert held.count(outcome.recipient) in allowed


def test_b2_what_a_transport_says_nothing_about_is_in_doubt(tm, make_mailer, monkeypatch):
    """Kind: silence is taken for a no."""
    mailer = make_mailer("memory:")
    with contextlib.closing(mailer.transport.open()) as session:
        session_type = type(session)
    monkeypatch.setattr(session_type, "send", lambda self, envelopes, **_: iter(()))
    tm.begin()
    mailer.send(letter("one", ONE))
    with pytest.raises(PartialDelivery):
        tm.commit()
    assert statuses(mailer.last_outcomes) == ["in_doubt"]


# -- B3: nothing is queued in a transaction that failed


def check_not_queued(app, mailer, error):
    """Nothing is called queued, nor is it; but one-phase SQL has committed before our vote."""
    assert not any(o.queued for o in mailer.last_outcomes)
    assert "in the queue" not in str(error)
    if isinstance(error, DeliveryError):
        assert not any(o.queued for o in error.outcomes)
        assert error.outcomes == mailer.last_outcomes
    if getattr(error, "databases_may_be_committed", False) and app.in_session:
        assert "may have committed" in mailer.last_outcomes[0].reason
        return
    assert "ready" not in app.states().values()


@pytest.mark.parametrize("kind", [OWN_SQLITE, OWN_POSTGRESQL, IN_SQLITE])
@pytest.mark.parametrize(
    ("verb", "reply", "type_"),
    [
        (".", "554 5.7.1 spam", DeliveryRefused),
        ("RCPT", "550 5.1.1 no such user", DeliveryRefused),
        (".", "452 4.3.1 full", DeliveryUnavailable),
        (".", CLOSE, PartialDelivery),
        ("MAIL", "451 4.3.0 later", DeliveryUnavailable),
    ],
)
def test_b3_what_was_enqueued_in_a_transaction_that_fails_is_not_called_queued(
    make_queue, tm, server, kind, verb, reply, type_
):
    """Kind: an account that says of one message what was true of it before another failed."""
    app = make_queue(kind)
    mailer = app.mailer(on_unavailable="abort", on_partial="abort")
    server.on(verb, reply)
    tm.begin()
    mailer.enqueue(letter("one", ONE))
    mailer.send(letter("two", TWO))
    mailer.enqueue(letter("three", THREE))
    with pytest.raises(type_) as caught:
        tm.commit()
    tm.abort()
    check_not_queued(app, mailer, caught.value)
    assert [o.recipient for o in mailer.last_outcomes] == [ONE, TWO, THREE]
    first, _, last = mailer.last_outcomes
    assert str(first.reason) == str(last.reason) != ""


@pytest.mark.parametrize("phase", ["begin", "commit", "vote"])
@pytest.mark.parametrize("down", [False, True])
def test_b3_nor_is_it_if_somebody_else_fails(make_queue, tm, server, phase, down):
    """Kind: the same, and nobody of ours has failed."""
    app = make_queue(OWN_SQLITE)
    mailer = app.mailer()
    if down:
        server.stop()
    tm.begin().join(Recorder("a", fails=phase))
    mailer.enqueue(letter("one", ONE))
    mailer.send(letter("two", TWO))
    with pytest.raises(Failure) as caught:
        tm.commit()
    tm.abort()
    assert statuses(mailer.last_outcomes) == ["unsent", "unsent"]
    check_not_queued(app, mailer, caught.value)


def test_b3_nor_is_it_in_the_note_of_an_interrupt(make_queue, tm, server):
    """Kind: the same, in what is noted on an error that is none of ours."""
    app = make_queue(OWN_SQLITE)
    mailer = app.mailer()
    tm.begin()
    mailer.enqueue(letter("one", ONE))
    mailer.send(letter("two", TWO))
    real = mailer.transport.open

    def opened(**options):
        session = real(**options)
        session.send = lambda *_, **__: fail(Alarm())
        return session

    mailer.transport.open = opened
    with pytest.raises(Alarm) as caught:
        tm.commit()
    tm.abort()
    assert "in the queue" not in caught.value.__notes__[0]
    check_not_queued(app, mailer, caught.value)


# -- B7: telling never raises


class Breaking(logging.Handler):
    """A handler that raises."""

    def emit(self, record):
        raise ZeroDivisionError

    handle = emit


def breaking_filter(record):
    raise ZeroDivisionError


def breaking(event):
    raise ZeroDivisionError


@pytest.fixture(params=["filter", "handler", "filter of a handler", "subscriber", "all"])
def broken(request):
    """What raises; call it with the mailer."""
    loggers = [logging.getLogger(n) for n in ("txmail", "txmail.queue", "txmail.smtp")]
    handler = Breaking() if "filter" not in request.param else logging.NullHandler()
    if request.param == "filter of a handler":
        handler = logging.StreamHandler()
        handler.addFilter(breaking_filter)
    levels = [logger.level for logger in loggers]

    def set_up(mailer):
        if request.param in ("subscriber", "all"):
            mailer.events.subscribe(breaking)
        for logger in loggers:
            logger.setLevel(logging.DEBUG)
            if request.param in ("filter", "all"):
                logger.addFilter(breaking_filter)
            if request.param != "subscriber":
                logger.addHandler(handler)

    yield set_up
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
        logger.removeFilter(breaking_filter)
        logger.removeHandler(handler)


def test_b7_a_commit_is_the_same_whatever_is_told_and_to_whom(tm, mailer, server, broken):
    """Kind: an observer decides about what it observes."""
    broken(mailer)
    other = Recorder("a")
    tm.begin().join(other)
    mailer.send(letter("one", ONE))
    tm.commit()
    assert "finish" in other.calls
    assert statuses(mailer.last_outcomes) == ["accepted"]
    server.on(".", "554 5.7.1 spam")
    tm.begin()
    mailer.send(letter("two", TWO))
    with pytest.raises(DeliveryRefused):
        tm.commit()
    tm.abort()
    server.on(".", CLOSE)
    assert mailer.send_immediately(letter("now"), fail_silently=True)[0].status == "in_doubt"
    tm.begin()
    mailer.send(letter("three", THREE))
    server.on(".", then(Callback(lambda: None), RESET))
    with pytest.raises(PartialDelivery):
        tm.commit()


@pytest.mark.parametrize("kind", [OWN_SQLITE, IN_SQLITE])
def test_b7_with_a_queue_it_is_published_all_the_same(make_queue, tm, server, kind, broken):
    """Kind: the same, for what is told behind the commit."""
    app = make_queue(kind)
    mailer = app.mailer()
    broken(mailer)
    app.queue.host.notifier.listeners.append(lambda: fail(ZeroDivisionError()))
    with tm:
        mailer.enqueue(letter("one", ONE))
        mailer.send(letter("two", TWO))
    assert app.states() == {ONE: "ready", TWO: "sent"}
    app.queue.host.notifier.listeners.clear()


def test_b7_an_interrupt_of_a_subscriber_spoils_nothing(tm, mailer, server):
    """Kind: the same for what is no error: others have committed, and so have we."""
    mailer.events.subscribe(lambda e: fail(Alarm()) if isinstance(e, MessageSettled) else None)
    mailer.events.subscribe(lambda event: None)
    other = Recorder("a")
    tm.begin().join(other)
    mailer.send(letter("one", ONE))
    with pytest.raises(Alarm):
        tm.commit()
    assert other.calls[-2:] == ["finish", "tpc_abort"] or other.calls[-1] == "finish"
    assert statuses(mailer.last_outcomes) == ["accepted"]
    assert subjects(server) == ["one"]


# -- B8: by position


def twins(*senders):
    """Envelopes with one Message-ID and one recipient."""
    content = note("twin").content
    return [Envelope(sender, [ONE], content) for sender in senders]


@pytest.mark.parametrize("bad", range(3))
@pytest.mark.parametrize("extensions", [("PIPELINING", "SIZE 1000"), ("SIZE 1000",)])
def test_b8_a_refusal_is_told_of_the_envelope_that_it_is_about(tm, make_mailer, bad, extensions):
    """Kind: things are known by a name that two of them can have."""
    with ScriptedServer(extensions=extensions) as server:
        mailer = make_mailer(server.url)
        given = twins("a@example.com", "b@example.com", "c@example.com")
        large = given[bad].content + (b"x" * 70 + b"\r\n") * 20
        given[bad] = given[bad].with_content(large)
        assert len({e.message_id for e in given}) == 1
        tm.begin()
        for envelope in given:
            mailer.send(envelope)
        with pytest.raises(DeliveryRefused) as caught:
            tm.commit()
        expected = ["unsent"] * 3
        expected[bad] = "failed"
        assert statuses(caught.value.outcomes) == expected
        assert [o.position for o in caught.value.outcomes] == [0, 1, 2]


@pytest.mark.parametrize("bad", ["a", "b", "c"])
@pytest.mark.parametrize("verb", ["MAIL", "."])
def test_b8_so_is_one_of_the_sender_or_the_content(tm, mailer, server, bad, verb):
    """Kind: the same, at other moments."""
    server.on(verb, "550 5.7.1 not you", matching=f"{bad}@example.com", times=None)
    tm.begin()
    for envelope in twins("a@example.com", "b@example.com", "c@example.com"):
        mailer.send(envelope)
    with pytest.raises(DeliveryError) as caught:
        tm.commit()
    found = statuses(caught.value.outcomes)
    assert found.index("failed") == "abc".index(bad)
    assert found.count("failed") == 1


def test_b8_the_same_object_twice_is_two_envelopes(tm, mailer, server):
    """Kind: the same, where even the object is one."""
    (envelope,) = twins("a@example.com")
    server.on(".", "554 5.7.1 spam", after=1)
    tm.begin()
    mailer.send(envelope)
    mailer.send(envelope)
    with pytest.raises(PartialDelivery) as caught:
        tm.commit()
    assert statuses(caught.value.outcomes) == ["accepted", "failed"]


# -- B13: what to do after a commit that failed


def refused_at_the_dot(tm, mailer, server):
    server.on(".", "554 5.7.1 spam")
    mailer.send(letter("one", ONE))


def somebody(phase):
    def join(tm, mailer, server):
        tm.get().join(Recorder("a", fails=phase))
        mailer.send(letter("one", ONE))

    return join


def without_mail(tm, mailer, server):
    tm.get().join(Recorder("a", fails="vote"))


@pytest.mark.parametrize("call", ["send", "enqueue"])
@pytest.mark.parametrize(
    "failing",
    [refused_at_the_dot, somebody("begin"), somebody("commit"), somebody("vote"),
     somebody("finish"), without_mail],
)  # fmt: skip
def test_b13_after_a_commit_that_failed_the_error_says_to_abort(
    make_queue, tm, server, failing, call
):
    """Kind: an error that names a reason which is not the reason, and not what to do."""
    app = make_queue(OWN_SQLITE)
    mailer = app.mailer(on_unavailable="abort", on_partial="abort")
    tm.begin()
    failing(tm, mailer, server)
    with pytest.raises((DeliveryRefused, Failure)):
        tm.commit()
    with pytest.raises(TransactionClosed, match=r"the transaction has failed; call abort\(\)"):
        getattr(mailer, call)(letter("two", TWO))
    tm.abort()
    with tm:
        mailer.send(letter("three", THREE))
    assert subjects(server)[-1] == "three"


def test_b13_after_a_refusal_in_the_preflight_it_has_not_failed_yet(tm, mailer, server):
    """Kind: the same, where `transaction` has not noticed."""
    server.refuse(ONE)
    tm.begin()
    savepoint = tm.savepoint()
    mailer.send(letter("one", ONE))
    with pytest.raises(DeliveryRefused):
        tm.commit()
    mailer.send(letter("two", TWO))
    assert [e.recipients for e in mailer.pending] == [(ONE,), (TWO,)]
    del savepoint
    tm.abort()
    assert statuses(mailer.last_outcomes) == ["failed"]


def test_b13_where_the_commit_has_begun_it_still_says_so(tm, mailer):
    """Kind: the other side of it."""
    said = []

    def send():
        with pytest.raises(TransactionClosed) as caught:
            mailer.send(letter("late"))
        said.append(str(caught.value))

    tm.begin().join(Recorder("a", do={"vote": send}))
    mailer.send(letter("one", ONE))
    tm.commit()
    assert said == ["mail cannot be sent here: the commit has begun; no commit will follow "
                    "that could send it"]  # fmt: skip


# -- B15 and the public face: pending


def test_b15_pending_are_the_envelopes_of_this_mailer_that_wait(tm, make_queue, make_mailer):
    """Kind: a commit takes along what somebody has left behind, and nobody can see it."""
    mailer, other = make_queue(OWN_SQLITE).mailer(), make_mailer("memory:")
    assert tuple(mailer.pending) == ()
    tm.begin()
    assert tuple(mailer.pending) == ()
    first = mailer.send(letter("one", ONE))
    other.send(letter("other"))
    second = mailer.bind(default_sender="x@example.com").enqueue(letter("two", TWO))
    found = mailer.pending
    assert all(isinstance(envelope, Envelope) for envelope in found)
    assert [e.message_id for e in found] == [first, second]
    assert len(found) == 2
    assert found[-1].recipients == (TWO,)
    savepoint = tm.savepoint()
    mailer.send(letter("three", THREE))
    assert len(mailer.pending) == 3
    savepoint.rollback()
    assert len(mailer.pending) == 2
    tm.abort()
    assert not mailer.pending
    with tm:
        mailer.send(letter("four"))
        assert len(mailer.pending) == 1
    assert not mailer.pending


def test_b15_there_is_nothing_pending_where_there_is_no_transaction(make_mailer):
    """Kind: the same, without a transaction."""
    explicit = transaction.TransactionManager(explicit=True)
    assert tuple(make_mailer("memory:").bind(transaction_manager=explicit).pending) == ()


def test_b15_a_failed_request_leaves_nothing_if_it_aborts(tm, mailer, server):
    """Kind: the pattern that the documents show."""
    for name in ("good", "bad", "next"):
        try:
            with tm:
                assert not mailer.pending
                mailer.send(letter(name))
                if name == "bad":
                    raise ValueError
        except ValueError:
            pass
    assert subjects(server) == ["good", "next"]


def test_the_manager_is_exported_and_keeps_its_contract(tm, mailer):
    tm.begin()
    mailer.send(letter("one"))
    (manager,) = tm.get()._resources
    assert isinstance(manager, txmail.MailDataManager)
    assert verifyObject(IMailDataManager, manager)
    assert verifyObject(IMailer, mailer)
    assert verifyObject(IMailer, DummyMailer())
    assert "MailDataManager" in txmail.__all__
    dummy = DummyMailer(transaction_manager=tm)
    dummy.send(letter("dummy"))
    assert [m.subject for m in dummy.pending] == ["dummy"]


# -- B18: who holds a connection, or is in the middle of a commit, does not wait for one


def send_now(mailer, tm):
    assert mailer.send_immediately(letter("inner"))[0].status == "accepted"


def nested(mailer, tm):
    inner = transaction.TransactionManager()
    with inner:
        mailer.bind(transaction_manager=inner).send(letter("inner"))


class Waited(AssertionError):
    """Somebody has waited for a connection."""


@pytest.mark.parametrize("what", [send_now, nested])
@pytest.mark.parametrize("where", ["begin", "commit", "vote", "finish", "synchronizer"])
@pytest.mark.parametrize("outer", ["ours", "another mailer's", "no mail"])
def test_b18_nothing_waits_for_a_connection_within_a_commit(
    tm, make_mailer, server, what, where, outer, monkeypatch
):
    """Kind: something waits, under the locks of others, for what cannot come."""
    mailer = make_mailer(server.url + "?pool=1&local_hostname=x")
    pool = mailer.transport._pool
    wait_for = type(pool._changed).wait_for

    def no_wait(condition, predicate, timeout=None):
        if condition is pool._changed and not predicate():
            raise Waited
        return wait_for(condition, predicate, timeout)

    holder = mailer.transport.open() if outer != "ours" else None
    monkeypatch.setattr(type(pool._changed), "wait_for", no_wait)
    txn = tm.begin()
    if outer == "ours":
        mailer.send(letter("outer"))
    elif outer != "no mail":
        make_mailer("memory:").send(letter("outer"))
    kept = None
    if where == "synchronizer":
        kept = Synchronizer(before=lambda: what(mailer, tm))
    else:
        txn.join(Recorder("a", do={where: lambda: what(mailer, tm)}))
    if kept is not None:
        if outer != "ours":
            pytest.skip("no locks are held then, and no connection by this thread")
        tm.registerSynch(kept)
    tm.commit()
    if kept is not None:
        tm.unregisterSynch(kept)
    if holder is not None:
        holder.close()
    assert "inner" in subjects(server)


def test_b18_outside_of_any_commit_it_does_wait(make_mailer, server, monkeypatch):
    """Kind: the other side of it: `pool` is a bound."""
    mailer = make_mailer(server.url + "?pool=1")
    session = mailer.transport.open()
    waited = []
    pool = mailer.transport._pool
    monkeypatch.setattr(
        type(pool._changed), "wait_for", lambda self, predicate, timeout: waited.append(timeout)
    )
    send_now(mailer, None)
    assert len(waited) == 1
    session.close()
