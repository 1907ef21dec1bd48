"""A message that is sent now has a transaction of its own, whatever the thread is doing."""

from __future__ import annotations

import contextlib
import gc
import random
import warnings
import weakref

import pytest
import sqlalchemy as sa
import transaction
from commits import note
from databases import Item, Recorder
from interrupting import Alarm, AtLine
from letters import letter, statuses, subjects
from queues import IN_SQLITE, OWN_SQLITE

from txmail import datamanager
from txmail.delivery.private_transaction import PrivateTransactionManager
from txmail.events import MessageQueued, MessageSettled
from txmail.exceptions import DeliveryRefused, DeliveryUnavailable, TransientError
from txmail.testing import CLOSE


def test_the_current_transaction_has_no_part_in_it(tm, mailer, server):
    recorder = Recorder("a")
    txn = tm.begin()
    txn.join(recorder)
    mailer.send(letter("later"))
    mailer.send_immediately(letter("now"))
    assert subjects(server) == ["now"]
    assert tm.get() is txn
    assert txn.status == "Active"
    assert recorder.calls == []
    assert [envelope.message_id for envelope in mailer.pending]
    tm.commit()
    assert subjects(server) == ["now", "later"]


def test_nor_has_the_transaction_of_the_thread(mailer, server):
    before = transaction.manager.get()
    mailer.send_immediately(letter("now"))
    assert transaction.manager.get() is before
    assert not transaction.manager.registeredSynchs()
    transaction.abort()


def test_it_may_be_called_in_a_transaction_that_has_failed_or_is_doomed(tm, mailer, server):
    tm.begin().doom()
    mailer.send_immediately(letter("in a doomed one"))
    tm.abort()
    tm.begin().join(Recorder("a", fails="vote"))
    with pytest.raises(Exception, match="failed in vote"):
        tm.commit()
    mailer.send_immediately(letter("in a failed one"))
    assert subjects(server) == ["in a doomed one", "in a failed one"]


def test_it_raises_what_a_commit_raises_and_both_know_the_outcomes(tm, mailer, server):
    server.refuse("nobody@example.com")
    with pytest.raises(DeliveryRefused) as now:
        mailer.send_immediately(letter("one", "nobody@example.com"))
    assert now.value.outcomes == mailer.last_outcomes
    tm.begin()
    mailer.send(letter("two", "nobody@example.com"))
    with pytest.raises(DeliveryRefused) as later:
        tm.commit()
    assert statuses(now.value.outcomes) == statuses(later.value.outcomes) == ["failed"]
    assert str(now.value) == str(later.value)
    silent = mailer.send_immediately(letter("three", "nobody@example.com"), fail_silently=True)
    assert statuses(silent) == ["failed"]
    assert silent == mailer.last_outcomes


@pytest.mark.parametrize("transient", [False, True])
def test_a_temporary_error_is_transient_only_if_the_mailer_wants_that(
    make_mailer, server, transient
):
    mailer = make_mailer(transient=transient)
    server.on("MAIL", "451 4.3.0 later")
    with pytest.raises(DeliveryUnavailable) as caught:
        mailer.send_immediately(letter("one"))
    assert isinstance(caught.value, TransientError) == transient


def test_subscribers_hear_of_it_as_of_a_commit(make_queue, server):
    app = make_queue(OWN_SQLITE)
    mailer, events = app.mailer(), []
    mailer.events.subscribe(events.append)
    mailer.send_immediately(letter("one"))
    server.stop()
    mailer.send_immediately(letter("two"))
    told = [type(event) for event in events if isinstance(event, (MessageSettled, MessageQueued))]
    assert told == [MessageSettled, MessageQueued]


def test_a_queue_in_a_session_writes_it_through_a_connection_of_its_own(make_queue, tm, server):
    app = make_queue(IN_SQLITE)
    mailer = app.mailer()
    server.stop()
    tm.begin()
    assert mailer.send_immediately(letter("one", "one@example.com"))[0].queued
    assert app.states() == {"one@example.com": "ready"}
    session = app.database.session
    assert not session.in_transaction()
    tm.abort()
    assert session.scalars(sa.select(Item)).all() == []
    assert app.states() == {"one@example.com": "ready"}
    tm.abort()


@pytest.mark.parametrize("end", ["sent", "refused", "lost"])
def test_nothing_is_kept_of_it(mailer, server, end, monkeypatch):
    made = []
    init = PrivateTransactionManager.__init__

    def noted(self):
        made.append(weakref.ref(self))
        init(self)

    monkeypatch.setattr(PrivateTransactionManager, "__init__", noted)
    if end == "refused":
        server.refuse("ann@example.com")
    elif end == "lost":
        server.on(".", CLOSE)
    mailer.send_immediately(letter("one"), fail_silently=True)
    gc.collect()
    assert [each() for each in made] == [None]
    assert not any(
        isinstance(each, datamanager.MailDataManager) and each.buffered(mailer._direct)
        for each in gc.get_objects()
    )


@pytest.mark.representative(every=2)
@pytest.mark.parametrize("part", range(4))
def test_an_interrupt_leaves_no_warning_no_connection_and_no_riddle(make_mailer, server, part):
    """Kind: something asynchronous ends it between any two steps."""
    mailer = make_mailer(server.url + "?pool=1")
    mailer.send_immediately(note("first"))
    counting = AtLine(-1)
    with counting:
        mailer.send_immediately(note("counted"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for at in random.Random(part).sample(range(1, counting.lines), 8):
            cut = note(f"cut{at}")
            with contextlib.suppress(Alarm), AtLine(at, Alarm):
                mailer.send_immediately(cut)
            (outcome,) = mailer.last_outcomes
            times = len([m for m in server.messages if m.sender == cut.sender])
            if outcome.message_id != cut.message_id:  # it was too early: nobody was told
                assert times == 0
            elif outcome.status in ("accepted", "unsent"):
                assert times == (outcome.status == "accepted")
            mailer.send_immediately(note(f"next{at}"))
            assert server.messages[-1].sender == f"next{at}@example.com"
        gc.collect()
